"""A checkpoint as a file: sealed, written in one step, read without executing anything.

The seal is the SHA-256 of the file's bytes, as the comment at the end of the zip file that `torch.save` makes: no crash
can come between a file and its digest, and every reader of zip files, torch's among them, passes over it.

torch is imported where a file is read or written, so that the command line need not wait for it.
"""

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cnnlab.errors import CheckpointError, CnnlabError, ConfigError, DamagedError, MachineError, UnsafeError, first_line
from cnnlab.files import plain, remove_leftovers, rename_or_link, replacing
from cnnlab.record import LAST, PREVIOUS, Record

log = logging.getLogger(__name__)

TAG = b"cnnlab sha256 "
_LENGTH = len(TAG) + 64
MOST_REPEATED_BYTES = 64 << 20
# A zip file without a comment ends in the comment's length, two bytes (APPNOTE.TXT 4.3.16).
_NO_COMMENT = b"\0\0"


class Loaded(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        path: The file.
        content: Its containers and tensors, on the CPU.
    """

    path: Path
    content: dict[str, Any]


def write_checkpoint(content: dict[str, Any], path: Path, *, keep_previous: bool = True) -> None:
    """Write containers and tensors as a sealed checkpoint; at every moment a whole file stands at `path`.

    Args:
        content: The containers and tensors.
        path: The file.
        keep_previous: Whether the `last.ckpt` that is replaced becomes `previous.ckpt`.

    Raises:
        MachineError: What arrived on the disk is not what was written.
        OSError: The disk is full, or the folder may not be written.
    """
    import torch

    # Into memory first: torch would turn a full disk into another error.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_sealed(path, buffer.getvalue(), keep_previous=keep_previous)


def storable(content: dict[str, Any]) -> dict[str, Any]:
    """Return what Lightning has put together for a checkpoint, as `read_checkpoint` will take it.

    Of hyperparameters, what is no setting is left out: a LightningModule that calls `save_hyperparameters` has its
    network and its optimizer's constructor among them, and gets new ones when it is built again.

    Raises:
        ConfigError: There is something else that no reader would load.
    """
    settings = {
        name: {key: value for key, value in content[name].items() if _is_setting(value)}
        for name in content.keys() & {"hyper_parameters", "datamodule_hyper_parameters"}
    }
    content = content | settings
    for place, value in _refused(content):
        raise ConfigError(
            f"{type(value).__module__}.{type(value).__qualname__} can't be kept in a checkpoint, at {place}: save only "
            "tensors, numbers, texts, and lists and dictionaries of them."
        )
    return content


def write_sealed(path: Path, content: bytes, *, keep_previous: bool = True) -> None:
    """Put what `torch.save` made in the place of a checkpoint, in one step: see `write_checkpoint`.

    Raises:
        MachineError: What arrived on the disk is not what was written.
        OSError: The disk is full, or the folder may not be written.
    """
    with replacing(path, durable=True) as file:
        file.writelines(seal(content))
        file.flush()
        os.fsync(file.fileno())
        if not is_whole(Path(file.name)):
            raise MachineError(
                f"{path} was not written as it should be: the disk returns other bytes. The old one stays."
            )
        if path.name == LAST and keep_previous and path.exists():
            previous = path.with_name(PREVIOUS)
            remove_leftovers(previous)
            rename_or_link(path, previous)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint's containers and tensors; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged, or not cnnlab's.
        UnsafeError: The file asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint.")
    whole = is_whole(path)
    if not whole and has_seal(path):
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written. {_alternative(path)}")
    content = _load(path, map_location)
    if not whole:
        raise CheckpointError(f"{path} has no seal: it is damaged, or train.py did not write it. {_alternative(path)}")
    return content


def read_last(record: Record, *, completed: bool = False) -> Loaded | None:
    """Read the checkpoint to resume from; None, and a line in the log, if the run stopped before its first.

    That is the last one, or the one before where the last is damaged; the log says so.

    Args:
        record: The run's folder.
        completed: Whether the run was completed before, so that it had a checkpoint.

    Raises:
        CheckpointError: The run had come further than that, so its checkpoints were lost.
        UnsafeError: The file asks for code to be run.
    """
    paths = [path for path in (record.last, record.previous) if path.is_file()]
    for path in paths:
        if is_whole(path):
            if path == record.previous:
                state = "damaged" if record.last in paths else "missing"
                log.warning(f"{record.last} is {state}: resuming from the one before it, {path}")
            return Loaded(path, _load(path))
    if len(paths) == 2:
        weights = f", with the weights of this one's best state: init_from={record.best}."
        raise CheckpointError(
            f"{record.last} and {record.previous} are both damaged. Put a copy of one back, or start a new run"
            + (weights if record.best.is_file() else ".")
        )
    if paths:
        return Loaded(paths[0], read_checkpoint(paths[0]))  # says what is wrong with it
    # An epoch's row is written just before its state: a run may be killed between the first ones.
    if len(record.history) > 1 or completed:
        raise CheckpointError(
            f"{record.last}: there is no such checkpoint, though the run has finished epochs. Start a new run, or "
            "put the file back."
        )
    log.warning("the run stopped before its first checkpoint: starting from the beginning")
    return None


def read_steps(record: Record | None) -> dict[str, Any]:
    """Return loss and learning rate of every step of a run as arrays, `losses` and `lrs`.

    They stand in its last checkpoint; where that has none, or cannot be read, the arrays are empty.
    """
    import numpy as np

    try:
        history = read_checkpoint(record.last)["callbacks"]["History"] if record else {}
        return {name: np.asarray(history[name], dtype=float).reshape(-1) for name in ("losses", "lrs")}
    except (CnnlabError, KeyError, TypeError, ValueError):
        return {"losses": np.empty(0), "lrs": np.empty(0)}


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a checkpoint under their names in the network."""
    prefix = "network."
    weights = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def seal(content: bytes) -> tuple[bytes, bytes]:
    """Return a zip file that has no comment with the seal as its comment, in two parts."""
    assert content.endswith(_NO_COMMENT)
    body = content[: -len(_NO_COMMENT)] + _LENGTH.to_bytes(2, "little")
    return body, TAG + hashlib.sha256(body).hexdigest().encode()


def has_seal(path: Path) -> bool:
    """Whether a file ends in a seal, right or wrong."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LENGTH))
        return file.read().startswith(TAG) and size > _LENGTH


def is_whole(path: Path) -> bool:
    """Whether a file has every byte that it was sealed with."""
    if not has_seal(path):
        return False
    digest, left = hashlib.sha256(), path.stat().st_size - _LENGTH
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
        return file.read() == TAG + digest.hexdigest().encode()


def load_plain(path: Path, map_location: Any = "cpu") -> Any:
    """Read what `torch.save` wrote, as long as it is containers and tensors; nothing in it is executed.

    Raises:
        CheckpointError: The file is damaged.
        UnsafeError: The file asks for code to be run.
    """
    import torch

    _check_archive(path)
    try:
        # True whatever the environment says: a checkpoint is data.
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"(?i)unsupported|not an allowed global", str(error)):
            raise UnsafeError(f"{path} holds more than tensors and plain containers and was not loaded.") from error
        raise CheckpointError(f"{path} is damaged and cannot be loaded. {_alternative(path)}") from error
    except Exception as error:  # torch promises nothing about which ones, for a damaged file
        raise CheckpointError(f"{path} is damaged ({first_line(error)}). {_alternative(path)}") from error
    _check_tensors(content, path)
    return content


def _is_setting(value: Any) -> bool:
    """Whether a value is a text, a number, or a list or mapping of such."""
    try:
        plain(value, "")
    except DamagedError:
        return False
    return True


def _refused(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what `load_plain` would refuse, and where it stands."""
    import torch

    if type(value) in (dict, OrderedDict):
        for name, element in value.items():
            yield from _refused(name, f"a key of {place}")
            yield from _refused(element, f"{place}.{name}" if place else str(name))
    elif type(value) in (list, tuple):
        for number, element in enumerate(value):
            yield from _refused(element, f"{place}.{number}")
    elif type(value) not in (str, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter):
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception:  # whatever pickling a user's object raises
            yield place, value


def _load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    content = load_plain(path, map_location)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} must be a checkpoint that cnnlab wrote; it has no state_dict.")
    written, installed = str(content.get("pytorch-lightning_version", "0")), version("pytorch-lightning")
    if _release(written) > _release(installed):
        raise CheckpointError(
            f"{path} was written by pytorch-lightning {written}, and this is {installed}: install that one."
        )
    return content


def _check_archive(path: Path) -> None:
    """Refuse a zip file whose content is larger than it: torch compresses nothing, and reads what the directory says.

    A file that is no zip file is torch's to judge.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UnsafeError(f"{path} is packed, or claims to hold more than its size: torch.save writes no such file.")


def _check_tensors(content: Any, path: Path) -> None:
    """Refuse tensors that claim to be larger than their bytes in the file, as those that repeat one value can."""
    import torch

    containers: list[Any] = [[content]]
    seen: set[int] = set()
    while containers:
        container = containers.pop()
        for value in container.values() if isinstance(container, dict) else container:
            if isinstance(value, dict | list | tuple) and id(value) not in seen:
                seen.add(id(value))
                containers.append(value)
            elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
                claimed = value.numel() * value.element_size()
                if claimed > max(MOST_REPEATED_BYTES, value.untyped_storage().nbytes()):
                    raise UnsafeError(f"{path} holds a tensor of {claimed:,} bytes that repeats a few of them.")


def _alternative(path: Path) -> str:
    """Name the next step where a checkpoint cannot be used."""
    others = (
        other for other in path.parent.glob("*.ckpt") if other != path and os.access(other, os.R_OK) and other.is_file()
    )
    whole = sorted(other.name for other in others if is_whole(other))
    return f"Put a copy of it back{f', or take {whole[0]} beside it' if whole else ''}."


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version that say what its checkpoints hold."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
