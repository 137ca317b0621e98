"""Images and labels in one npz file: checked before memory is taken, read once, written in one step."""

import logging
import math
import threading
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from cnnlab.data import npz
from cnnlab.errors import ConfigError, DataError

KEYS: Mapping[str, str] = MappingProxyType(
    {
        "train_images": "X_train",
        "train_targets": "y_train",
        "test_images": "X_test",
        "test_targets": "y_test",
    }
)
"""Names of the four arrays inside the npz, unless the config gives others."""

CLASSES = "classes"
"""Name of the optional array of class names."""

_log = logging.getLogger(__name__)

_reads: dict[Hashable, "Future[Archive]"] = {}

# Without names the highest label decides the number of classes; a stray one must not make millions.
_MAX_UNNAMED_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Archive:
    """A data set in memory: images as uint8 in NHWC, targets as int64 class numbers."""

    path: Path
    train_images: UInt8[np.ndarray, "train height width channel"]
    train_targets: Int64[np.ndarray, "train"]
    test_images: UInt8[np.ndarray, "test height width channel"]
    test_targets: Int64[np.ndarray, "test"]
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Count the classes, those without a picture included."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (height, width, channels)."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels


def read(path: Path | str, keys: Mapping[str, str] = KEYS, classes: Sequence[str] | None = None) -> Archive:
    """Read and check a whole npz file.

    Sizes and types are checked from the zip directory and the npy headers alone, before memory is taken; the
    zip's checksums are checked while the pixels are read straight into their final arrays.

    Args:
        path: The npz file.
        keys: Names of the arrays in the file, for those of `KEYS` that differ.
        classes: Class names in label order. Default: the file's `classes` array, else "0", "1", ....

    Returns:
        The data set; its arrays are contiguous and writable. A class without training images is logged as a
        warning.

    Raises:
        DataError: The file is missing, damaged, or breaks a rule of the layout.
        UnsafeError: It holds pickled objects, or claims more memory than it can need.
        MachineError: It may not be read, or does not fit into memory.
        ConfigError: `keys` names an array that a data set does not have.
    """
    future = _reads.pop(_request(path, keys, classes), None)
    _reads.clear()  # what nobody asked for need not stay in memory
    return future.result() if future else _read(Path(path), keys, classes)


def read_ahead(path: Path | str, keys: Mapping[str, str] = KEYS, classes: Sequence[str] | None = None) -> None:
    """Begin to read a file in the background; the next `read` of it, asked in the same way, gets its result.

    For whoever has something else to do first, such as importing torch. A file that is missing, or that was replaced
    in between, is left to that `read`.
    """
    request = _request(path, keys, classes)
    if request is None or not Path(path).is_file():
        return
    future: Future[Archive] = Future()

    def work() -> None:
        try:
            future.set_result(_read(Path(path), keys, classes))
        except BaseException as error:  # raised where it is asked for
            future.set_exception(error)

    _reads[request] = future
    threading.Thread(target=work, name="read ahead", daemon=True).start()  # a run that is stopped does not wait for it


def pieces(path: Path | str, name: str, count: int) -> Iterator[UInt8[np.ndarray, "n height width channel"]]:
    """Yield the images of one array in an npz file, up to `count` at a time: no more than that is in memory.

    Raises:
        DataError, UnsafeError, MachineError: As `read` does; also when the file lacks the array.
    """
    path = Path(path)
    with npz.opened(path) as file:
        present = [entry.removesuffix(".npy") for entry in file.namelist()]
        if name not in present:
            raise DataError(f"{path} lacks {name}; it holds {', '.join(present) or 'nothing'}.")
        member = npz.Member(file, name)
        member.check_size(path)
        _check_images(f"{path}: {name}", member.layout)
        total, *shape = member.layout.shape
        if member.fortran_order:
            array = member.load()
            yield from (array[start : start + count] for start in range(0, total, count))
            return
        with file.open(member.info) as stream:
            stream.read(member.offset)
            for start in range(0, total, count):
                size = min(count, total - start) * math.prod(shape)
                content = stream.read(size)
                if len(content) < size:
                    raise zipfile.BadZipFile(f"{name} ends early")
                yield np.frombuffer(content, np.uint8).reshape(-1, *shape)


def write(
    path: Path | str,
    train_images: UInt8[np.ndarray, "train height width channel"],
    train_targets: Integer[np.ndarray, "train"],
    test_images: UInt8[np.ndarray, "test height width channel"],
    test_targets: Integer[np.ndarray, "test"],
    classes: Sequence[str] | None = None,
    overwrite: bool = True,
) -> None:
    """Write an npz file that `read` accepts, in one atomic step.

    Uncompressed: pixels of photographs shrink by 7 %, and every start of every run would pay for inflating
    them (CIFAR-10: 1.4 to 1.5 s against 0.1 to 0.2 s of processor time, three runs on an x86 machine with two
    cores). The zip's checksums guard the content.

    Raises:
        ConfigError: The file exists, and `overwrite` is false; it stays as it was.
        DataError: The arrays break a rule of the layout. Nothing is written.
        MachineError: The disk is full, or the folder may not be written. An earlier file stays as it was.
    """
    path = Path(path)
    arrays = {
        "train_images": train_images,
        "train_targets": train_targets,
        "test_images": test_images,
        "test_targets": test_targets,
    }
    _check_layouts(path, KEYS, {role: npz.Layout(array.dtype, array.shape) for role, array in arrays.items()})
    _check_targets(path, (KEYS["train_targets"], KEYS["test_targets"]), (train_targets, test_targets), classes)
    content = {KEYS[role]: array for role, array in arrays.items()}
    if classes is not None:
        content[CLASSES] = np.array(classes, dtype=np.str_)
    with npz.replacing(path, overwrite) as file:
        np.savez(file, **content)  # type: ignore[arg-type]  # numpy's stub takes the keywords for allow_pickle


def channel_statistics(
    images: UInt8[np.ndarray, "n height width channel"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation of each channel, on the scale 0 to 1.

    The sums are exact: up to 256 squares of bytes stay below 2**24, where float32 still counts every integer.
    No matrix product, although it is a sum too: on a busy machine its threads wait for each other, 10 times
    as long as the sum takes.
    """
    channels = images.shape[-1]
    flat = images.reshape(len(images), -1)
    total, total_of_squares = np.zeros(channels), np.zeros(channels)
    columns = 4096 * channels  # bounds the float copy to 4 MiB a channel, whatever the image size
    for row in range(0, len(flat), 256):
        for column in range(0, flat.shape[1], columns):
            block = flat[row : row + 256, column : column + columns].astype(np.float32)
            squares = np.einsum("ij,ij->j", block, block)
            total += block.sum(axis=0).reshape(-1, channels).sum(axis=0, dtype=np.float64)
            total_of_squares += squares.reshape(-1, channels).sum(axis=0, dtype=np.float64)
    count = flat.size // channels
    mean = tuple(int(sum_) / count / 255 for sum_ in total)
    # In integers, since the difference of two large floats would lose the digits that matter.
    std = tuple(
        math.sqrt(count * int(sum_of_squares) - int(sum_) ** 2) / count / 255
        for sum_, sum_of_squares in zip(total, total_of_squares, strict=True)
    )
    return mean, std


def _request(path: Path | str, keys: Mapping[str, str], classes: Sequence[str] | None) -> Hashable:
    """Return what tells one `read` from another: the file as it stands there now, and the arguments."""
    try:
        file = Path(path).stat()
    except (OSError, ValueError):
        return None
    names = repr(({**KEYS, **keys}, None if classes is None else list(classes)))
    return Path(path).absolute(), file.st_ino, file.st_size, file.st_mtime_ns, names


def _read(path: Path, keys: Mapping[str, str], classes: Sequence[str] | None) -> Archive:
    if unknown := sorted(set(keys) - set(KEYS)):
        raise ConfigError(f"data.keys may hold {', '.join(KEYS)}; got {', '.join(unknown)}.")
    keys = {**KEYS, **keys}
    with npz.opened(path) as file:
        present = [name.removesuffix(".npy") for name in file.namelist()]
        if missing := [key for key in keys.values() if key not in present]:
            raise DataError(
                f"{path} lacks {', '.join(missing)}; it holds {', '.join(present) or 'nothing'}. "
                "Name its arrays with data.keys."
            )
        names = [*keys.values(), *([CLASSES] if classes is None and CLASSES in present else [])]
        members = {key: npz.Member(file, key) for key in names}
        for member in members.values():
            member.check_size(path)
        _check_layouts(path, keys, {role: members[key].layout for role, key in keys.items()})
        if CLASSES in members:
            classes = _names_in(path, members[CLASSES])
        train_targets, test_targets, classes = _check_targets(
            path,
            (keys["train_targets"], keys["test_targets"]),
            (members[keys["train_targets"]].load(), members[keys["test_targets"]].load()),
            classes,
        )
        return Archive(
            path=path,
            train_images=np.ascontiguousarray(members[keys["train_images"]].load()),
            train_targets=train_targets,
            test_images=np.ascontiguousarray(members[keys["test_images"]].load()),
            test_targets=test_targets,
            classes=classes,
        )


def _check_layouts(path: Path, keys: Mapping[str, str], layouts: Mapping[str, npz.Layout]) -> None:
    """Check types and shapes of the four arrays against the rules and each other."""
    for split in ("train", "test"):
        images, targets = layouts[f"{split}_images"], layouts[f"{split}_targets"]
        images_key, targets_key = keys[f"{split}_images"], keys[f"{split}_targets"]
        _check_images(f"{path}: {images_key}", images)
        _check_labels(f"{path}: {targets_key}", targets)
        if images.shape[0] != targets.shape[0]:
            raise DataError(
                f"{path}: {images_key} and {targets_key} must be equally long, "
                f"got {images.shape[0]} images and {targets.shape[0]} labels."
            )
    train, test = layouts["train_images"].shape[1:], layouts["test_images"].shape[1:]
    if train != test:
        raise DataError(
            f"{path}: {keys['test_images']} must hold images shaped like {keys['train_images']}, {train}, got {test}."
        )


def _check_images(where: str, layout: npz.Layout) -> None:
    dtype, shape = layout
    if dtype == np.uint8 and len(shape) == 4 and shape[3] in (1, 3) and min(shape) > 0:
        return
    remedies = []
    if dtype.kind == "f":
        remedies.append("scale to 0-255 and cast: (255 * X).round().astype('uint8') for values in 0-1")
    elif dtype != np.uint8:
        remedies.append("cast with X.astype('uint8') if all values are in 0-255")
    if len(shape) == 3:
        remedies.append("add the channel axis with X[..., None]")
    elif len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        remedies.append("this looks like NCHW: X.transpose(0, 2, 3, 1)")
    elif len(shape) == 4 and shape[3] == 4:
        remedies.append("drop the alpha channel with X[..., :3]")
    if 0 in shape:
        remedies.append("it holds no pixels")
    raise DataError(
        f"{where} must hold uint8 images shaped (N, height, width, 1 or 3), got {layout}"
        + (f"; {'; '.join(remedies)}." if remedies else ".")
    )


def _check_labels(where: str, layout: npz.Layout) -> None:
    dtype, shape = layout
    if dtype.kind in "iu" and shape and shape[0] > 0 and shape[1:] in ((), (1,)):
        return
    remedies = []
    if len(shape) == 2 and shape[1] > 1:
        remedies.append("this looks one-hot: y.argmax(axis=1)")
    elif dtype.kind not in "iu":
        remedies.append("labels are class numbers: y.astype('int64') if they are whole")
    if 0 in shape:
        remedies.append("it holds no labels")
    raise DataError(
        f"{where} must hold integer labels shaped (N,) or (N, 1), got {layout}"
        + (f"; {'; '.join(remedies)}." if remedies else ".")
    )


def _check_targets(
    path: Path,
    names: tuple[str, str],
    labels: tuple[Integer[np.ndarray, "..."], Integer[np.ndarray, "..."]],
    classes: Sequence[str] | None,
) -> tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"], tuple[str, ...]]:
    """Check the label values of both splits; return them as int64 with the class names."""
    if classes is None:
        highest = max(int(part.max()) for part in labels)
        limit = max(_MAX_UNNAMED_CLASSES, sum(len(part) for part in labels))
        classes = tuple(str(number) for number in range(min(max(highest, 0) + 1, limit)))
    classes = tuple(classes)
    if len(set(classes)) != len(classes) or "" in classes:
        raise DataError(f"{path}: class names must be unique and not empty, got {', '.join(classes)}.")
    for name, part in zip(names, labels, strict=True):
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{path}: {name} must hold labels from 0 to {len(classes) - 1}, one for each of the "
                f"{len(classes)} classes, got {low} to {high}. Check the labels, or name all classes with "
                "data.classes."
            )
    train, test = (part.reshape(-1).astype(np.int64) for part in labels)
    counts = np.bincount(train, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        listing = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        _log.warning("%s: %d of %d classes have no training image: %s", path, len(missing), len(classes), listing)
    return train, test, classes


def _names_in(path: Path, member: npz.Member) -> tuple[str, ...]:
    """Read the class names that a file brings along."""
    dtype, shape = member.layout
    if dtype.kind not in "US" or len(shape) != 1:
        raise DataError(f"{path}: {member.name} must hold strings shaped (classes,), got {member.layout}.")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in member.load().tolist())
