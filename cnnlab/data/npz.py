"""The npz format: its arrays' headers, their bytes, and what a file may claim before memory is taken for it."""

import contextlib
import io
import math
import mmap
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cnnlab import files
from cnnlab.errors import CnnlabError, ConfigError, DataError, MachineError, UnsafeError

# numpy refuses a header text beyond 10,000 characters; this holds any it accepts.
_HEADER_BYTES = 10_240
# The record that ends a zip file, without its comment (APPNOTE.TXT 4.3.16).
_END_BYTES = 22
# Deflate cannot expand beyond 1032:1 (zlib's technical notes), so no file can hold more than this factor.
_DEFLATE_LIMIT = 1032
# What one flipped bit in a 32-bit size field can claim. Up to here a false size counts as damage.
_DAMAGE_BYTES = 2**32
# Photographs shrink by less than 2, drawings by some tens. Beyond this a large member is a bomb.
_BOMB_RATIO = 200
_BOMB_BYTES = 64 * 2**20


class Layout(NamedTuple):
    """What the header of one array says: its type and its shape."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def layouts(path: Path | str) -> dict[str, Layout]:
    """Return type and shape of every array in an npz file, from the headers alone.

    Raises:
        DataError, UnsafeError, MachineError: As `read` does for a file that is no npz.
    """
    with opened(Path(path)) as file:
        names = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
        return {name: Member(file, name).layout for name in names}


class Member:
    """One npy array inside an open zip file, its header parsed and its data still on disk."""

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        self.file = file
        self.name = name
        self.info = file.getinfo(f"{name}.npy" if f"{name}.npy" in file.NameToInfo else name)
        if self.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Others take memory by their own header's word before they give a byte.
            raise DataError(f"{file.filename}: {name} is neither stored nor deflated; write it with numpy.savez.")
        with file.open(self.info) as stream:
            start = io.BytesIO(stream.read(_HEADER_BYTES))
        try:
            parse = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(start)]
            shape, self.fortran_order, dtype = parse(start)
        except Exception as error:  # numpy parses a stranger's text here and does not promise which errors
            raise DataError(f"{file.filename}: {name} has no readable npy header ({error}).") from error
        self.layout = Layout(dtype, shape)
        self.offset = start.tell()

    def check_size(self, path: Path) -> None:
        """Hold the header's claim against the zip directory and the bytes on disk."""
        if self.layout.dtype.hasobject:
            raise UnsafeError(
                f"{path}: {self.name} holds pickled Python objects; loading them would run code. "
                "Save it as a plain numeric array."
            )
        claimed = self.offset + math.prod(self.layout.shape) * self.layout.dtype.itemsize
        on_disk = path.stat().st_size
        claims = f"{path}: {self.name} claims {claimed:,} bytes as {self.layout}"
        if max(claimed, self.info.file_size) > max(_DEFLATE_LIMIT * on_disk, _DAMAGE_BYTES):
            raise UnsafeError(f"{claims}, more than the {on_disk:,} bytes on disk can hold.")
        if claimed != self.info.file_size or min(self.layout.shape, default=1) < 0:
            raise DataError(f"{claims}, but the zip directory says {self.info.file_size:,}: the file is damaged.")
        if claimed > max(_BOMB_BYTES, _BOMB_RATIO * self.info.compress_size):
            raise UnsafeError(
                f"{claims} out of {self.info.compress_size:,} compressed ones, as a zip bomb does. "
                "If it is meant so, write it uncompressed with numpy.savez."
            )

    def load(self) -> np.ndarray:
        """Read the array into memory once; the zip's checksum is verified on the last byte."""
        with self.file.open(self.info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


class MappedFile:
    """A file's uncompressed arrays as parts of its mapping: read from the disk when they are looked at.

    The pages that were looked at count as this process' memory until they are let go; the system keeps them in its
    cache for as long as nobody else needs the space.

    Args:
        path: The npz file.
    """

    LIMIT_BYTES = 64 * 2**20
    """What may be resident before it is let go."""
    # The kernel maps the cached neighbours of a page too (fault_around_bytes, 64 KiB by default).
    _AROUND_BYTES = 64 * 1024

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = os.dup(file.fileno())
        self._address = np.frombuffer(self._bytes, np.uint8).ctypes.data
        self._resident = 0

    def __del__(self) -> None:
        os.close(self._file)

    def array(self, member: Member) -> np.ndarray:
        """Return one of the file's arrays, read-only; its checksum is not verified.

        Raises:
            DataError: It is compressed, or not in the order of rows.
        """
        name, info = member.name, member.info
        if info.compress_type != zipfile.ZIP_STORED or member.fortran_order or not member.layout.dtype.isnative:
            raise DataError(
                f"{self.path}: {name} must be uncompressed, in C order and native bytes for data.resident=disk. Write "
                "it with numpy.savez or `cnnlab data pack`, or give data.resident=host."
            )
        # The member's own header is followed by its name and by a field whose length only stands there.
        lengths = struct.unpack_from("<HH", self._bytes, info.header_offset + 26)
        start = info.header_offset + 30 + sum(lengths) + member.offset
        flat = np.frombuffer(self._bytes, member.layout.dtype, math.prod(member.layout.shape), start)
        return flat.reshape(member.layout.shape)

    def take(self, array: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """Return scattered rows of one of the file's arrays, read past the mapping.

        A row that is touched in the mapping costs several times as much, and memory until it is let go.
        """
        result = np.empty((len(rows), *array.shape[1:]), array.dtype)
        content = result.reshape(-1).view(np.uint8).data
        start, size = array.ctypes.data - self._address, array.strides[0]
        for number, row in enumerate(rows):
            if os.preadv(self._file, [content[number * size : (number + 1) * size]], start + row * size) != size:
                raise DataError(f"{self.path} has become shorter while it was read.")
        return result

    def release(self, rows: int, row_bytes: int) -> None:
        """Note that rows were looked at, and let go of the pages once these add up."""
        self._resident += rows * (row_bytes + self._AROUND_BYTES)
        if self._resident > self.LIMIT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)
            self._resident = 0


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an npz file; whatever goes wrong with it inside the block becomes an error of ours."""
    try:
        with zipfile.ZipFile(path) as file:
            _check_directory(path, file)
            yield file
    except CnnlabError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check data.path, or make it: `cnnlab data --help`.") from error
    except PermissionError as error:
        raise MachineError(f"{path} may not be read: {error.strerror}.") from error
    except MemoryError as error:
        raise MachineError(
            f"{path} does not fit into this machine's memory; give data.resident=disk, or use fewer or smaller images."
        ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RuntimeError,  # encrypted; NotImplementedError, a subclass: unknown compression
    ) as error:
        raise _unreadable(path, error) from error


def _check_directory(path: Path, file: zipfile.ZipFile) -> None:
    """Check that no member is lost by damage to its name or to the directory, as zipfile does not."""
    with path.open("rb") as raw:
        raw.seek(-_END_BYTES - len(file.comment), os.SEEK_END)
        (count,) = struct.unpack_from("<H", raw.read(_END_BYTES), 10)
    if count not in (len(file.filelist), 0xFFFF):  # the latter stands for "see the zip64 record"
        raise zipfile.BadZipFile(f"it lists {len(file.filelist)} of {count} members")
    for info in file.filelist:
        file.open(info).close()  # compares the directory with the member's own header


def _unreadable(path: Path, error: Exception) -> CnnlabError:
    """Say what a file is that could not be read as an npz."""
    if not path.is_file():
        return DataError(f"{path} must be an npz file, got a folder or a device. See `cnnlab data pack --help`.")
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        end = file.read(1)
    if not start:
        return DataError(f"{path} is empty. Delete it and make it again.")
    if start.startswith(b"PK"):
        return DataError(f"{path} is damaged ({error}). Delete it and make or copy it again.")
    # Protocol 2 and above starts with 0x80; older ones with the opcode of a container or an import.
    if start[0] == 0x80 or (start[:1] in b"(]}c" and end == b"."):
        return UnsafeError(f"{path} is a Python pickle, and loading one runs code. Write an npz with numpy.savez.")
    hint = "a single npy array" if start == b"\x93NUMPY" else f"a file that starts with {start!r}"
    return DataError(f"{path} must be an npz file (numpy.savez), got {hint}.")


@contextlib.contextmanager
def written(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Write a file beside `path` and put it in its place once it is whole and on the disk."""
    try:
        with files.replacing(path, durable=True, overwrite=overwrite) as file:
            yield file
    except FileExistsError as error:
        raise ConfigError(
            f"{path} was written by another process meanwhile and stays. Choose another name, or pass --overwrite."
        ) from error
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror or error}.") from error


class Spooled:
    """The rows of an array that is written before it is known how many they are.

    Args:
        folder: Where the temporary file stands, which has no name and vanishes with its process.
        shape: Of a row.
        dtype: Of its numbers.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self._row_shape = shape
        self._count = 0
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array so far."""
        return (self._count, *self._row_shape)

    def append(self, rows: np.ndarray) -> None:
        """Add rows."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self._count += len(rows)

    def replace(self, row: int, values: np.ndarray) -> None:
        """Write another row in the place of one."""
        content = np.ascontiguousarray(values, self.dtype).data
        self.file.seek(row * content.nbytes)
        self.file.write(content)


def save(file: BinaryIO, arrays: Mapping[str, np.ndarray | Spooled]) -> None:
    """Write arrays as an uncompressed npz file, as `numpy.savez` does; the same arrays give the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if not isinstance(array, Spooled):
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
                    continue
                descr = np.lib.format.dtype_to_descr(array.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(member, header)
                array.file.seek(0)
                shutil.copyfileobj(array.file, member, 2**20)
