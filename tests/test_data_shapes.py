"""The built-in data set: the same bytes for the same seed, fair, drawn right, and as hard as it should be."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.data import archive, shapes
from cnnlab.errors import ConfigError, DataError
from cnnlab.model import ConvNet


def test_same_seed_draws_the_same_bytes_and_others_do_not():
    first, again, other = (shapes.draw("train", 250, seed)[0].tobytes() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first != shapes.draw("test", 250, 3)[0].tobytes()


def test_bytes_do_not_depend_on_the_processors_vector_instructions():
    active = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    code = (
        "import hashlib; from cnnlab.data import shapes; "
        "print(hashlib.sha256(shapes.draw('train', 200, 0)[0].tobytes()).hexdigest())"
    )
    plain = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(active)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.strip() == hashlib.sha256(shapes.draw("train", 200, 0)[0].tobytes()).hexdigest()


def test_an_image_does_not_depend_on_how_many_follow():
    few, many = shapes.draw("train", 200, 0), shapes.draw("train", 450, 0)
    np.testing.assert_array_equal(few[0], many[0][:200])
    np.testing.assert_array_equal(few[1], many[1][:200])


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state(legacy=False)  # noqa: NPY002  # its being left alone is the point
    shapes.draw("train", 20, 0)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert str(before) == str(after)


@pytest.mark.parametrize("num", [10, 490, 1000])
def test_classes_are_equally_frequent_and_in_random_order(num):
    targets = shapes.draw("test", num, 0)[1]
    np.testing.assert_array_equal(np.bincount(targets), np.full(10, num // 10))
    assert (np.diff(targets) < 0).any()


def test_images_are_uint8_use_the_whole_range_and_differ():
    images, targets = shapes.draw("train", 600, 0)
    assert (images.dtype, images.shape) == (np.uint8, (600, 32, 32, 3))
    assert (targets.dtype, targets.shape) == (np.int64, (600,))
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images.reshape(600, -1), axis=0)) == 600
    assert images.mean() == pytest.approx(127.5, abs=6)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", np.pi * 0.85**2),
        ("square", 1.44**2),
        ("triangle", 0.87 * 1.5),
        ("star", 5 * 0.42 * np.sin(np.pi / 5)),
        ("cross", 4 * 0.56 * 0.67 + 0.56**2),
        ("ring", np.pi * (0.92**2 - 0.52**2)),
        ("bolt", 0.78),
        ("arrow", 0.5 * 1.05 + 0.75 * 0.9),
    ],
)
def test_shapes_have_their_area_and_signed_distances(name, area):
    step = 1 / 128
    x, y = np.meshgrid(*2 * [np.arange(-1.25, 1.25, step, dtype=np.float32) + np.float32(step / 2)])
    distance = shapes._SHAPES[name](x[None], y[None])[0]
    assert (distance < 0).sum() * step**2 == pytest.approx(area, rel=0.01)
    # A distance grows by one unit a unit, except on ridges.
    slope = np.hypot(*np.gradient(distance, step))
    assert np.median(slope) == pytest.approx(1, abs=0.01)


def test_every_scene_shows_a_shape_that_stands_out():
    """Two scenes that differ in nothing but the class differ in many pixels, by much."""
    num = 200
    classes = [
        shapes._scenes(np.full(num, label), np.random.Generator(np.random.PCG64(0))).astype(int) for label in range(10)
    ]
    for first in range(10):
        for second in range(first):
            differing = np.abs(classes[first] - classes[second]).max(axis=-1) > 64
            assert (differing.sum(axis=(1, 2)) >= 8).mean() > 0.98, (first, second)


def test_file_is_read_by_the_same_code_and_not_drawn_again(tmp_path):
    path = tmp_path / "new folder" / "shapes.npz"
    assert shapes.generate(path, num_train=40, num_test=20, seed=1) == path
    data = archive.read(path)
    np.testing.assert_array_equal(data.images["train"], shapes.draw("train", 40, 1)[0])
    np.testing.assert_array_equal(data.images["test"], shapes.draw("test", 20, 1)[0])
    assert data.classes == shapes.CLASSES
    written = path.stat()
    shapes.generate(path, num_train=40, num_test=20, seed=1)
    assert path.stat() == written


@pytest.mark.parametrize("other", [{"seed": 2}, {"num_train": 50}, {"num_test": 30}])
def test_another_data_set_is_not_taken_for_the_one_asked_for(tmp_path, other):
    path = tmp_path / "shapes.npz"
    asked = {"num_train": 40, "num_test": 20, "seed": 1}
    shapes.generate(path, **asked)
    with pytest.raises(DataError, match="its labels differ"):
        shapes.generate(path, **asked | other)


def test_a_damaged_file_is_left_and_refused_when_read(tmp_path):
    path = tmp_path / "shapes.npz"
    shapes.generate(path, num_train=2000, num_test=20)
    content = bytearray(path.read_bytes())
    labels = shapes.draw("train", 2000, 0)[1].tobytes()
    content[content.index(labels) + len(labels) - 8] ^= 1
    path.write_bytes(content)
    shapes.generate(path, num_train=2000, num_test=20)
    assert path.read_bytes() == content
    with pytest.raises(DataError, match="damaged"):
        archive.read(path)


@pytest.mark.parametrize("wrong", [{"num_train": 9}, {"num_test": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be at least"):
        shapes.generate(tmp_path / "shapes.npz", **wrong)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def standard(tmp_path_factory) -> archive.Archive:
    path = tmp_path_factory.mktemp("shapes") / "shapes.npz"
    return archive.read(shapes.generate(path))


@pytest.mark.slow
def test_the_whole_data_set_takes_under_ten_seconds_and_500_mb(tmp_path: Path):
    code = (
        "import resource, sys, pathlib; from cnnlab.data import shapes; from cnnlab.machine import peak_memory;"
        "shapes.generate(pathlib.Path(sys.argv[1]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, peak_memory() / 2**20)"
    )
    start = time.perf_counter()
    path = str(tmp_path / "shapes.npz")
    printed = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
    seconds, mebibytes = map(float, printed.split())
    assert min(seconds, time.perf_counter() - start) < 10
    assert mebibytes < 500


@pytest.mark.slow
def test_a_linear_classifier_stays_under_sixty_per_cent(standard):
    def pixels(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).flatten(1).float()

    images, test = pixels(standard.images["train"]), pixels(standard.images["test"])
    mean, std = images.mean(0), images.std(0)
    images, test = (images - mean) / std, (test - mean) / std
    targets, test_targets = map(torch.from_numpy, (standard.targets["train"], standard.targets["test"]))
    best = 0.0
    for weight_decay in (1e-3, 1e-2, 1e-1):
        torch.manual_seed(0)
        linear = nn.Linear(images.shape[1], 10)
        optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=12)
        for _ in range(12):
            for batch in torch.randperm(len(images)).split(200):
                penalty = weight_decay / 2 * linear.weight.square().sum()
                loss = F.cross_entropy(linear(images[batch]), targets[batch]) + penalty
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            accuracy = (linear(test).argmax(1) == test_targets).float().mean().item()
            best = max(best, accuracy)
    assert 0.1 < best < 0.3, best


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_articles_network_passes_ninety_per_cent(standard):
    torch.manual_seed(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in archive.channel_statistics(standard.images["train"]))
    images, test = (
        torch.from_numpy(part).permute(0, 3, 1, 2) for part in (standard.images["train"], standard.images["test"])
    )
    targets, test_targets = map(torch.from_numpy, (standard.targets["train"], standard.targets["test"]))
    network = ConvNet(3, 10, (32, 32), channels=[6, 16], kernel_size=5, batch_norm=[False, True], hidden=[120, 84])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=3e-3)
    batches = [batch for _ in range(8) for batch in torch.randperm(18_000).split(128)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=len(batches) + 1)
    for batch in batches:
        loss = F.cross_entropy(network((images[batch] / 255 - mean) / std), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        predicted = network((test / 255 - mean) / std).argmax(1)
    assert (predicted == test_targets).float().mean() > 0.92
