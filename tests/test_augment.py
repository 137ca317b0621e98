"""Augmentation: what happens to the pixels, on what it depends, and what it costs the device."""

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cnnlab.augment import (
    AlternatingFlip,
    Augmentation,
    Compose,
    CutMix,
    Cutout,
    FlipCrop,
    Kornia,
    Mixup,
    ResizedCrop,
    shift_and_mirror,
)
from cnnlab.batch import Batch
from cnnlab.errors import ConfigError, MachineError
from tests.launches import Launches

GEOMETRIC = [FlipCrop(), FlipCrop(padding=2, flip=False), AlternatingFlip(padding=2), Cutout(size=5)]
MIXING = [Mixup(10), CutMix(10)]
EVERY = [*GEOMETRIC, *MIXING, Compose([FlipCrop(), Cutout(), Mixup(10), CutMix(10)])]


def batch_of(count: int = 64, channels: int = 3, height: int = 16, width: int = 12, float_: bool = False) -> Batch:
    random = generator(99)
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=random)
    images = images.permute(0, 3, 1, 2)
    if float_:
        images = images.float() / 255
    return Batch(images, torch.randint(10, (count,), generator=random), torch.arange(count))


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def shown_as(images: Tensor, originals: Tensor) -> Tensor:
    """Tell which images are mirrored; all others must be as they were."""
    mirrored = (images == originals.flip(3)).flatten(1).all(1)
    assert (mirrored | (images == originals).flatten(1).all(1)).all()
    return mirrored


@pytest.mark.parametrize("augment", EVERY, ids=repr)
def test_result_depends_on_batch_generator_and_epoch_alone(augment: Augmentation):
    batch = batch_of()
    before = Batch(*(tensor.clone() for tensor in batch))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(batch, generator(0), 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(augment(batch, generator(0), 3), first)
    assert not equal(augment(batch, generator(1), 3), first)
    assert equal(batch, before)


@pytest.mark.parametrize("augment", EVERY, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("float_", [False, True])
def test_shape_and_memory_format_stay(augment: Augmentation, channels: int, float_: bool):
    batch = batch_of(channels=channels, float_=float_)
    result = augment(batch, generator(0), 0)
    assert result.images.shape == batch.images.shape
    assert result.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result.indices, batch.indices)


@pytest.mark.parametrize("augment", [*GEOMETRIC, CutMix(10)], ids=repr)
def test_geometric_changes_keep_uint8_and_take_floats_alike(augment: Augmentation):
    result = augment(batch_of(), generator(0), 0)
    floats = augment(batch_of(float_=True), generator(0), 0)
    assert result.images.dtype == torch.uint8
    # Half a grey level: cutout's filling is rounded.
    assert (floats.images - result.images / 255).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("augment", EVERY, ids=repr)
def test_nothing_is_read_back_from_the_device(augment: Augmentation):
    batch = batch_of()
    with Launches() as launches:
        augment(batch, generator(0), 1)
    assert not launches.waits


def padded_and_cropped(images: Tensor, padding: int, shift: Tensor, mirror: Tensor) -> Tensor:
    """Shift and mirror, image by image, with torch's own padding."""
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    height, width = images.shape[2:]
    results = []
    for image, (top, left), mirrored in zip(padded, (padding + shift).T.tolist(), mirror.tolist(), strict=True):
        result = image[:, top : top + height, left : left + width]
        results.append(result.flip(2) if mirrored else result)
    return torch.stack(results)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 1, 4, 11])
def test_shift_and_mirror_is_reflect_pad_crop_and_flip(channels: int, padding: int):
    images = batch_of(channels=channels).images
    reach = 2 * padding + 1
    down, right, mirror = torch.randint(2 * reach, (3, len(images)), generator=generator(0))
    shift = torch.stack([down, right]) % reach - padding
    result = shift_and_mirror(images, padding, (down, right), mirror)
    assert torch.equal(result, padded_and_cropped(images, padding, shift, mirror % 2))
    still = shift_and_mirror(images, padding, (), 0)
    assert torch.equal(still, images)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_flip_crop_draws_coins_and_shifts_as_two_draws_would(padding: int):
    """One draw gives the bits that runs of earlier versions had, with a draw for each."""
    batch = batch_of()
    random = generator(3)
    mirror = torch.randint(2, (64,), generator=random)
    shift = torch.randint(-padding, padding + 1, (2, 64), generator=random)
    expected = padded_and_cropped(batch.images, padding, shift, mirror)
    assert torch.equal(FlipCrop(padding)(batch, generator(3), 0).images, expected)


def test_coins_tossed_once_are_those_of_every_step():
    batch = batch_of(64)
    for epoch in range(3):
        tossed = AlternatingFlip(2, seed=5, num_images=64)(batch, generator(0), epoch)
        assert equal(tossed, AlternatingFlip(2, seed=5)(batch, generator(0), epoch))


@pytest.mark.parametrize(
    ("augment", "most"),
    [
        (FlipCrop(), 5),
        (AlternatingFlip(padding=2, num_images=64), 6),
        (Cutout(), 8),
        (Mixup(10), 8),
        (CutMix(10), 22),
    ],
    ids=lambda value: repr(value),
)
def test_operations_stay_few(augment: Augmentation, most: int):
    """Each is a launch on a GPU: 5 to 10 µs of a step that takes 500."""
    batch = batch_of()
    augment(batch, generator(0), 0)  # makes the tables
    with Launches() as launches:
        augment(batch, generator(0), 1)
    assert launches.count <= most, launches.operations


def test_flip_crop_draws_every_shift_and_mirrors_half_of_the_images():
    # Each pixel of the image says where it is.
    images = torch.arange(192, dtype=torch.uint8).view(1, 1, 16, 12).expand(4000, -1, -1, -1)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(4000, dtype=torch.long), torch.arange(4000))
    shown = FlipCrop(padding=2)(batch, generator(0), 0).images[:, 0, 8]
    mirrored = shown[:, 6] < shown[:, 5]
    assert abs(mirrored.float().mean().item() - 0.5) < 0.03
    assert len(shown[mirrored][:, 6].unique()) == len(shown[~mirrored][:, 6].unique()) == 25
    shown = FlipCrop(padding=2, flip=False)(batch, generator(0), 0).images[:, 0, 8]
    assert (shown[:, 6] > shown[:, 5]).all()


def test_flip_crop_without_shift_and_flip_changes_nothing():
    batch = batch_of()
    assert equal(FlipCrop(padding=0, flip=False)(batch, generator(0), 0), batch)


def test_alternating_flip_mirrors_each_image_in_exactly_every_other_epoch():
    batch = batch_of(500)
    augment = AlternatingFlip(padding=0, seed=3)
    mirrored = []
    for epoch in range(6):
        order = torch.randperm(500, generator=generator(epoch))
        shuffled = Batch(*(tensor[order] for tensor in batch))
        result = augment(shuffled, generator(epoch), epoch)
        mirrored.append(shown_as(result.images, shuffled.images)[order.argsort()])
    for epoch in range(1, 6):
        assert torch.equal(mirrored[epoch], ~mirrored[epoch - 1])
    assert 0.4 < mirrored[0].float().mean() < 0.6


def test_alternating_flip_draws_other_halves_for_other_seeds():
    batch = batch_of(2000, height=2, width=2)
    first = [
        shown_as(AlternatingFlip(padding=0, seed=seed)(batch, generator(0), 0).images, batch.images).float()
        for seed in (0, 1, 2**31 + 1)
    ]
    for half in first:
        assert abs(half.mean().item() - 0.5) < 0.05
        assert abs((half[1:] * half[:-1]).mean().item() - 0.25) < 0.05
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((first[a] == first[b]).float().mean().item() - 0.5) < 0.05


@pytest.mark.parametrize("size", [1, 4, 7])
def test_cutout_blanks_one_square_around_a_centre_in_the_image(size: int):
    batch = batch_of(3000)._replace(images=torch.zeros(3000, 16, 12, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    blank = Cutout(size, fill=1.0)(batch, generator(0), 0).images == 255
    assert torch.equal(blank.all(1), blank.any(1))
    rows, columns = blank.any((1, 3)), blank.any((1, 2))
    assert torch.equal(blank[:, 0], rows[:, :, None] & columns[:, None, :])
    for lines, side in ((rows, 16), (columns, 12)):
        heights = lines.sum(1)
        inside = heights == size
        first = lines.int().argmax(1)
        last = side - 1 - lines.flip(1).int().argmax(1)
        assert torch.equal(last - first + 1, heights)
        assert ((first == 0) | (last == side - 1) | inside).all()
        # Each of the places for the centre is equally likely; those near the border cut the square.
        cut = (size - 1) / side
        assert (~inside).float().mean().item() == pytest.approx(cut, abs=0.04)
        assert heights.min() == size - size // 2


def test_cutout_fills_with_the_grey_it_is_given():
    batch = batch_of()
    changed = Cutout(4, fill=0.2)(batch, generator(0), 0).images
    assert set(changed[changed != batch.images].tolist()) == {51}
    assert equal(Cutout(0)(batch, generator(0), 0), batch)


def numbered(count: int, float_: bool = False) -> Batch:
    """Images whose pixels all say their number; each has a class of its own."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images.float() / 255 if float_ else images, torch.arange(count), torch.arange(count))


@pytest.mark.parametrize("float_", [False, True])
def test_mixup_blends_images_and_targets_alike(float_: bool):
    batch = numbered(32, float_)
    for seed in range(20):
        images, targets, _ = Mixup(32, alpha=1.0)(batch, generator(seed), 0)
        assert targets.shape == (32, 32)
        torch.testing.assert_close(targets.sum(1), torch.ones(32))
        # A pixel is the blend of two numbers; so is the mean of the classes under the targets.
        expected = (targets @ torch.arange(32.0)) / 255
        torch.testing.assert_close(images, expected.view(-1, 1, 1, 1).expand_as(images), rtol=1e-5, atol=1e-6)
        assert ((targets > 0).sum(1) <= 2).all()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_mixups_share_has_the_beta_distribution(alpha: float):
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), torch.arange(2))
    random = generator(0)
    shares: list[Tensor] = []
    while len(shares) < 1000:
        targets = Mixup(2, alpha)(batch, random, 0).targets
        if targets[0, 0] < 1:  # else the partner was the image itself, or the share was 1
            shares.append(targets[0, 0].double())
    values = torch.stack(shares)
    assert values.isfinite().all()
    if alpha == 1.0:
        assert values.mean().item() == pytest.approx(0.5, abs=0.04)
        assert values.var().item() == pytest.approx(1 / 12, abs=0.015)
    else:
        # Most of the mass lies near 0 and 1.
        assert ((values - 0.5).abs() > 0.4).double().mean() > 0.6


@pytest.mark.parametrize("float_", [False, True])
def test_cutmix_pastes_one_box_and_blends_targets_by_area(float_: bool):
    batch = numbered(32, float_)
    areas = set()
    for seed in range(40):
        images, targets, _ = CutMix(32)(batch, generator(seed), 0)
        pasted = images != batch.images
        for i in range(32):
            area = pasted[i, 0].float().mean().item()
            rows, columns = pasted[i, 0].any(1), pasted[i, 0].any(0)
            assert torch.equal(pasted[i, 0], rows[:, None] & columns)
            if area:
                number = images[i][pasted[i]].unique() * (255 if float_ else 1)
                assert len(number) == 1
                assert targets[i, i].item() == pytest.approx(1 - area)
                assert targets[i, int(number.round())].item() == pytest.approx(area)
                areas.add(area)
        torch.testing.assert_close(targets.sum(1), torch.ones(32))
    assert len(areas) > 10


def test_soft_targets_may_be_mixed_again():
    batch = numbered(32)
    images, targets, _ = Compose([CutMix(32), Mixup(32, alpha=1.0)])(batch, generator(5), 0)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    means = images.mean((1, 2, 3)) * 255
    torch.testing.assert_close(means, targets @ torch.arange(32.0), rtol=1e-4, atol=1e-3)


def test_compose_applies_in_order_with_one_generator():
    batch = batch_of()
    random = generator(0)
    expected = Cutout(4)(FlipCrop()(batch, random, 2), random, 2)
    assert equal(Compose([FlipCrop(), Cutout(4)])(batch, generator(0), 2), expected)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: FlipCrop(padding=-1), r"augment\.flip_crop\.padding must be at least 0, got -1"),
        (lambda: AlternatingFlip(padding=-1), r"augment\.alternating_flip\.padding"),
        (lambda: Cutout(size=-1), r"augment\.cutout\.size"),
        (lambda: Cutout(fill=255), r"augment\.cutout\.fill must be from 0 to 1, got 255"),
        (lambda: Mixup(10, alpha=0), r"augment\.mixup\.alpha"),
        (lambda: CutMix(10, alpha=-1), r"augment\.cutmix\.alpha"),
    ],
)
def test_bad_arguments_are_refused_at_construction(build: Any, text: str):
    with pytest.raises(ConfigError, match=text):
        build()


def test_what_does_not_fit_the_images_is_refused():
    with pytest.raises(ConfigError, match=r"flip_crop\.padding must be below the side of the 16×12 images, got 12"):
        FlipCrop(padding=12)(batch_of(), generator(0), 0)
    with pytest.raises(ConfigError, match=r"cutout\.size must be at most the side of the 16×12 images, got 13"):
        Cutout(size=13)(batch_of(), generator(0), 0)


def test_missing_kornia_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MachineError, match=r"pip install 'cnnlab\[kornia\]'"):
        Kornia("auto.TrivialAugment")


@pytest.mark.filterwarnings("default")
class TestKornia:
    """With the package itself, where it is installed."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("kornia.augmentation")

    def test_trivial_augment_is_a_function_of_batch_and_generator(self):
        augment = Kornia("auto.TrivialAugment")
        batch = batch_of(8)
        state = torch.get_rng_state()
        seen = []
        random = generator(0)
        for _ in range(12):
            images = augment(batch, random, 0).images
            assert images.shape == batch.images.shape
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert 0 <= images.min() <= images.max() <= 1
            seen.append(images)
        random = generator(0)
        for images in seen:
            assert torch.equal(augment(batch, random, 0).images, images)
        assert any(not torch.equal(seen[0], other) for other in seen[1:])
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("name", ["NoSuchClass", "auto.trivial_augment.torch.hub.load", "auto", "auto.nn.Module"])
    def test_only_kornias_own_classes_can_be_named(self, name: str):
        with pytest.raises(ConfigError, match=r"augment\.kornia\.name"):
            Kornia(name)

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ConfigError, match=r"augment\.kornia\.arguments: .*strenght"):
            Kornia("ColorJiggle", {"strenght": 1})


def test_resized_crop_of_the_whole_image_is_the_image_or_its_mirror():
    batch = batch_of(width=16)
    result = ResizedCrop(size=16, least=1.0)(batch, generator(0), 0)
    assert result.images.shape == batch.images.shape
    # An aspect ratio other than 1:1 cuts a strip off: the middle of a gradient stays in order.
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(64, 3, 16, 16)
    cut = ResizedCrop(size=8, least=0.3, flip=False)(batch._replace(images=ramp), generator(1), 0).images
    assert (cut[:, 0].int().diff(dim=-1) >= 0).all()
    assert (cut[:, 0].int().diff(dim=-2) == 0).all()
    widths = (cut[:, 0, 0, -1].int() - cut[:, 0, 0, 0].int()).float()
    assert widths.min() < 80 < 110 < widths.max()


@pytest.mark.parametrize("float_", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_resized_crop_gives_the_size_asked_for_in_the_images_own_type(float_: bool, channels: int):
    batch = batch_of(channels=channels, float_=float_)
    result = ResizedCrop(size=20)(batch, generator(0), 0)
    assert result.images.shape == (64, channels, 20, 20)
    assert result.images.dtype == batch.images.dtype
    assert result.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.min() <= result.images.min() <= result.images.max() <= batch.images.max()
    assert equal(result, ResizedCrop(size=20)(batch, generator(0), 0))
    assert not equal(result, ResizedCrop(size=20)(batch, generator(1), 0))
