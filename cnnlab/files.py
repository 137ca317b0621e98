"""Small files: written whole or not at all, read only as far as a stranger's can be trusted."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import math
import os
import reprlib
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml  # type: ignore[import-untyped]

from cnnlab.errors import DamagedError, MachineError

MOST_BYTES = 64 << 20
"""The largest small file that is read; a history of 100,000 epochs has a quarter of this."""

FLOAT_MAX = sys.float_info.max

MOST_DEPTH = 50
"""The deepest nesting of settings; Hydra's own have about eight levels."""

MOST_ELEMENTS = 200_000
"""The most values and containers that settings hold; the names of 100,000 classes are among them."""

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(128, 160))} | {
    code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
}
"""Characters that command a terminal, turn the direction of a text, or cannot be encoded, and how they are printed."""


@contextmanager
def replacing(path: Path, *, durable: bool = False, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Write a file beside `path` that takes its place when the block ends, or vanishes if the block fails.

    The temporary file has a name of its own (`file.name`, for libraries that want a path) and is locked while it is
    written, so that what killed processes left can be told from what is being written; it is removed here.

    Args:
        path: The file; its folder is made where there is none.
        durable: Whether the content and the new name are on the disk when the block has ended.
        overwrite: Whether an existing file is replaced.

    Raises:
        FileExistsError: The file exists when the block ends, and `overwrite` is false.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary, lock = _create_beside(path)
    try:
        with open(temporary, "wb", opener=lambda *_: os.dup(lock)) as file:
            yield file
        if durable:
            os.fsync(lock)
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
        if durable:
            flush_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files for `path` whose writers were killed."""
    for leftover in path.parent.iterdir():
        if not (leftover.name.startswith(_prefix(path)) and leftover.suffix == ".part"):
            continue
        with contextlib.suppress(OSError):  # a link, locked, without locks, gone already: nobody's to remove
            lock = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(lock)


def _create_beside(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f"{_prefix(path)}{os.getpid()}-{os.urandom(4).hex()}.part")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:  # not taken for a leftover before it was locked
            return temporary, lock
        os.close(lock)


def _prefix(path: Path) -> str:
    return f".{path.name[:50]}."  # a whole name of 255 bytes would leave no room for the rest


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; its folder is made where there is none."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step; what UTF-8 cannot hold, as of a file name in another encoding, is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, see `finite`."""
    write_text(path, json.dumps(finite(content), indent=2) + "\n")


def finite(content: Any) -> Any:
    """Return what a JSON file is to hold: numbers that are not finite become null, as JSON has none."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def flush_folder(folder: Path) -> None:
    """Put a folder's entries on the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_or_link(path: Path, name: Path) -> None:
    """Give a file a second name in one step; where the file system has no links, the second name instead of the first.

    Whoever reads such files reads both names.
    """
    if not _link(path, name):
        path.replace(name)


def copy_or_link(path: Path, name: Path) -> None:
    """Give a file a second name in one step; where the file system has no links, write a copy under that name."""
    if not _link(path, name):
        with replacing(name, durable=True) as file:
            file.write(path.read_bytes())


def _link(path: Path, name: Path) -> bool:
    """Give a file a second name in one step; tell whether the file system can."""
    link = name.with_name(f".{name.name[:50]}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        link.hardlink_to(path)
    except OSError:
        return False
    link.replace(name)
    link.unlink(missing_ok=True)  # two names of one file are not renamed to each other
    return True


def read_bytes(path: Path) -> bytes:
    """Return a file's content: of a regular file only, since a pipe or a device may never end.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It is no regular file, or it is too large.
        MachineError: It may not be read, or the disk fails.
    """
    try:
        # Without waiting: to open a pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DamagedError(f"{path} must be a regular file, it is a folder, a pipe or a device.")
            if facts.st_size > MOST_BYTES:
                raise DamagedError(f"{path} must have {MOST_BYTES:,} bytes at most, it has {facts.st_size:,}.")
            return file.read(MOST_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE):
            raise MachineError(f"cannot read {path}: {error.strerror}.") from error
        raise DamagedError(f"{path} can't be read: {error.strerror}.") from error


def read_json(path: Path, kind: Any = None) -> dict[str, Any]:
    """Return a JSON file's object; an empty one if there is no file.

    Args:
        path: The file.
        kind: A TypedDict that declares what it holds.

    Raises:
        DamagedError: It is damaged, or holds something else than declared.
        MachineError: It may not be read.
    """
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} must hold a JSON object: it is damaged.")
    if kind is not None:
        check_type(content, kind, str(path))
    return content


def check_type(value: Any, kind: Any, place: str) -> None:
    """Check that a part of what a file holds is of the type that it is declared to have.

    Args:
        value: The part, as plain containers.
        kind: A type as in annotations: `str`, `float | None`, `list[str]`, `dict[str, str]`, a Literal, a TypedDict.
        place: The file, and the keys that lead to the part.

    Raises:
        DamagedError: It is of another type, a key is missing, or a number is not finite or too large.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind) and isinstance(value, dict):
        for name, inner in get_type_hints(kind).items():
            if name in value:
                check_type(value[name], inner, f"{place}: {name}")
            elif name in kind.__required_keys__:
                raise DamagedError(f"{place}: {name} is missing: it is damaged.")
    elif origin is dict and isinstance(value, dict):
        for name, element in value.items():
            check_type(element, arguments[1], f"{place}: {name}")
    elif origin is list and isinstance(value, list):
        for element in value:
            check_type(element, arguments[0], place)
    elif origin in (UnionType, Union):  # with None
        if value is not None:
            check_type(value, next(inner for inner in arguments if inner is not type(None)), place)
    elif not (
        kind is Any
        or (
            kind is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT_MAX
        )
        or (kind is int and type(value) is int and abs(value) < 2**63)
        or (kind in (str, bool) and isinstance(value, kind))
        or (origin is Literal and isinstance(value, str) and value in arguments)
    ):
        name = " or ".join(map(str, arguments)) if origin is Literal else getattr(kind, "__name__", str(kind))
        raise DamagedError(f"{place} must be {name}, got {reprlib.repr(value)}: it is damaged.")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return a csv file's rows, each with a text for every column; none if there is no file.

    Raises:
        DamagedError: It is damaged.
        MachineError: It may not be read.
    """
    try:
        rows = csv.reader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True)
        header = next(rows, [])
        return [dict(zip(header, row, strict=True)) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, csv.Error) as error:
        raise _damaged(path, error) from error


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; it may come from anybody: no tags, no aliases, no deep nests.

    Raises:
        DamagedError: It is missing or damaged.
        MachineError: It may not be read.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        text = read_bytes(path).decode()
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH or isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError("nothing that Hydra writes")
        return yaml.load(text, loader)
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedError:
    if isinstance(error, DamagedError):  # a ValueError itself
        return error
    return DamagedError(f"{path} can't be read: it is damaged ({type(error).__name__}).")


def plain(content: Any, place: str) -> Any:
    """Return what a stranger's file holds as dicts, lists, texts and numbers, whatever containers it came in.

    Args:
        content: Containers and scalars of any kind; sets, bytes and tensors are refused.
        place: The file, and where in it the content stands.

    Raises:
        DamagedError: It holds anything else, a key that is no text, or more than a config ever does.
    """
    elements = 0

    def copy(value: Any, place: str, depth: int) -> Any:
        nonlocal elements
        elements += 1
        if elements > MOST_ELEMENTS or depth > MOST_DEPTH:
            raise DamagedError(f"{place} holds more than a run's settings do: it is damaged.")
        if isinstance(value, Mapping):
            for name in value:
                if type(name) is not str:
                    raise DamagedError(f"{place} has a key that is no text, {reprlib.repr(name)}: it is damaged.")
            return {name: copy(element, f"{place}: {name}", depth + 1) for name, element in value.items()}
        if isinstance(value, list | tuple):
            return [copy(element, place, depth + 1) for element in value]
        if value is None or type(value) in (str, bool, float) or (type(value) is int and -(2**63) <= value < 2**63):
            return value
        raise DamagedError(f"{place} must be a text, a number, a list or a mapping, got {type(value).__name__}.")

    return copy(content, place, 0)


def flatten(config: Any, prefix: str = "", *, sections: bool = False, lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under their dotted keys; an empty mapping is a value.

    Args:
        config: The mapping.
        prefix: The key that it stands at.
        sections: Whether to yield each section too, before what is in it.
        lists: Whether to yield the elements of lists, under their positions, in place of the lists.
    """
    items = config.items() if isinstance(config, Mapping) else enumerate(config)
    for name, value in items:
        key = f"{prefix}.{name}" if prefix else str(name)
        if value and isinstance(value, (Mapping, list) if lists else Mapping):
            if sections:
                yield key, value
            yield from flatten(value, key, sections=sections, lists=lists)
        else:
            yield key, value


def look_up(content: Any, *keys: str) -> Any:
    """Return what nested mappings hold at a key below a key, and so on; None where there is nothing."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def holds(content: Any, *keys: str) -> bool:
    """Whether nested mappings have a key below a key, and so on."""
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return False
        content = content[key]
    return True


def printable(text: str, keep: str = "\n\t") -> str:
    """Return a text that may be a stranger's so that a terminal shows it and obeys nothing in it."""
    return text.translate(CONTROLS | {ord(letter): letter for letter in keep})


def csv_cell(value: Any) -> Any:
    """Return a value as a spreadsheet may open it: no text is taken for a formula, none commands a terminal.

    Numbers stay as they are. Source: OWASP, "CSV Injection".
    """
    if not isinstance(value, str):
        return value
    text = printable(value, keep="")
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
