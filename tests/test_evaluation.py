"""What `evaluate` says is what training's own test said, and it says of what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnlab.checkpoint import write_checkpoint
from cnnlab.commands.evaluate import evaluate as evaluate_command
from cnnlab.errors import CheckpointError, ConfigError, DataError, MachineError
from cnnlab.evaluation import Split, answer, calibrate, evaluate, summarise
from cnnlab.tta import TTA, average_views, shift
from tests.conftest import Train, drawn, read


def test_evaluation_equals_trainings_own_test_to_the_last_digit(trained: Path):
    measured = read(trained / "metrics.json")
    splits: tuple[Split, ...] = ("test", "val")
    for split in splits:
        metrics = evaluate(str(trained), split=split, figures=False).content["metrics"]
        assert (
            metrics.items()
            >= {
                name.removeprefix(f"{split}/"): value for name, value in measured.items() if name.startswith(split)
            }.items()
        )


def test_the_parts_of_an_evaluation_agree(trained: Path):
    done = evaluate(str(trained))
    content = read(trained / "evaluation.json")
    assert content == json.loads(json.dumps(done.content))
    matrix = np.array(content["confusion"])
    assert matrix.sum() == content["count"] == 100
    assert np.trace(matrix) / 100 == pytest.approx(content["metrics"]["accuracy"])
    low, high = content["accuracy_interval"]
    assert low < content["metrics"]["accuracy"] < high
    scores = [row["f1"] or 0 for row in content["per_class"]]
    assert np.mean(scores) == pytest.approx(content["metrics"]["macro_f1"], abs=1e-6)
    error = sum(
        part["count"] * abs(part["confidence"] - part["accuracy"]) for part in content["calibration"] if part["count"]
    )
    assert error / 100 == pytest.approx(content["metrics"]["calibration_error"], abs=1e-6)
    with np.load(trained / content["answers"]) as saved:
        assert set(saved) == {"predicted", "targets", "confidence", "images", "filters", "losses", "lrs"}
        for mistake in content["mistakes"]:
            index = mistake["index"]
            assert (saved["targets"][index], saved["predicted"][index]) == (mistake["target"], mistake["predicted"])
        assert len(content["mistakes"]) == (saved["predicted"] != saved["targets"]).sum()
    for name in content["figures"]:
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert not list(trained.glob(".*.[0-9]*"))


def test_each_evaluation_has_a_name_of_its_own(trained: Path, tmp_path: Path, npz: Path):
    train_set, test_set = drawn(40, 10, seed=2), drawn(30, 10, seed=3)
    other = tmp_path / "small.npz"
    np.savez(other, X_train=train_set[0], y_train=train_set[1], X_test=test_set[0], y_test=test_set[1])
    checkpoint = trained / "checkpoints" / "last.ckpt"
    alone = tmp_path / "kept.ckpt"
    alone.write_bytes(checkpoint.read_bytes())
    kinds: list[tuple[Path, Path | None, Split, TTA]] = [
        (trained, None, "test", "none"), (trained, None, "val", "none"), (trained, None, "train", "mirror"),
        (trained, npz, "test", "none"), (trained, other, "test", "none"), (checkpoint, None, "test", "none"),
        (alone, None, "test", "mirror_translate"),
    ]  # fmt: skip
    paths = [
        evaluate(str(named), figures=False, data=data, split=split, tta=tta).path for named, data, split, tta in kinds
    ]
    paths.insert(1, evaluate(str(trained), figures=False, precision="bf16-true").path)
    assert paths[1] == trained / "evaluation-bf16-true.json"
    assert evaluate(str(trained), figures=False, precision="32").path == paths[0]
    assert len(set(paths)) == len(paths)
    assert paths[0] == trained / "evaluation.json"
    assert paths[-1] == tmp_path / "kept-evaluation-mirror_translate.json"
    assert read(paths[4])["data_digest"] == read(paths[0])["data_digest"] != read(paths[5])["data_digest"]


def test_names_that_could_not_be_compared_are_told(trained: Path, npz: Path, tmp_path: Path, capsys):
    evaluate_command(str(trained), data=npz, figures=False)
    assert f"note: {npz} has no class names that could be compared, only labels up to 9" in capsys.readouterr().out
    named = tmp_path / "named.npz"
    with np.load(npz) as arrays:
        np.savez(named, **arrays, classes=np.array([str(label) for label in range(10)]))
    evaluate_command(str(trained), data=named, figures=False)
    assert "note" not in capsys.readouterr().out


def test_a_file_of_other_classes_or_sizes_is_refused(trained: Path, tmp_path: Path):
    images, labels = drawn(40, 10, seed=2)
    path = tmp_path / "other.npz"

    def refused(match: str, pixels: np.ndarray = images, targets: np.ndarray = labels, **more: Any) -> None:
        np.savez(path, X_train=pixels, y_train=targets, X_test=pixels, y_test=targets, **more)
        with pytest.raises(DataError, match=match):
            evaluate(str(trained), data=path)

    refused("classes must be those of the network", classes=np.array([f"c{number}" for number in range(10)]))
    refused("10", targets=labels + 1)
    refused("must be 32 × 32 × 3", pixels=np.ascontiguousarray(images[:, :16]))
    with pytest.raises(DataError, match="does not exist"):
        evaluate(str(trained), data=tmp_path / "nowhere.npz")
    with pytest.raises(ConfigError, match="--precision half"):
        evaluate(str(trained), precision="half")
    with pytest.raises(ConfigError, match="--accelerator abacus"):
        evaluate(str(trained), accelerator="abacus")
    with pytest.raises(MachineError, match="--accelerator tpu"):
        evaluate(str(trained), accelerator="tpu")


def test_a_run_elsewhere_finds_its_data_or_says_what_to_give(
    train: Train, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.npz").write_bytes(npz.read_bytes())
    monkeypatch.chdir(work)
    folder = train("data.path=mine.npz", "trainer.max_epochs=1")
    monkeypatch.chdir(tmp_path)
    assert evaluate(str(folder), figures=False).content["data"] == str(work / "mine.npz")
    (work / "mine.npz").unlink()
    with pytest.raises(DataError, match=r"there is no .*mine\.npz.*--data FILE"):
        evaluate(str(folder))


@pytest.mark.parametrize("told", [None, 5, {}, {"keys": [1]}, {"keys": {}, "classes": None, "val_size": "x"}])
def test_a_checkpoint_that_does_not_say_how_its_data_is_read_is_named(trained: Path, tmp_path: Path, told: Any):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["config"]["data"] = told
    write_checkpoint(content, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match="does not say how its data is read"):
        evaluate(str(tmp_path / "odd.ckpt"))


def test_moved_images_are_mirrored_at_the_edge():
    image = torch.arange(9).reshape(1, 1, 3, 3)
    assert shift(image, -1)[0, 0].tolist() == [[4, 5, 4], [7, 8, 7], [4, 5, 4]]
    assert shift(image, 1)[0, 0].tolist() == [[4, 3, 4], [1, 0, 1], [4, 3, 4]]
    padded = nn.functional.pad(image.float(), (1, 1, 1, 1), mode="reflect")
    assert torch.equal(shift(image, 1).float(), padded[:, :, :3, :3])
    assert torch.equal(shift(image, -1).float(), padded[:, :, 2:, 2:])
    assert shift(torch.ones(1, 1, 1, 1), 1).shape == (1, 1, 1, 1)


def test_augmentation_weighs_the_images_as_its_source_does():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    images = torch.rand(2, 3, 4, 4)
    ways = [
        network(shown) for still in (images, shift(images, -1), shift(images, 1)) for shown in (still, still.flip(3))
    ]
    torch.testing.assert_close(average_views(network, "mirror")(images), (ways[0] + ways[1]) / 2)
    expected = (ways[0] + ways[1]) / 4 + sum(ways[2:]) / 8
    torch.testing.assert_close(average_views(network, "mirror_translate")(images), expected)


def test_odd_answers_are_summed_up():
    logits = torch.tensor([[9.0, 0.0, -9.0], [9.0, 0.0, -9.0]])
    content = summarise(logits, torch.tensor([0, 1]), ["a", "b", "c"])
    assert content["per_class"][2] == {"class": "c", "count": 0, "precision": None, "recall": None, "f1": None}
    assert content["per_class"][1]["recall"] == 0
    assert [mistake["index"] for mistake in content["mistakes"]] == [1]
    parts = calibrate(np.array([0.0, 1.0]), np.array([False, True]))
    assert (parts[0]["count"], parts[-1]["count"], parts[5]["accuracy"]) == (1, 1, None)


def test_the_answers_are_the_networks_own(npz: Path):
    from cnnlab import ConvNet, ImageData, normalised

    data = ImageData(npz, val_size=0)
    network = normalised(
        ConvNet(3, 10, (32, 32), channels=[4], kernel_size=3, batch_norm=False, hidden=[8]), data.mean, data.std
    )
    answers = answer(network, data.batches("test"), 10)
    with torch.inference_mode():
        (batch,) = data.batches("test")
        assert torch.equal(answers.logits, network(batch.images))


def test_evaluate_repeats_the_runs_own_augmented_test(train: Train):
    folder = train("eval.tta=mirror_translate")
    own = evaluate(str(folder), figures=False)
    told = read(folder / "metrics.json")
    assert own.content["tta"] == "mirror_translate"
    assert own.path == folder / "evaluation.json"
    for name, value in own.content["metrics"].items():
        assert value == told[f"test/{name}"], name
    plain = evaluate(str(folder), figures=False, tta="none")
    assert plain.path == folder / "evaluation-plain.json"
    assert plain.content["metrics"]["loss"] != told["test/loss"]
