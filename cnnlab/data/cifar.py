"""CIFAR-10 and CIFAR-100: fetched from their authors' site and written as an npz file, once."""

import contextlib
import gzip
import hashlib
import itertools
import logging
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import UInt8

from cnnlab.data import archive
from cnnlab.errors import DataError, MachineError, UnsafeError

_log = logging.getLogger(__name__)

Name = Literal["cifar10", "cifar100"]

_PIXELS = 3 * 32 * 32
_MAX_RECORDS = 50_000
# A tar header can claim any size. The largest member of either archive has 154 MB.
_MAX_MEMBER_BYTES = 256 * 2**20
_MAX_READ_BYTES = 16 * 2**20
_PIECE_BYTES = 64 * 1024  # what a connection that breaks may lose
_TIMEOUTS = (10, 30)  # seconds: to connect, and for the server to send the next bytes
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class _Source:
    """One official binary archive: where it is, and what a record looks like."""

    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    class_names: str
    label_bytes: int  # the last of them is the label


SOURCES: dict[Name, _Source] = {
    # Source of the formats: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
    "cifar10": _Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        class_names="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": _Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        class_names="fine_label_names.txt",
        label_bytes=2,  # coarse, then fine
    ),
}


def fetch(name: Name, path: Path | str, url: str | None = None, md5: str | None = None) -> Path:
    """Make the data set's npz file, downloading the official archive; does nothing where the file exists.

    What arrives is kept in a folder `<path>.download`, so that a later call continues where an interrupted one
    stopped. Processes that ask for the same folder at once wait for each other.

    Args:
        name: Which data set. CIFAR-100 gets its 100 fine labels.
        path: The npz file to make.
        url: A mirror of the archive.
        md5: Checksum of the archive, in hexadecimal.

    Returns:
        `path`.

    Raises:
        DataError: The archive cannot be had, or is not the one asked for.
        UnsafeError: The archive holds what an archive of pictures has no need for, such as links.
        MachineError: The disk is full, or the folder may not be written.
    """
    path = Path(path)
    if path.exists():
        return path
    source = SOURCES[name]
    work = path.with_name(f"{path.name}.download")
    tar = work / "archive.tar.gz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.parent):
            if path.exists():  # made by whom we waited for
                return path
            work.mkdir(exist_ok=True)
            try:
                _retrieve(name, path, tar, url or source.url, md5 or source.md5)
                convert(name, tar, path)
            except (DataError, UnsafeError):
                tar.unlink(missing_ok=True)  # so that the next try does not meet it again
                with contextlib.suppress(OSError):  # a part of it, if there is one, stays
                    work.rmdir()
                raise
            shutil.rmtree(work)
    except OSError as error:
        raise MachineError(f"{path} could not be made: {error.strerror or error}.") from error
    return path


def convert(name: Name, tar: Path, output: Path) -> None:
    """Write an official binary archive as an npz file.

    The tar is read as a stream and never unpacked. In the npz the images are NHWC, in the archive's order.

    Raises:
        DataError: The archive is damaged, or lacks a part.
        UnsafeError: It holds links, devices, names that lead elsewhere, or members too large for pictures.
    """
    source = SOURCES[name]
    splits = {f"{source.folder}/{part}" for part in (*source.train, source.test)}
    class_names = f"{source.folder}/{source.class_names}"
    parts: dict[str, Any] = {}
    try:
        with _BoundedGzip(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as file:
            for member in file:
                _check_member(tar, member)
                if member.name not in splits and member.name != class_names:
                    continue
                content = file.extractfile(member)
                if content is None:
                    raise DataError(f"{tar}: {member.name} must be a file, got a folder.")
                if member.name in splits:
                    parts[member.name] = _records(content, member, source.label_bytes)
                else:
                    names = content.read(member.size).decode().splitlines()
                    parts[member.name] = [line.strip() for line in names if line.strip()]
            while stream.read(_PIECE_BYTES):  # the checksum of the pixels comes after the last of them
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{tar} is damaged ({error}). Delete it and fetch it again.") from error
    if missing := sorted((splits | {class_names}) - set(parts)):
        raise DataError(f"{tar} lacks {', '.join(missing)}: it is not the binary version of {name}.")
    train = [parts[f"{source.folder}/{part}"] for part in source.train]
    test = parts[f"{source.folder}/{source.test}"]
    archive.write(
        output,
        train_images=np.concatenate([images for images, _ in train]),
        train_targets=np.concatenate([labels for _, labels in train]),
        test_images=test[0],
        test_targets=test[1],
        classes=parts[class_names],
    )


def _check_member(tar: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise UnsafeError(f"{tar}: {member.name} is a link or a device; an archive of pictures has none.")
    if name.is_absolute() or ".." in name.parts:
        raise UnsafeError(f"{tar}: {member.name} leads out of the archive's folder.")
    if not 0 <= member.size <= _MAX_MEMBER_BYTES:
        raise UnsafeError(
            f"{tar}: {member.name} claims {member.size:,} bytes; at most {_MAX_MEMBER_BYTES:,} are expected."
        )


def _records(
    content: IO[bytes], member: tarfile.TarInfo, label_bytes: int
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, "n"]]:
    """Read records of labels and one picture, stored as a red, a green and a blue plane."""
    record = label_bytes + _PIXELS
    count, rest = divmod(member.size, record)
    if rest or not 1 <= count <= _MAX_RECORDS:
        raise DataError(
            f"{member.name} must hold 1 to {_MAX_RECORDS} records of {record} bytes, got {member.size} bytes."
        )
    images, labels = np.empty((count, 32, 32, 3), np.uint8), np.empty(count, np.uint8)
    for start in range(0, count, 1000):
        rows = min(1000, count - start)
        piece = content.read(rows * record)
        if len(piece) != rows * record:
            raise EOFError(f"{member.name} is cut off")
        block = np.frombuffer(piece, np.uint8).reshape(rows, record)
        labels[start : start + rows] = block[:, label_bytes - 1]
        images[start : start + rows] = block[:, label_bytes:].reshape(rows, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, labels


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that refuses large reads: tarfile takes a header's word for how much to read at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise UnsafeError(f"{self.name}: a header claims {size} bytes; the archive is not what it should be.")
        return super().read(size)


def _retrieve(name: Name, path: Path, tar: Path, url: str, md5: str) -> None:
    """Bring the archive to `tar`, whole and with the right checksum."""
    if _has_md5(tar, md5):  # an earlier call brought it
        return
    # Here and not above: every run imports this module, and few need the network.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    _log.info("Downloading %s to %s", url, path)
    part = tar.with_name(f"{tar.name}.part")
    bar = Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(f"Downloading {name}", total=None)
        _download(name, url, part, path, lambda done, total: bar.update(task, completed=done, total=total))
    if not _has_md5(part, md5):
        part.unlink()
        raise DataError(
            f"{url} did not send the archive of {name}: its md5 must be {md5}, got another. "
            "The file was deleted; try again."
        )
    part.replace(tar)


def _has_md5(path: Path, md5: str) -> bool:
    """Whether a file is there and has a checksum."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5


def _download(name: str, url: str, part: Path, path: Path, report: Callable[[int, int | None], None]) -> None:
    """Append to `part` what it lacks, connecting again as long as each connection brings something new."""
    import requests
    import urllib3

    while True:
        before = _size(part)
        try:
            _transfer(url, part, report)
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if (after := _size(part)) > before:
                continue
            kept = f" The next try continues after the {after:,} bytes that came." if after else ""
            raise DataError(
                f"{path} is missing, and its source {url} cannot be reached: {_reason(error)}.{kept}\n"
                f"Ways out: data.path=<your npz>; or `cnnlab data fetch {name}` on a machine with a network, "
                f"then copy the file to {path}; or experiment=quickstart, whose data is built in."
            ) from error


def _transfer(url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    """Make one request for what `part` lacks, and append what comes."""
    import requests

    start = _size(part)
    # Bytes as they lie on the server: the checksum and the offsets are those of the compressed file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as answer:
        sent = answer.headers.get("Content-Range", "")
        if answer.status_code == 416 and sent == f"bytes */{start}":
            return
        if start and (
            answer.status_code == 416 or (answer.status_code == 206 and not sent.startswith(f"bytes {start}-"))
        ):
            part.unlink()  # what is there does not match what the server has
            _transfer(url, part, report)
            return
        answer.raise_for_status()
        if answer.status_code != 206:
            start = 0  # the server sends everything, whatever the range
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        pieces = answer.raw.stream(_PIECE_BYTES, decode_content=False)
        first = next(pieces, b"")
        # Before anything is overwritten: networks with a login answer any request with their own page.
        if not start and not first.startswith(_GZIP):
            kind = answer.headers.get("Content-Type", "no type")
            raise DataError(
                f"{url} must be a gzip archive, got {kind} that starts with {first[:20]!r}. "
                "Open it in a browser: does this network ask for a login?"
            )
        with part.open("ab" if start else "wb") as file:
            done = start
            for piece in itertools.chain([first], pieces):
                file.write(piece)
                done += len(piece)
                report(done, total)
    if total is not None and done != total:
        raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _reason(error: Exception) -> str:
    """Find the cause inside what requests wraps around it."""
    return str(getattr(error.args[0], "reason", error) if error.args else type(error).__name__)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the same folder; the lock dies with its process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network drive without locks
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
