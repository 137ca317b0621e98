"""A folder of pictures, one folder for each class, packed into an npz file."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from cnnlab.data import archive
from cnnlab.errors import ConfigError, DataError, MachineError

_log = logging.getLogger(__name__)

Fit = Literal["crop", "pad", "stretch"]

# Named, since Pillow would also hand a disguised EPS file to Ghostscript, which runs programs.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (
    *(".bmp", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".mpo"),
    *(".png", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".webp"),
)
# Pillow's own limit, at which it only warns: 256 MiB once decoded to RGB.
MAX_PIXELS = 2**28 // 3


@dataclass(frozen=True)
class Packed:
    """What became of a folder: counts of the pictures written, and those left out with the reason."""

    path: Path
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    unreadable: tuple[tuple[Path, str], ...]


class _Picture(NamedTuple):
    path: Path
    label: int


def pack(
    folder: Path | str,
    output: Path | str,
    size: int = 32,
    fit: Fit = "crop",
    test_fraction: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Packed:
    """Write the pictures of a folder as an npz file of square RGB images.

    The folder holds either a folder for each class, or `train` and `test` with a folder for each class in
    both. Without `train` and `test`, a share of each class becomes the test set. Both sets are shuffled.
    Class names are the folders' names, sorted. Hidden files, and files whose endings are no picture's, are
    passed over.

    Args:
        folder: Where the pictures are.
        output: The npz file to write.
        size: Side of the images in pixels.
        fit: How a picture becomes square, see `decode`.
        test_fraction: Share of each class that becomes the test set, at least one picture of any two.
        seed: Decides the split and the order.
        overwrite: Replace an existing `output`; it stays as it is until the new one is complete.
        progress: Show a progress bar, if standard error is a terminal.

    Returns:
        Counts, and the pictures that could not be read; those are left out of the file.

    Raises:
        ConfigError: A value is out of range, or `output` exists.
        DataError: There are no classes, or one without pictures for training.
        MachineError: The images do not fit into memory, or the file cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if size < 1:
        raise ConfigError(f"--size must be at least 1 pixel, got {size}.")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"--test-fraction must be between 0 and 1, got {test_fraction}.")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists. Choose another name, or pass --overwrite to replace it.")
    classes, train, test = _listed(folder, test_fraction, np.random.default_rng(seed))
    _check_writable(output)
    try:
        images = np.empty((len(train) + len(test), size, size, 3), np.uint8)
    except MemoryError as error:
        raise MachineError(
            f"{len(train) + len(test):,} images of --size {size} do not fit into memory; use a smaller one."
        ) from error
    reasons = _decode_all([*train, *test], images, fit, progress)
    unreadable = tuple(
        (picture.path, reason) for picture, reason in zip([*train, *test], reasons, strict=True) if reason is not None
    )
    train_images, train_targets = _readable(images[: len(train)], train, reasons[: len(train)])
    test_images, test_targets = _readable(images[len(train) :], test, reasons[len(train) :])
    for split, targets in (("training", train_targets), ("test", test_targets)):
        if not len(targets):
            first = f"; the first: {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
            raise DataError(f"{folder}: no {split} picture could be read{first}.")
    archive.write(output, train_images, train_targets, test_images, test_targets, classes, overwrite)
    return Packed(output, classes, len(train_targets), len(test_targets), unreadable)


def _listed(
    folder: Path, test_fraction: float, random: np.random.Generator
) -> tuple[tuple[str, ...], list[_Picture], list[_Picture]]:
    """Return class names, training pictures and test pictures, shuffled."""
    if not folder.is_dir():
        raise DataError(f"{folder} must be a folder with a folder of pictures for each class; there is none.")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        if ignored := [name for name in _folders(folder) if name not in ("train", "test")]:
            _log.warning("%s: only train and test are packed, not %s", folder, ", ".join(ignored))
        classes = _folders(folder / "train")
        if only_test := [name for name in _folders(folder / "test") if name not in classes]:
            raise DataError(
                f"{folder / 'test'} has classes that {folder / 'train'} lacks: {', '.join(only_test)}. "
                "Every class needs training pictures."
            )
        train = [picture for label, name in enumerate(classes) for picture in _pictures(folder / "train" / name, label)]
        test = [
            picture
            for label, name in enumerate(classes)
            if (folder / "test" / name).is_dir()
            for picture in _pictures(folder / "test" / name, label)
        ]
    else:
        classes = _folders(folder)
        train, test = [], []
        for label, name in enumerate(classes):
            members = _shuffled(_pictures(folder / name, label), random)
            # Of two pictures or more, each set gets at least one.
            held_out = min(max(1, round(test_fraction * len(members))), len(members) - 1)
            test += members[:held_out]
            train += members[held_out:]
    if not classes:
        raise DataError(f"{folder} must hold a folder of pictures for each class; it holds no folder.")
    if not test:
        raise DataError(f"{folder}: no class has a picture for the test set; at least one class needs two pictures.")
    # Shuffled, so that the first ten images show more than the first class.
    return tuple(classes), _shuffled(train, random), _shuffled(test, random)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path, label: int) -> list[_Picture]:
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise DataError(
            f"{folder} must hold the pictures of its class directly; it has no file with a picture's ending "
            f"({', '.join(EXTENSIONS)}). Prepared splits need both train and test."
        )
    return [_Picture(path, label) for path in paths]


def _shuffled(pictures: Sequence[_Picture], random: np.random.Generator) -> list[_Picture]:
    return [pictures[index] for index in random.permutation(len(pictures))]


def _check_writable(output: Path) -> None:
    """Find out now, not after an hour of decoding, that the file cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{output.parent} could not be made: {error.strerror or error}.") from error
    if not os.access(output.parent, os.W_OK):
        raise MachineError(f"{output.parent} may not be written; choose another folder.")


class Decoded(NamedTuple):
    """A picture as an RGB image of the size that was asked for, and what it was: (height, width), frames."""

    image: UInt8[np.ndarray, "height width 3"]
    size: tuple[int, int]
    frames: int


def decode(path: Path, size: tuple[int, int], fit: Fit = "crop") -> UInt8[np.ndarray, "height width 3"]:
    """Decode one picture to an RGB image of a given size.

    Any size and mode: the picture is turned as its EXIF data says, transparency is laid on white, 16 bits
    become 8, an animation gives its first frame.

    Args:
        path: The picture.
        size: Height and width of the result.
        fit: `crop` scales the picture to cover the size and cuts off what stands out, the same on both sides;
            `pad` scales it to fit inside and fills up with black; `stretch` changes its proportions.

    Raises:
        Exception: Whatever Pillow finds wrong with the file.
    """
    return decoded(path, size, fit).image


def decoded(path: Path, size: tuple[int, int], fit: Fit = "crop") -> Decoded:
    """Decode one picture as `decode` does, and say what it was."""
    height, width = size
    with Image.open(path, formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
        before = picture.size
        # JPEG decodes at a fraction of its size several times faster; twice the target leaves a clean resize.
        picture.draft(None, (2 * width, 2 * height))
        picture.load()
        drafted = picture.size
        with contextlib.suppress(Exception):  # broken EXIF data turns nothing
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.size == drafted[::-1]:
            before = before[::-1]
        upright = _rgb(picture)
        frames = 1
        with contextlib.suppress(Exception):  # a later frame may be broken: the first is there
            frames = getattr(picture, "n_frames", 1)
    return Decoded(fitted(upright, size, fit), before[::-1], frames)


def fitted(picture: Image.Image, size: tuple[int, int], fit: Fit = "crop") -> UInt8[np.ndarray, "height width 3"]:
    """Bring an RGB picture to a size (height, width), as `decode` says."""
    height, width = size
    if fit == "stretch":
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    fitting = ImageOps.fit if fit == "crop" else ImageOps.pad
    return np.asarray(fitting(picture, (width, height), Image.Resampling.BICUBIC))


def _decode_all(
    pictures: Sequence[_Picture], images: UInt8[np.ndarray, "n size size 3"], fit: Fit, progress: bool
) -> list[str | None]:
    """Decode pictures straight into `images`; return for each why it could not be read, or None."""
    from rich.console import Console
    from rich.progress import Progress

    def fill(index: int) -> str | None:
        try:
            images[index] = decode(pictures[index].path, images.shape[1:3], fit)
        except Exception as error:  # decoders of broken files raise whatever they come across
            return " ".join(f"{type(error).__name__}: {error}".split())
        return None

    bar = Progress(console=Console(stderr=True), disable=not (progress and sys.stderr.isatty()))
    # Threads: Pillow decodes without Python's lock, and the images need no way back from another process.
    with warnings.catch_warnings(action="ignore"), ThreadPool() as pool, bar:  # of odd metadata
        reasons = pool.imap(fill, range(len(pictures)), chunksize=8)
        return list(bar.track(reasons, len(pictures), description="Packing"))


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB."""
    if picture.mode.startswith("I"):
        # 16 bits, by themselves or in a 32-bit integer; Pillow's own conversion would clip at 255.
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"its pixels must be in 0 to 65535, got {deep.min()} to {deep.max()}")
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _readable(
    images: UInt8[np.ndarray, "n size size 3"], pictures: Sequence[_Picture], reasons: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Close the gaps of unreadable pictures, in place; return images and targets."""
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    for place, index in enumerate(kept):
        if place != index:
            images[place] = images[index]
    return images[: len(kept)], np.array([pictures[index].label for index in kept], dtype=np.int64)
