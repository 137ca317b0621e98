"""Images and labels in one npz file: checked before memory is taken, read once, written in one step."""

import contextlib
import logging
import math
import threading
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8, UInt16

from cnnlab.data import npz, splits
from cnnlab.errors import ConfigError, DataError

KEYS: Mapping[str, str] = {
    "train_images": "X_train",
    "train_targets": "y_train",
    "val_images": "X_val",
    "val_targets": "y_val",
    "test_images": "X_test",
    "test_targets": "y_test",
    "groups": "groups",
}
"""Names of the arrays inside the npz, unless the config gives others.

Those of training must be there. A validation set, a test set and the groups of the training images may be: a name that
the config gives must be, and null says that there is none.
"""
REQUIRED = ("train_images", "train_targets")
SPLITS = ("train", "val", "test")
DTYPES = (np.uint8, np.uint16, np.float32)
"""What images may hold: integers over their whole range, or numbers of any range, taken as they are."""

CLASSES = "classes"
"""Name of the optional array of class names."""

_log = logging.getLogger(__name__)

_reads: dict[Hashable, "Future[Archive]"] = {}

# Without names the highest label decides the number of classes; a stray one must not make millions.
_MAX_UNNAMED_CLASSES = 1000


Images = (
    UInt8[np.ndarray, "n height width channel"]
    | UInt16[np.ndarray, "n height width channel"]
    | Float32[np.ndarray, "n height width channel"]
)
Targets = Int64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Archive:
    """A data set: images in NHWC, targets as int64 class numbers.

    Attributes:
        path: The file.
        classes: Names in label order.
        images: Of each split that the file has arrays for: `train`, and perhaps `val` and `test`.
        targets: Likewise.
        groups: A number for each training image; those of one group belong on the same side of a split.
        mapping: Where the images are read from while they are used, unless they are in memory.
    """

    path: Path
    classes: tuple[str, ...]
    images: Mapping[str, Images]
    targets: Mapping[str, Targets]
    groups: Targets | None = None
    mapping: npz.MappedFile | None = None

    @property
    def num_classes(self) -> int:
        """Count the classes, those without a picture included."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (height, width, channels)."""
        height, width, channels = self.images["train"].shape[1:]
        return height, width, channels


def read(
    path: Path | str,
    keys: Mapping[str, str | None] = KEYS,
    classes: Sequence[str] | None = None,
    *,
    mapped: bool = False,
) -> Archive:
    """Read and check a whole npz file.

    Sizes and types are checked from the zip directory and the npy headers alone, before memory is taken; the
    zip's checksums are checked while the pixels are read straight into their final arrays.

    Args:
        path: The npz file.
        keys: Names of the arrays in the file, for those of `KEYS` that differ.
        classes: Class names in label order. Default: the file's `classes` array, else "0", "1", ....
        mapped: Leave the images on the disk and map them; their checksums are then not verified.

    Returns:
        The data set; its arrays are contiguous, and writable unless they are mapped. A class without training images is
        logged as a warning.

    Raises:
        DataError: The file is missing, damaged, or breaks a rule of the layout.
        UnsafeError: It holds pickled objects, or claims more memory than it can need.
        MachineError: It may not be read, or does not fit into memory.
        ConfigError: `keys` names an array that a data set does not have.
    """
    future = None if mapped else _reads.pop(_request(path, keys, classes), None)
    _reads.clear()  # what nobody asked for need not stay in memory
    return future.result() if future else _read(Path(path), keys, classes, mapped)


def read_ahead(path: Path | str, keys: Mapping[str, str | None] = KEYS, classes: Sequence[str] | None = None) -> None:
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


def pieces(path: Path | str, name: str, count: int) -> Iterator[Images]:
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
            array = _with_channels(member.load())
            yield from (array[start : start + count] for start in range(0, total, count))
            return
        with file.open(member.info) as stream:
            stream.read(member.offset)
            for start in range(0, total, count):
                size = min(count, total - start) * math.prod(shape) * member.layout.dtype.itemsize
                content = stream.read(size)
                if len(content) < size:
                    raise zipfile.BadZipFile(f"{name} ends early")
                yield _with_channels(np.frombuffer(content, member.layout.dtype).reshape(-1, *shape))


def write(
    path: Path | str,
    train_images: Images | npz.Spooled,
    train_targets: Integer[np.ndarray, "train"],
    test_images: Images | npz.Spooled,
    test_targets: Integer[np.ndarray, "test"],
    classes: Sequence[str] | None = None,
    overwrite: bool = True,
    *,
    val_images: Images | npz.Spooled | None = None,
    val_targets: Integer[np.ndarray, "val"] | None = None,
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
    if val_images is not None and val_targets is not None:
        arrays |= {"val_images": val_images, "val_targets": val_targets}
    layouts = {role: npz.Layout(array.dtype, array.shape) for role, array in arrays.items()}
    _check_layouts(path, KEYS, layouts)
    labels = {"train": train_targets, "test": test_targets} | ({} if val_targets is None else {"val": val_targets})
    _check_targets(path, KEYS, labels, classes)
    content: dict[str, np.ndarray | npz.Spooled] = {KEYS[role]: array for role, array in arrays.items()}
    if classes is not None:
        content[CLASSES] = np.array(classes, dtype=np.str_)
    with npz.written(path, overwrite) as file:
        npz.save(file, content)


@np.errstate(invalid="ignore")  # of images that are not finite, neither are these
def channel_statistics(
    images: Images, mapping: npz.MappedFile | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation of each channel; integers on the scale 0 to 1.

    For bytes the sums are exact: up to 256 squares of bytes stay below 2**24, where float32 still counts every integer.
    No matrix product, although it is a sum too: on a busy machine its threads wait for each other, 10 times
    as long as the sum takes.

    Args:
        images: The images.
        mapping: The file that they are read from, if they are not in memory.
    """
    channels = images.shape[-1]
    flat = images.reshape(len(images), -1)
    exact = images.dtype == np.uint8
    # Other numbers are counted from those of the first image: the difference of two large sums would lose digits.
    origin = np.zeros(channels) if exact else flat[0].reshape(-1, channels).mean(axis=0, dtype=np.float64)
    total, total_of_squares = np.zeros(channels), np.zeros(channels)
    columns = 4096 * channels  # bounds the float copy to 4 MiB a channel, whatever the image size
    for row in range(0, len(flat), 256):
        for column in range(0, flat.shape[1], columns):
            block: Any = flat[row : row + 256, column : column + columns].astype(np.float32 if exact else np.float64)
            if not exact:
                block -= np.tile(origin, block.shape[1] // channels)
            squares = np.einsum("ij,ij->j", block, block)
            total += block.sum(axis=0).reshape(-1, channels).sum(axis=0, dtype=np.float64)
            total_of_squares += squares.reshape(-1, channels).sum(axis=0, dtype=np.float64)
        if mapping is not None:
            mapping.release(min(256, len(flat) - row), flat[0].nbytes)
    count = flat.size // channels
    if exact:
        mean = tuple(int(sum_) / count / 255 for sum_ in total)
        # In integers, since the difference of two large floats would lose the digits that matter.
        std = tuple(
            math.sqrt(count * int(sum_of_squares) - int(sum_) ** 2) / count / 255
            for sum_, sum_of_squares in zip(total, total_of_squares, strict=True)
        )
        return mean, std
    unit = 65535 if images.dtype == np.uint16 else 1
    means, variances = total / count, total_of_squares / count - (total / count) ** 2
    return tuple((origin + means) / unit), tuple(np.sqrt(np.maximum(variances, 0)) / unit)


def _request(path: Path | str, keys: Mapping[str, str | None], classes: Sequence[str] | None) -> Hashable:
    """Return what tells one `read` from another: the file as it stands there now, and the arguments."""
    try:
        file = Path(path).stat()
    except (OSError, ValueError):
        return None
    names = repr(({**KEYS, **keys}, None if classes is None else list(classes)))
    return Path(path).absolute(), file.st_ino, file.st_size, file.st_mtime_ns, names


def _read(path: Path, keys: Mapping[str, str | None], classes: Sequence[str] | None, mapped: bool = False) -> Archive:
    with _members(path, keys, classes) as (used, members):
        targets, names, groups = _read_labels(path, used, members, classes)
        mapping = npz.MappedFile(path) if mapped else None
        images = {split: _load_images(members[used[f"{split}_images"]], mapping) for split in targets}
        return Archive(path=path, classes=names, groups=groups, mapping=mapping, images=images, targets=targets)


def read_labels(
    path: Path | str, keys: Mapping[str, str | None] = KEYS, classes: Sequence[str] | None = None
) -> tuple[dict[str, Targets], Targets | None]:
    """Read the labels of a file alone: those of each split that it has, and the groups of the training images.

    Raises:
        CnnlabError: As `read` does.
    """
    path = Path(path)
    with _members(path, keys, classes) as (used, members):
        targets, _, groups = _read_labels(path, used, members, classes)
        return targets, groups


@contextlib.contextmanager
def _members(
    path: Path, keys: Mapping[str, str | None], classes: Sequence[str] | None
) -> Iterator[tuple[dict[str, str], dict[str, npz.Member]]]:
    """Open a file and check what its headers say; yield its arrays' names by role, and the arrays by name."""
    if unknown := sorted(set(keys) - set(KEYS)):
        raise ConfigError(f"data.keys may hold {', '.join(KEYS)}; got {', '.join(unknown)}.")
    with npz.opened(path) as file:
        present = [name.removesuffix(".npy") for name in file.namelist()]
        used = _present(path, {**KEYS, **keys}, present)
        names = [*used.values(), *([CLASSES] if classes is None and CLASSES in present else [])]
        members = {name: npz.Member(file, name) for name in names}
        for member in members.values():
            member.check_size(path)
        _check_layouts(path, used, {role: members[name].layout for role, name in used.items()})
        yield used, members


def _read_labels(
    path: Path, keys: Mapping[str, str], members: Mapping[str, npz.Member], classes: Sequence[str] | None
) -> tuple[dict[str, Targets], tuple[str, ...], Targets | None]:
    if CLASSES in members:
        classes = _names_in(path, members[CLASSES])
    labels = {split: members[keys[f"{split}_targets"]].load() for split in SPLITS if f"{split}_targets" in keys}
    targets, names = _check_targets(path, keys, labels, classes)
    groups = splits.number_names(members[keys["groups"]].load()) if "groups" in keys else None
    return targets, names, groups


def _present(path: Path, keys: Mapping[str, str | None], present: Sequence[str]) -> dict[str, str]:
    """Return the arrays that a file has, by role; what must be there is."""
    used = {role: key for role, key in keys.items() if key is not None and (key in present or key != KEYS[role])}
    required = set(REQUIRED) | set(used)
    for split in ("val", "test"):  # images without labels are a mistake, and so is the reverse
        pair = {f"{split}_images", f"{split}_targets"}
        required |= pair if pair & set(used) else set()
    if missing := [str(key) for role, key in keys.items() if role in required and key not in present]:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(present) or 'nothing'}. "
            "Name its arrays with data.keys."
        )
    return used


def _load_images(member: npz.Member, mapping: npz.MappedFile | None) -> Images:
    array = np.ascontiguousarray(member.load()) if mapping is None else mapping.array(member)
    return _with_channels(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def _with_channels(images: np.ndarray) -> Images:
    """Give grey images without an axis of channels one."""
    return images[..., None] if images.ndim == 3 else images


def _check_layouts(path: Path, keys: Mapping[str, str], layouts: Mapping[str, npz.Layout]) -> None:
    """Check types and shapes of the arrays against the rules and each other."""
    first = layouts["train_images"]
    for split in SPLITS:
        if f"{split}_images" not in layouts:
            continue
        images, targets = layouts[f"{split}_images"], layouts[f"{split}_targets"]
        images_key, targets_key = keys[f"{split}_images"], keys[f"{split}_targets"]
        _check_images(f"{path}: {images_key}", images)
        _check_labels(f"{path}: {targets_key}", targets)
        if images.shape[0] != targets.shape[0]:
            raise DataError(
                f"{path}: {images_key} and {targets_key} must be equally long, "
                f"got {images.shape[0]} images and {targets.shape[0]} labels."
            )
        if (images.dtype, images.shape[1:]) != (first.dtype, first.shape[1:]):
            raise DataError(
                f"{path}: {images_key} must hold images like those of {keys['train_images']}, "
                f"{first.dtype} {first.shape[1:]}, got {images.dtype} {images.shape[1:]}."
            )
    if "groups" in layouts and layouts["groups"].shape[:1] != first.shape[:1]:
        raise DataError(
            f"{path}: {keys['groups']} must hold one group for each of the {first.shape[0]} training images, "
            f"got {layouts['groups']}."
        )


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    _, channels, height, width = shape
    return channels < height == width or (channels in (1, 3) and width not in (1, 3))


def _check_images(where: str, layout: npz.Layout) -> None:
    dtype, shape = layout
    usable = dtype.newbyteorder("=") in DTYPES and len(shape) in (3, 4) and 0 not in shape
    channels_first = len(shape) == 4 and 0 not in shape and _looks_channels_first(shape)
    if usable and not channels_first:
        return
    remedies = []
    if dtype.kind == "f" and dtype.newbyteorder("=") not in DTYPES:
        remedies.append("cast with X.astype('float32')")
    elif dtype.newbyteorder("=") not in DTYPES:
        remedies.append("cast with X.astype('uint8') if all values are in 0-255, 'uint16' if in 0-65535")
    if channels_first:
        remedies.append("this looks like NCHW: X.transpose(0, 2, 3, 1)")
    if 0 in shape:
        remedies.append("it holds no pixels")
    raise DataError(
        f"{where} must hold uint8, uint16 or float32 images shaped (N, height, width, channels), or (N, height, width) "
        f"if they are grey, got {layout}" + (f"; {'; '.join(remedies)}." if remedies else ".")
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
    path: Path, keys: Mapping[str, str], labels: Mapping[str, Integer[np.ndarray, "..."]], classes: Sequence[str] | None
) -> tuple[dict[str, Targets], tuple[str, ...]]:
    """Check the label values of each split; return them as int64, and the class names."""
    if classes is None:
        highest = max(int(part.max()) for part in labels.values())
        limit = max(_MAX_UNNAMED_CLASSES, sum(map(len, labels.values())))
        classes = tuple(str(number) for number in range(min(max(highest, 0) + 1, limit)))
    classes = tuple(classes)
    if len(set(classes)) != len(classes) or "" in classes:
        raise DataError(f"{path}: class names must be unique and not empty, got {', '.join(classes)}.")
    for split, part in labels.items():
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{path}: {keys[f'{split}_targets']} must hold labels from 0 to {len(classes) - 1}, one for each of "
                f"the {len(classes)} classes, got {low} to {high}. Check the labels, or name all classes with "
                "data.classes."
            )
    targets = {split: part.reshape(-1).astype(np.int64) for split, part in labels.items()}
    counts = np.bincount(targets["train"], minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{path}: {keys['train_targets']} must hold at least two classes, got {np.count_nonzero(counts)} "
            f"({classes[int(counts.argmax())]}): there is nothing to tell apart."
        )
    if missing := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        listing = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        _log.warning("%s: %d of %d classes have no training image: %s", path, len(missing), len(classes), listing)
    return targets, classes


def _names_in(path: Path, member: npz.Member) -> tuple[str, ...]:
    """Read the class names that a file brings along."""
    dtype, shape = member.layout
    if dtype.kind not in "US" or len(shape) != 1:
        raise DataError(f"{path}: {member.name} must hold strings shaped (classes,), got {member.layout}.")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in member.load().tolist())
