"""What can go wrong, each with the exit code that scripts rely on."""

import signal
import sys


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


def print_error(error: BaseException) -> None:
    """Print an error as users see it: each line of its message after the program's name, on standard error."""
    for line in str(error).splitlines():
        print(f"cnnlab: error: {line}", file=sys.stderr)
