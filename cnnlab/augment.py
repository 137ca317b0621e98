"""Augmentation: a batch in, a batch out, on the batch's device.

Each class is called with (batch, generator, epoch) and is a function of these alone. None reads a value back
from the device. Images keep their channels-last memory; uint8 images stay uint8 unless colours are blended
(`Mixup`, `Kornia`), which makes them floats from 0 to 1.

On a GPU each operation costs its launch, 5 to 10 µs, and next to nothing else. So whatever does not depend on the draws
is made once and kept in tables, and a draw is looked up in them.
"""

import importlib
import math
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor, nn

from cnnlab.batch import Batch
from cnnlab.bounds import NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare, Seed, Share, within_bounds
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


@within_bounds("augment.flip_crop")
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

    padding: NonNegativeInt = 4
    flip: bool = True

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with its images shifted and mirrored."""
        images = batch.images
        _check_padding("flip_crop", self.padding, images)
        codes = _draw_codes(self.flip + 2 * (self.padding > 0), self.padding, images, generator)
        mirror = codes.pop(0) if self.flip else 0
        return batch._replace(images=shift_and_mirror(images, self.padding, codes, mirror))


@within_bounds("augment.alternating_flip")
@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror a random half of the images in the first epoch, then each image in exactly every other epoch.

    Args:
        padding: Largest random shift in pixels, as in `FlipCrop`.
        seed: Decides which half comes first.
        num_images: Number of training images, where it is offered: their coins are then tossed once, not in every step.

    Raises:
        ConfigError: `padding` is negative or, when called, not below the image's size.

    Source: Jordan 2024, arXiv:2404.00498, section 3.6.
    """

    padding: NonNegativeInt = 1
    seed: Seed = 0
    num_images: int | None = None

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with its images mirrored, and shifted if so asked."""
        images, indices = batch.images, batch.indices
        _check_padding("alternating_flip", self.padding, images)
        if self.num_images is None:
            mirror = (coins(indices, self.seed) ^ bool(epoch % 2)).long()
        else:
            mirror = _coin_table(self.num_images, self.seed, indices.device)[epoch % 2].index_select(0, indices)
        codes = _draw_codes(2 * (self.padding > 0), self.padding, images, generator)
        return batch._replace(images=shift_and_mirror(images, self.padding, codes, mirror))


@within_bounds("augment.cutout")
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

    size: NonNegativeInt = 8
    fill: Share = 0.5

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with a square of each image blank."""
        images = batch.images
        count, channels, height, width = images.shape
        fits = self.size <= min(height, width)
        _check("cutout.size", self.size, fits, f"at most the side of the {height}×{width} images")
        if self.size == 0:
            return batch
        rows, columns, numbers, sides = _square_tables(count, height, width, self.size, images.device)
        centre = torch.rand((2, count, 1), generator=generator, device=images.device)
        row, column = (sides * centre).long()[:, :, 0]
        index = rows[numbers, row][:, :, None] + columns.index_select(0, column)[:, None, :]
        fill = self.fill if images.is_floating_point() else round(self.fill * 255)
        pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).index_fill(0, index.view(-1), fill)
        return batch._replace(images=pixels.view(count, height, width, channels).permute(0, 3, 1, 2))


@within_bounds("augment.resized_crop")
@dataclass(frozen=True)
class ResizedCrop:
    """Cut a random rectangle out of each image and bring it to one size; mirror a random half of them.

    Args:
        size: Side of the result in pixels; the network is built for it where `eval.resize` says the same.
        least: Smallest part of the image's area that is cut out; the largest is all of it.
        flip: Whether images are mirrored.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6: aspect ratios from 3:4 to 4:3. Sampled bilinearly, so a
    rectangle that is several times larger than `size` is not smoothed.
    """

    size: PositiveInt = 224
    least: PositiveShare = 0.08
    flip: bool = True

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with a part of each image, enlarged or shrunk to the size."""
        images = batch.images
        count, _, height, width = images.shape
        area, ratio, x, y, coin = torch.rand((5, count), generator=generator, device=images.device)
        area = self.least + (1 - self.least) * area
        stretch = (math.log(4 / 3) * (ratio - 0.5)).exp()  # half the logarithm of the aspect ratio
        # As shares of the image's sides, at most 1: a rectangle that stands out is cut.
        across = (area.sqrt() * stretch * (height / width) ** 0.5).clamp(max=1)
        down = (area.sqrt() / stretch * (width / height) ** 0.5).clamp(max=1)
        mirror = torch.where(coin < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(coin)
        theta = torch.zeros(count, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = across * mirror, (2 * x - 1) * (1 - across)
        theta[:, 1, 1], theta[:, 1, 2] = down, (2 * y - 1) * (1 - down)
        grid = F.affine_grid(theta, [count, 1, self.size, self.size], align_corners=False)
        result = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        if not images.is_floating_point():
            result = result.round_().to(images.dtype)
        return batch._replace(images=result.contiguous(memory_format=torch.channels_last))


@within_bounds("augment.mixup")
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
    alpha: PositiveFloat = 0.2

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with float images and soft targets."""
        images = batch.images
        partner = torch.randperm(len(images), generator=generator, device=images.device)
        share = _beta(self.alpha, generator, images.device)
        rows = _rows(_as_float(images))
        rows = torch.lerp(rows.index_select(0, partner), rows, share)
        targets = _blend(batch.targets, partner, share, self.num_classes)
        return batch._replace(images=_from_rows(rows, images.shape[1]), targets=targets)


@within_bounds("augment.cutmix")
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
    alpha: PositiveFloat = 1.0

    def __call__(self, batch: Batch, generator: Generator, epoch: int) -> Batch:
        """Return the batch with soft targets."""
        images = batch.images
        _, channels, height, width = images.shape
        device = images.device
        positions, sides, halves = _pixel_tables(height, width, channels, device)
        partner = torch.randperm(len(images), generator=generator, device=device)
        reach = ((1 - _beta(self.alpha, generator, device)).sqrt() * halves).long()
        centre = (torch.rand((2, 1), generator=generator, device=device) * sides).long()
        inside = (positions >= centre - reach) & (positions < centre + reach)
        box = inside[0, :height, None] & inside[1, : width * channels]
        rows = _rows(images)
        rows = torch.where(box, rows.index_select(0, partner), rows)
        targets = _blend(batch.targets, partner, 1 - box.mean(dtype=torch.float32), self.num_classes)
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
        offered = isinstance(target, type) and issubclass(target, nn.Module)
        offered = offered and target.__module__.startswith("kornia.augmentation.")
        _check("kornia.name", self.name, offered, "a class in kornia.augmentation, such as auto.TrivialAugment")
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


def shift_and_mirror(
    images: Images,
    padding: int,
    shifts: Sequence[Int64[Tensor, "batch"]],
    mirror: Int64[Tensor, "batch"] | int,
) -> Images:
    """Shift each image over its reflection at the borders, mirrored left to right where `mirror` is odd.

    Each pixel of the result is looked up once, whatever the two ask for.

    Args:
        images: Of any type.
        padding: Largest shift in pixels, below the images' size.
        shifts: Of the rows and of the columns of each image; a code k below 2·(2·padding + 1) shifts by
            k mod (2·padding + 1) - padding pixels. Empty for no shift.
        mirror: A code below 2·(2·padding + 1) for each image, or for all of them.
    """
    count, channels, height, width = images.shape
    rows, columns, numbers = _shift_tables(count, height, width, padding, images.device)
    down, right = shifts or (padding, padding)  # the code of no shift
    # A product of broadcast indices would do without the sum, but the CPU takes seven times as long for it.
    index = rows[numbers, down][:, :, None] + columns[mirror, right].view(-1, 1, width)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, index.view(-1))
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _shift_tables(count: int, height: int, width: int, padding: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return (rows, columns, numbers) for a batch of `count` images whose pixels lie one after the other.

    `rows[number, down]` are the places where the rows of an image begin once it is shifted; `columns[mirror, right]`
    is added to them, for the pixels of a row.
    """
    reach = 2 * padding + 1
    codes = torch.arange(2 * reach)
    shift = (codes % reach - padding)[:, None]
    x, numbers = torch.arange(width), torch.arange(count)
    row = _reflect(torch.arange(height) + shift, height)
    column = torch.stack([_reflect(x + shift, width), _reflect(width - 1 - x + shift, width)])
    rows = (row + height * numbers[:, None, None]) * width
    # Narrow indices: making and reading them is a large part of the work.
    return _on(device, rows.int(), column[codes % 2].int(), numbers)


@lru_cache(maxsize=8)
def _square_tables(count: int, height: int, width: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return (rows, columns, numbers) as `_shift_tables`, for squares around a centre; and the sides of the image."""
    span = torch.arange(size) - size // 2
    # The centre is inside. So a square that reaches over the border contains the border itself, and what
    # lies outside can be moved there.
    row = (torch.arange(height)[:, None] + span).clamp(0, height - 1)
    column = (torch.arange(width)[:, None] + span).clamp(0, width - 1)
    numbers = torch.arange(count)
    rows = (row + height * numbers[:, None, None]) * width
    sides = torch.tensor([height, width]).view(2, 1, 1)
    return _on(device, rows, column, numbers, sides)


@lru_cache(maxsize=8)
def _pixel_tables(height: int, width: int, channels: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the place of each row in its column, and of each value in its row; the sides, and their halves."""
    positions = torch.full((2, max(height, width * channels)), -1)
    positions[0, :height] = torch.arange(height)
    positions[1, : width * channels] = torch.arange(width * channels) // channels
    sides = torch.tensor([[height], [width]])
    return _on(device, positions, sides, sides / 2)


@lru_cache(maxsize=8)
def _coin_table(count: int, seed: int, device: torch.device) -> Int64[Tensor, "2 n"]:
    """Return the coins of the first `count` samples, for even epochs and for odd ones."""
    even = coins(torch.arange(count), seed)
    return _on(device, torch.stack([even, ~even]).long())[0]


@lru_cache(maxsize=8)
def _eye(num_classes: int, device: torch.device) -> Float[Tensor, "num_classes num_classes"]:
    return torch.eye(num_classes, device=device)


@lru_cache(maxsize=8)
def _concentration(alpha: float, device: torch.device) -> Float[Tensor, "2"]:
    return torch.full((2,), alpha, device=device)


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


def _on(device: torch.device, *tables: Tensor) -> tuple[Tensor, ...]:
    """Bring tables to a device, without waiting for what it is busy with."""
    return tuple(table.to(device, non_blocking=True) for table in tables)


def _check_padding(name: str, padding: int, images: Images) -> None:
    height, width = images.shape[2:]
    fits = padding < min(height, width)
    _check(f"{name}.padding", padding, fits, f"below the side of the {height}×{width} images")


def _draw_codes(kinds: int, padding: int, images: Images, generator: Generator) -> list[Int64[Tensor, "batch"]]:
    """Draw codes for `shift_and_mirror`, of each image for so many kinds of them.

    One draw serves coins and shifts: below 2·(2·padding + 1), the product of two numbers without a common factor, what
    a random number leaves over by one and by the other are independent.
    """
    if not kinds:
        return []
    size = (kinds, len(images))
    return [*torch.randint(2 * (2 * padding + 1), size, generator=generator, device=images.device)]


def _reflect(position: Tensor, size: int) -> Tensor:
    """Move positions outside of an image back inside; the outermost pixel is the mirror."""
    return size - 1 - (size - 1 - position.abs()).abs()


def _rows(images: Images) -> Tensor:
    """View images as rows of neighbouring channels, their own order in memory."""
    return images.permute(0, 2, 3, 1).flatten(2)


def _from_rows(rows: Tensor, channels: int) -> Images:
    """Undo `_rows`."""
    return rows.unflatten(2, (-1, channels)).permute(0, 3, 1, 2)


def _as_float(images: Images) -> Float[Tensor, "batch channel height width"]:
    return images if images.is_floating_point() else images / 255


def _beta(alpha: float, generator: Generator, device: torch.device) -> Float[Tensor, ""]:
    """Draw from Beta(alpha, alpha): the first share of a Dirichlet distribution, which takes a generator."""
    return torch._sample_dirichlet(_concentration(alpha, device), generator)[0]


def _blend(
    targets: Tensor, partner: Int64[Tensor, "batch"], share: Float[Tensor, ""], num_classes: int
) -> Float[Tensor, "batch num_classes"]:
    """Mix the targets with their partners'; soft ones may be mixed again."""
    if not targets.is_floating_point():
        targets = _eye(num_classes, targets.device).index_select(0, targets)
    return torch.lerp(targets.index_select(0, partner), targets, share)


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"augment.{name} must be {rule}, got {value}.")
