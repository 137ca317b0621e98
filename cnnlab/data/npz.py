"""The npz format: its arrays' headers, their bytes, and what a file may claim before memory is taken for it."""

import contextlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cnnlab import files
from cnnlab.errors import CnnlabError, ConfigError, DataError, MachineError, UnsafeError

# numpy refuses a header text beyond 10,000 characters; this holds any it accepts.
_HEADER_BYTES = 10_240
# Small enough for the processor's cache: a larger piece is slower and costs memory beside the array.
_PIECE_BYTES = 256 * 1024
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
        self.nbytes = math.prod(shape) * dtype.itemsize

    def check_size(self, path: Path) -> None:
        """Hold the header's claim against the zip directory and the bytes on disk."""
        if self.layout.dtype.hasobject:
            raise UnsafeError(
                f"{path}: {self.name} holds pickled Python objects; loading them would run code. "
                "Save it as a plain numeric array."
            )
        claimed = self.offset + self.nbytes
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
        buffer = np.empty(self.nbytes, np.uint8)
        view = buffer.data
        with self.file.open(self.info) as stream:
            stream.read(self.offset)
            position = 0
            while position < len(view):
                piece = stream.read(min(_PIECE_BYTES, len(view) - position))
                if not piece:
                    raise zipfile.BadZipFile(f"{self.name} ends after {position:,} of {len(view):,} bytes")
                view[position : position + len(piece)] = piece
                position += len(piece)
        array = buffer.view(self.layout.dtype)
        if self.fortran_order:
            return array.reshape(self.layout.shape[::-1]).T
        return array.reshape(self.layout.shape)


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
        raise MachineError(f"{path} does not fit into this machine's memory; use fewer or smaller images.") from error
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
def replacing(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
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
