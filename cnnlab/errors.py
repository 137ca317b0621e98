"""What can go wrong, each with the exit code that scripts rely on."""

import errno
import os
import re
import signal
from pathlib import Path

DENIED = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR,
    errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST,
)  # fmt: skip
"""What a machine answers that lets a file not be written or read."""


class CnnlabError(Exception):
    """An error a user can act on: one or two lines that say what, where, what was expected and what came."""

    exit_code = 1


class ConfigError(CnnlabError, ValueError):
    """The config or the command line is wrong."""

    exit_code = 2


class DataError(CnnlabError, ValueError):
    """The data is missing, broken or not what it should be."""

    exit_code = 3


class CheckpointError(CnnlabError, ValueError):
    """The checkpoint is missing, broken or another model's."""

    exit_code = 4


class DamagedError(CheckpointError):
    """A file of a run's folder is damaged, or none that cnnlab wrote."""


class MachineError(CnnlabError, RuntimeError):
    """The machine lacks something: device, memory, disk, permission."""

    exit_code = 5


class DivergedError(CnnlabError, ArithmeticError):
    """The loss or a gradient is not finite."""

    exit_code = 6


class PartialError(CnnlabError, RuntimeError):
    """A sweep, or a batch of inputs, succeeded only in part."""

    exit_code = 7


class UnsafeError(CnnlabError, ValueError):
    """Refused for safety: a file that asks for code to be run, or for more memory than it can need."""

    exit_code = 8


class Stopped(BaseException):
    """A signal asked the run to stop. No `Exception`, so that no library takes it for a failure and goes on.

    Args:
        signum: The signal.
        between_steps: Whether the run stands between two training steps, so that its state can be saved.
    """

    def __init__(self, signum: int, *, between_steps: bool = False) -> None:
        super().__init__(signum)
        self.signum = signum
        self.between_steps = between_steps

    def __str__(self) -> str:
        """Return the signal's name."""
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells have it."""
        return 128 + self.signum


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message."""
    return next(iter(str(error).splitlines()), "")[:200]


def translate(error: BaseException) -> CnnlabError:
    """Return an error as one of ours, with a message a user can act on."""
    if isinstance(error, CnnlabError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in DENIED:
        return _denied(error)
    if is_out_of_memory(error):
        return MachineError(f"out of memory: try half the data.batch_size. ({text[:200]})")
    if isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|ProcessGroup|Connection (closed|reset) by peer", text):
        return MachineError(
            f"another of the run's processes died, or cannot be reached. Continue with resume=FOLDER. ({text[:200]})"
        )
    if type(error).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on"):
        return ConfigError(text)
    if isinstance(error, ModuleNotFoundError):
        return MachineError(f"a package is missing: {text[:300]}")
    if text.startswith("Error(s) in loading state_dict"):
        return CheckpointError(f"the checkpoint is another network's: {text[:300]}")
    return CnnlabError(f"unexpected {type(error).__name__}: {text[:500]}")


def _denied(error: OSError) -> MachineError:
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    path = Path(name).absolute()
    while not os.access(path, os.F_OK) and path != path.parent:
        path = path.parent
    if name and not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        return MachineError(f"cannot read {name}: {error.strerror}. Change who may read {path}, or name another.")
    return MachineError(
        f"cannot write{name and ' '}{name}: {error.strerror}. Free space there, or choose another place: "
        "hydra.run.dir in training, --output in the commands."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, on the processor or a device."""
    message = str(error)
    said = any(part in message for part in ("can't allocate memory", "out of memory", "not enough memory"))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)
