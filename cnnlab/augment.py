"""Augmentation: a batch in, a batch out, on the batch's device.

Each class is called with (batch, generator, epoch) and is a function of these alone. None reads a value back
from the device. Images keep their channels-last memory; uint8 images stay uint8 unless colours are blended
(`Mixup`, `Kornia`), which makes them floats from 0 to 1.
"""

import importlib
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor, nn

from cnnlab.batch import Batch
from cnnlab.errors import ConfigError, MachineError

Images = UInt8[Tensor, "batch channel height width"] | Float[Tensor, "batch channel height width"]
Augmentation = Callable[[Batch, Generator, int], Batch]


@dataclass(frozen=True)
class Compose:
    """Apply several augmentations in order."""

    steps: Sequence[Augmentation]

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch after the last of them."""
        for step in self.steps:
            batch = step(batch, generator, epoch)
        return batch


@dataclass(frozen=True)
class FlipCrop:
    """Shift each image at random over its reflection, and mirror a random half of them.

    Args:
        padding: Largest shift in pixels, in both directions.
        flip: Whether images are mirrored.

    Raises:
        ConfigError: `padding` is negative or, when called, not below the image's size.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2, with reflection in place of zeros.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        _check("flip_crop.padding", self.padding, self.padding >= 0, "at least 0")

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with its images shifted and mirrored."""
        images = batch.images
        mirror = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.flip:
            mirror.random_(generator=generator)
        shift = _shifts(images, self.padding, "flip_crop", generator)
        return batch._replace(images=shift_and_mirror(images, shift, mirror))


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror a random half of the images in the first epoch, then each image in exactly every other epoch.

    Args:
        padding: Largest random shift in pixels, as in `FlipCrop`.
        seed: Decides which half comes first.

    Raises:
        ConfigError: `padding` is negative or, when called, not below the image's size.

    Source: Jordan 2024, arXiv:2404.00498, section 3.6.
    """

    padding: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("alternating_flip.padding", self.padding, self.padding >= 0, "at least 0")

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with its images mirrored, and shifted if so asked."""
        mirror = coins(batch.indices, self.seed) ^ bool(epoch % 2)
        shift = _shifts(batch.images, self.padding, "alternating_flip", generator)
        return batch._replace(images=shift_and_mirror(batch.images, shift, mirror))


@dataclass(frozen=True)
class Cutout:
    """Blank a random square in each image; its centre is anywhere, so that part of it may lie outside.

    Args:
        size: Side of the square in pixels; 0 leaves the batch unchanged.
        fill: What the square is filled with, from 0 (black) to 1 (white). The paper's filling is the mean of
            the data, to which 0.5 is near.

    Raises:
        ConfigError: `size` is negative or, when called, larger than the image; `fill` is not from 0 to 1.

    Source: DeVries & Taylor 2017, arXiv:1708.04552, section 3.
    """

    size: int = 8
    fill: float = 0.5

    def __post_init__(self) -> None:
        _check("cutout.size", self.size, self.size >= 0, "at least 0")
        _check("cutout.fill", self.fill, 0 <= self.fill <= 1, "from 0 to 1")

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with a square of each image blank."""
        images = batch.images
        count, channels, height, width = images.shape
        fits = self.size <= min(height, width)
        _check("cutout.size", self.size, fits, f"at most the side of the {height}×{width} images")
        if self.size == 0:
            return batch
        device = images.device
        centre = torch.rand((2, count, 1), generator=generator, device=device)
        span = torch.arange(self.size, device=device) - self.size // 2
        # The centre is inside. So a square that reaches over the border contains the border itself, and what
        # lies outside can be moved there.
        row = ((height * centre[0]).long() + span).clamp_(0, height - 1)
        column = ((width * centre[1]).long() + span).clamp_(0, width - 1)
        line = row + height * torch.arange(count, device=device)[:, None]
        index = width * line[:, :, None] + column[:, None, :]
        fill = self.fill if images.is_floating_point() else round(self.fill * 255)
        pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).index_fill(0, index.view(-1), fill)
        return batch._replace(images=pixels.view(count, height, width, channels).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Mixup:
    """Blend each image with another one of the batch, and their targets alike.

    Args:
        num_classes: Number of classes.
        alpha: The share of the first is drawn from Beta(alpha, alpha), once a batch: small values keep it
            near 0 or 1, 1 makes it uniform.

    Raises:
        ConfigError: `alpha` is not positive.

    Source: Zhang et al. 2017, arXiv:1710.09412, section 2.
    """

    num_classes: int
    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check("mixup.alpha", self.alpha, self.alpha > 0, "above 0")

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with float images and soft targets."""
        images = batch.images
        partner = torch.randperm(len(images), generator=generator, device=images.device)
        share = _beta(self.alpha, generator, images.device)
        rows = _rows(_as_float(images))
        rows = torch.lerp(rows.index_select(0, partner), rows, share)
        targets = _blend(batch.targets, partner, share, self.num_classes)
        return batch._replace(images=_from_rows(rows, images.shape[1]), targets=targets)


@dataclass(frozen=True)
class CutMix:
    """Paste a box of another image of the batch into each image, and blend the targets by area.

    Args:
        num_classes: Number of classes.
        alpha: The share that stays is drawn from Beta(alpha, alpha), once a batch; 1 makes it uniform. Where
            the box reaches over the border, more stays.

    Raises:
        ConfigError: `alpha` is not positive.

    Source: Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """

    num_classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check("cutmix.alpha", self.alpha, self.alpha > 0, "above 0")

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with soft targets."""
        images = batch.images
        _, channels, height, width = images.shape
        device = images.device
        partner = torch.randperm(len(images), generator=generator, device=device)
        half = (1 - _beta(self.alpha, generator, device)).sqrt() / 2
        centre = torch.rand(2, generator=generator, device=device)
        y = torch.arange(height, device=device)
        x = torch.arange(width * channels, device=device) // channels
        in_rows = _near(y, (height * centre[0]).long(), (height * half).long())
        in_columns = _near(x, (width * centre[1]).long(), (width * half).long())
        box = in_rows[:, None] & in_columns
        rows = _rows(images)
        rows = torch.where(box, rows.index_select(0, partner), rows)
        targets = _blend(batch.targets, partner, 1 - box.float().mean(), self.num_classes)
        return batch._replace(images=_from_rows(rows, channels), targets=targets)


@dataclass(frozen=True)
class Kornia:
    """Apply an augmentation of the kornia package to the batch as floats from 0 to 1.

    Args:
        name: A class of `kornia.augmentation`, such as `auto.TrivialAugment` or `ColorJiggle`.
        arguments: Of its constructor.

    Raises:
        ConfigError: kornia has no such class, or the class refuses the arguments.
        MachineError: kornia is not installed.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            kornia = importlib.import_module("kornia.augmentation")
        except ModuleNotFoundError as error:
            raise MachineError(
                "augment.kornia needs the package kornia, it is not installed: pip install 'cnnlab[kornia]'."
            ) from error
        target: Any = None
        with suppress(AttributeError):
            target = operator.attrgetter(self.name)(kornia)
        # Names come from configs, perhaps a stranger's: what kornia merely imports is out of their reach.
        known = isinstance(target, type) and issubclass(target, nn.Module)
        known = known and target.__module__.startswith("kornia.augmentation.")
        _check("kornia.name", self.name, known, "a class in kornia.augmentation, such as auto.TrivialAugment")
        try:
            object.__setattr__(self, "transform", target(**self.arguments))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"augment.kornia.arguments: {error}") from error

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with float images."""
        images = batch.images
        # kornia draws from PyTorch's own generators. The state of ours lies on the host, so a seed can be
        # made of it without waiting for the device; the draw is for the next call to find another state.
        seed = zlib.crc32(generator.get_state().numpy().tobytes())
        torch.rand((), generator=generator, device=images.device)
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(seed)
            images = self.transform(_as_float(images)).clamp(0, 1)
        return batch._replace(images=images.contiguous(memory_format=torch.channels_last))


def shift_and_mirror(images: Images, shift: Int64[Tensor, "2 batch"] | None, mirror: Bool[Tensor, "batch"]) -> Images:
    """Shift each image over its reflection at the borders, mirrored left to right where `mirror` says so.

    Each pixel of the result is looked up once, whatever the two ask for.

    Args:
        images: Of any type.
        shift: Rows and columns of each image, below its size; None for no shift.
        mirror: Whether each image is mirrored.
    """
    count, channels, height, width = images.shape
    # Narrow indices: making and reading them is a large part of the work.
    y, x, number = (torch.arange(n, dtype=torch.int32, device=images.device) for n in (height, width, count))
    row = y.expand(count, height)
    column = torch.where(mirror[:, None], width - 1 - x, x)
    if shift is not None:
        down, right = shift.int()[:, :, None]
        row, column = _reflect(row + down, height), _reflect(column + right, width)
    line = row + height * number[:, None]
    index = width * line[:, :, None] + column[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, index.view(-1))
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


def coins(indices: Int64[Tensor, "batch"], seed: int) -> Bool[Tensor, "batch"]:
    """Toss a coin for each sample: a hash of its index and the seed.

    Source: the output function of SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.
    """
    state = indices + _int64(seed * 0x9E37_79B9_7F4A_7C15)
    state = (state ^ (state >> 30 & 0x3_FFFF_FFFF)) * _int64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> 27 & 0x1F_FFFF_FFFF)) * _int64(0x94D0_49BB_1331_11EB)
    return state < 0


def _int64(value: int) -> int:
    """Wrap around as 64-bit integers do."""
    return (value + 2**63) % 2**64 - 2**63


def _shifts(images: Images, padding: int, name: str, generator: Generator) -> Int64[Tensor, "2 batch"] | None:
    """Draw the shifts of a batch."""
    if padding == 0:
        return None
    height, width = images.shape[2:]
    fits = padding < min(height, width)
    _check(f"{name}.padding", padding, fits, f"below the side of the {height}×{width} images")
    return torch.randint(-padding, padding + 1, (2, len(images)), generator=generator, device=images.device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Move positions outside of an image back inside; the outermost pixel is the mirror."""
    return size - 1 - (size - 1 - position.abs()).abs()


def _near(position: Tensor, centre: Tensor, reach: Tensor) -> Bool[Tensor, "n"]:
    return (position >= centre - reach) & (position < centre + reach)


def _rows(images: Images) -> Tensor:
    """View images as rows of neighbouring channels, their own order in memory."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _from_rows(rows: Tensor, channels: int) -> Images:
    """Undo `_rows`."""
    return rows.unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


def _as_float(images: Images) -> Float[Tensor, "batch channel height width"]:
    return images if images.is_floating_point() else images.float().div_(255)


def _beta(alpha: float, generator: Generator, device: torch.device) -> Float[Tensor, ""]:
    """Draw from Beta(alpha, alpha): the first share of a Dirichlet distribution, which takes a generator."""
    return torch._sample_dirichlet(torch.full((2,), alpha, device=device), generator)[0]


def _blend(
    targets: Tensor, partner: Int64[Tensor, "batch"], share: Float[Tensor, ""], num_classes: int
) -> Float[Tensor, "batch num_classes"]:
    """Mix the targets with their partners'; soft ones may be mixed again."""
    if not targets.is_floating_point():
        hard = targets[:, None]
        targets = torch.zeros(len(hard), num_classes, device=hard.device).scatter_(1, hard, 1.0)
    return torch.lerp(targets.index_select(0, partner), targets, share)


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"augment.{name} must be {rule}, got {value}.")
