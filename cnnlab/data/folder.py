"""A folder of pictures, one folder for each class, packed into an npz file."""

import contextlib
import hashlib
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from cnnlab.data import archive, npz, pictures
from cnnlab.data.pictures import Fit
from cnnlab.errors import ConfigError, DataError, MachineError

_log = logging.getLogger(__name__)

SIZES = (16, 24, 28, 32, 48, 64)
"""Sides that are proposed: larger ones cost a small network more time than they bring."""
MOST_FILES = 1_000_000
"""That are looked at to find out whether a folder was packed before."""
_SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# What archivers and cameras leave beside the pictures.
_IGNORED = ("__MACOSX",)


@dataclass(frozen=True)
class Packed:
    """What became of a folder: counts of the pictures written, and those left out with the reason.

    Attributes:
        path: The npz file.
        classes: Their names.
        size: Side of the images in pixels.
        num_train: Training images.
        num_val: Validation images; 0 where the folder has no set of them.
        num_test: Test images.
        unreadable: Pictures that could not be decoded, and why.
        num_others: Files below the classes that are no pictures.
        notes: What else a person should know.
    """

    path: Path
    classes: tuple[str, ...]
    size: int
    num_train: int
    num_val: int
    num_test: int
    unreadable: tuple[tuple[Path, str], ...]
    num_others: int = 0
    notes: tuple[str, ...] = ()


class _Picture(NamedTuple):
    path: Path
    label: int


@dataclass
class _Listing:
    """The pictures of a folder by split, and what else was met."""

    classes: tuple[str, ...] = ()
    splits: dict[str, list[_Picture]] = field(default_factory=dict)
    num_others: int = 0
    notes: list[str] = field(default_factory=list)


def pack(
    folder: Path | str,
    output: Path | str,
    size: int | None = None,
    fit: Fit = "crop",
    test_fraction: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
) -> Packed:
    """Write the pictures of a folder as an npz file of square RGB images.

    The folder holds either a folder for each class, or `train` and `test` (and `val`) with a folder for each class in
    each. Without `test`, a share of each class becomes the test set. The sets are shuffled. Class names are the
    folders' names, sorted. A class' folder is searched with all folders below it; files that are no pictures, by
    ending and by content, are counted. The images are never all in memory.

    Args:
        folder: Where the pictures are.
        output: The npz file to write.
        size: Side of the images in pixels; chosen by `propose_size` by default.
        fit: How a picture becomes square, see `pictures.decode`.
        test_fraction: Share of each class that becomes the test set, at least one picture of any two.
        seed: Decides the split and the order.
        overwrite: Replace an existing `output`; it stays as it is until the new one is complete.

    Returns:
        Counts, and the pictures that could not be read; those are left out of the file.

    Raises:
        ConfigError: A value is out of range, or `output` exists.
        DataError: There are no two classes, or one without pictures for training.
        MachineError: The file cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if size is not None and size < 1:
        raise ConfigError(f"--size must be at least 1 pixel, got {size}.")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"--test-fraction must be between 0 and 1, got {test_fraction}.")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists. Choose another name, or pass --overwrite to replace it.")
    listing = _listed(folder, test_fraction, np.random.default_rng(seed))
    _check_writable(output)
    size = size or propose_size([picture.path for picture in listing.splits["train"]])
    images: dict[str, _Images] = {}
    labels: dict[str, np.ndarray] = {}
    reasons: dict[Path, str] = {}
    with contextlib.ExitStack() as stack:
        try:
            for split in listing.splits:
                images[split] = _Images(output.parent, size, fit)
                stack.enter_context(images[split].rows.file)
            with _progress(sum(map(len, listing.splits.values()))) as bar:
                for split, listed in listing.splits.items():
                    labels[split] = images[split].decode(listed, reasons, bar)
            listing.notes += _brighten(list(images.values()))
        except OSError as error:
            raise MachineError(f"{output} could not be written: {error.strerror or error}.") from error
        for split in images:
            if not len(labels[split]):
                first = next(iter(reasons.items()), None)
                raise DataError(
                    f"{folder}: no {'training' if split == 'train' else split} picture could be read"
                    + (f"; the first: {first[0]}: {first[1]}." if first else ".")
                )
        archive.write(
            output, images["train"].rows, labels["train"], images["test"].rows, labels["test"], listing.classes,
            overwrite, val_images=images["val"].rows if "val" in images else None, val_targets=labels.get("val"),
        )  # fmt: skip
    return Packed(
        output, listing.classes, size, len(labels["train"]), len(labels.get("val", ())), len(labels["test"]),
        tuple(reasons.items()), listing.num_others, tuple(listing.notes),
    )  # fmt: skip


def cache_of(folder: Path, size: int | None, fit: Fit) -> Path:
    """Return the file that `cached` packs a folder into: its name ends in a digest.

    That is of the settings, and of the pictures' names, sizes and times of change.
    """
    digest = hashlib.blake2b(repr((1, size, fit)).encode(), digest_size=6)
    files = list(itertools.islice(_files(folder), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise DataError(f"{folder} holds more than {MOST_FILES:,} files; pack it with `cnnlab data pack`.")
    for path in sorted(files):
        status = path.stat() if path.exists() else path.lstat()
        digest.update(repr((path.relative_to(folder), status.st_size, status.st_mtime_ns)).encode())
    folder = folder.absolute()
    return folder.parent / f"{folder.name}-{digest.hexdigest()}.npz"


def cached(folder: Path, size: int | None = None, fit: Fit = "crop") -> Path:
    """Pack a folder into a file beside it, unless that was done for the same pictures and settings.

    Raises:
        CnnlabError: As `pack` does.
    """
    output = cache_of(folder, size, fit)
    if output.exists():
        return output
    packed = pack(folder, output, size, fit, overwrite=True)
    _log.info("%s was packed into %s; images are %s × %s", folder, output, packed.size, packed.size)
    for note in packed.notes:
        _log.warning("%s: %s", folder, note)
    for path, reason in packed.unreadable[:10]:
        _log.warning("left out %s: %s", path, reason)
    if len(packed.unreadable) > 10:
        _log.warning("left out %d more pictures that could not be read", len(packed.unreadable) - 10)
    return output


def propose_size(paths: Sequence[Path]) -> int:
    """Return the largest of `SIZES` that half of the pictures cover without being enlarged; the smallest if none is."""
    chosen = np.random.default_rng(0).permutation(len(paths))[:200]
    sides = [min(size) for index in chosen if (size := pictures.size_of(paths[index]))]
    middle = float(np.median(sides)) if sides else SIZES[-1]
    return max([side for side in SIZES if side <= middle], default=SIZES[0])


def _listed(folder: Path, test_fraction: float, random: np.random.Generator) -> _Listing:
    """List training, validation and test pictures, shuffled."""
    if not folder.is_dir():
        raise DataError(f"{folder} must be a folder with a folder of pictures for each class; there is none.")
    listing = _Listing()
    roots = {
        split: folder / name for split, names in _SPLIT_NAMES.items() for name in names if (folder / name).is_dir()
    }
    if "train" in roots and len(roots) > 1:
        _list_prepared(folder, roots, listing)
    else:
        listing.classes = _classes(folder, listing)
        listing.splits["train"] = _of_classes(folder, listing.classes, listing)
    if "test" not in listing.splits:
        train, test = [], []
        for label in range(len(listing.classes)):
            members = _shuffled([picture for picture in listing.splits["train"] if picture.label == label], random)
            # Of two pictures or more, each set gets at least one.
            held_out = min(max(1, round(test_fraction * len(members))), len(members) - 1)
            test += members[:held_out]
            train += members[held_out:]
        listing.splits |= {"train": train, "test": test}
    if not listing.splits["test"]:
        raise DataError(f"{folder}: no class has a picture for the test set; at least one class needs two pictures.")
    # Shuffled, so that the first ten images show more than the first class.
    listing.splits = {split: _shuffled(listed, random) for split, listed in listing.splits.items()}
    return listing


def _list_prepared(folder: Path, roots: Mapping[str, Path], listing: _Listing) -> None:
    """List a folder that holds `train` and other sets."""
    if ignored := [name for name in _folders(folder) if folder / name not in roots.values()]:
        listing.notes.append(f"{', '.join(ignored)} stand beside {roots['train'].name} and are left out")
    listing.classes = _classes(roots["train"], listing)
    listing.splits["train"] = _of_classes(roots["train"], listing.classes, listing)
    for split in ("val", "test"):
        if split not in roots:
            continue
        names = _folders(roots[split])
        count = 0 if names else sum(map(pictures.is_picture, roots[split].iterdir()))
        if count:
            listing.notes.append(
                f"the {count} pictures of {roots[split]} have no classes and are left out; `cnnlab predict` is for them"
            )
            continue
        if unknown := [name for name in names if name not in listing.classes]:
            raise DataError(
                f"{roots[split]} has classes that {roots['train']} lacks: {', '.join(unknown)}. "
                "Every class needs training pictures."
            )
        listing.splits[split] = _of_classes(roots[split], listing.classes, listing, required=False)


def _classes(folder: Path, listing: _Listing) -> tuple[str, ...]:
    names = tuple(_folders(folder))
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(
                f"{folder}: the folder {os.fsencode(name)!r} has a name that is not UTF-8; rename it, it names a class."
            )
    if len(names) < 2:
        tables = sorted(path.name for path in folder.glob("*.csv"))
        raise DataError(
            f"{folder} must hold a folder of pictures for each class, two at least; it holds "
            f"{f'only {names[0]}' if names else 'no folder'}."
            + (f" If {tables[0]} says the classes, sort the pictures into folders by it." if tables else "")
        )
    beside = [path for path in folder.iterdir() if not path.is_dir()]
    listing.num_others += len(beside)
    if count := sum(map(pictures.is_picture, beside)):
        listing.notes.append(f"{count} pictures stand in {folder} itself, in no class' folder, and are left out")
    return names


def _of_classes(folder: Path, classes: Sequence[str], listing: _Listing, required: bool = True) -> list[_Picture]:
    """List the pictures of each class below `folder`; each class must have some if it is `required`."""
    listed = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        paths = sorted(_files(folder / name))
        with ThreadPool() as pool:
            flags = pool.map(lambda path: pictures.is_picture(path) and not _is_hidden(path.relative_to(folder)), paths)
        members = [_Picture(path, label) for path, flag in zip(paths, flags, strict=True) if flag]
        listing.num_others += len(paths) - len(members)
        if required and not members:
            raise DataError(
                f"{folder / name} must hold the pictures of its class, in any of the formats "
                f"{', '.join(pictures.FORMATS)}; it holds {len(paths)} files, none of which is one."
            )
        listed += members
    return listed


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(Path(path.name)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in _IGNORED for part in path.parts)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; a linked folder is followed once."""
    visited = set()
    for root, names, files in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in visited:
            names.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        yield from (Path(root) / name for name in files)


def _shuffled(listed: Sequence[_Picture], random: np.random.Generator) -> list[_Picture]:
    return [listed[index] for index in random.permutation(len(listed))]


def _check_writable(output: Path) -> None:
    """Find out now, not after an hour of decoding, that the file cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{output.parent} could not be made: {error.strerror or error}.") from error
    if not os.access(output.parent, os.W_OK):
        raise MachineError(f"{output.parent} may not be written; choose another folder.")


class _Images:
    """The decoded images of a split, on the disk until they are written together."""

    def __init__(self, folder: Path, size: int, fit: Fit) -> None:
        self.rows = npz.Spooled(folder, (size, size, 3), np.dtype(np.uint8))
        self.size = (size, size)
        self.fit = fit
        self.deep: dict[int, Path] = {}
        """Pictures of 16 bits, by row."""
        self.highest = 0

    def decode(self, listed: Sequence[_Picture], reasons: dict[Path, str], bar: Any) -> Int64[np.ndarray, "n"]:
        """Decode pictures; return the labels of those that can be read, and add to `reasons` why others can't."""

        def read(picture: _Picture) -> pictures.Decoded | str:
            try:
                return pictures.decode(picture.path, self.size, self.fit)
            except Exception as error:  # decoders of broken files raise whatever they come across
                return " ".join(f"{type(error).__name__}: {error}".split())

        labels: list[int] = []
        # Threads: Pillow decodes without Python's lock, and the images need no way back from another process.
        with warnings.catch_warnings(action="ignore"), ThreadPool() as pool:  # of odd metadata
            for picture, result in zip(listed, pool.imap(read, listed, chunksize=8), strict=True):
                bar.advance(bar.task_ids[0])
                if isinstance(result, str):
                    reasons[picture.path] = result
                    continue
                if result.highest is not None:
                    self.deep[len(labels)] = picture.path
                    self.highest = max(self.highest, result.highest)
                self.rows.append(result.image[None])
                labels.append(picture.label)
        return np.array(labels, np.int64)


def _brighten(parts: Sequence[_Images]) -> list[str]:
    """Decode pictures of 16 bits again where the set uses fewer: cameras give 10 to 14. Return what was done."""
    if not any(part.deep for part in parts):
        return []
    highest = max(part.highest for part in parts)
    white = 2 ** max(8, highest.bit_length()) - 1
    if white == pictures.WHITE:
        return []
    with warnings.catch_warnings(action="ignore"):
        for part in parts:
            for row, path in part.deep.items():
                part.rows.replace(row, pictures.decode(path, part.size, part.fit, white).image)
    return [f"the pictures of 16 bits reach {highest} at most: {white} became white"]


def _progress(total: int) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    bar = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    bar.add_task("Packing", total=total)
    return bar
