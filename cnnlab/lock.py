"""Two runs never share a folder: a lock that the kernel lets go when its holder dies, however it dies."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from cnnlab.errors import MachineError

NAME = ".lock"
PATIENCE_SECONDS = 0.2

_held: set[int] = set()

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_primary() -> bool:
    """Whether this is the one of a run's processes that writes."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def forget_stale_ranks() -> None:
    """Remove what says that this is one of several processes where nothing says that there are several.

    A shell keeps such a variable of an earlier job; Lightning would take this process for one that writes nothing.
    """
    in_group = "MASTER_ADDR" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if not in_group and os.environ.get("SLURM_NTASKS", "1") == "1":
        for name in RANKS:
            if os.environ.get(name, "0") != "0":
                del os.environ[name]


def take(folder: Path) -> int | None:
    """Take a folder for this process; return what to `leave` it with, None where the file system has no locks.

    Raises:
        MachineError: Another process holds it.
        OSError: The folder may not be written.
    """
    # Not inheritable: a process that is started from here does not keep the lock. Not through a link: see config.
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        _lock(descriptor)
    except BlockingIOError:
        holder = os.read(descriptor, 100).decode(errors="replace").strip()
        os.close(descriptor)
        raise MachineError(
            f"{folder} is being written by another run, process {holder or 'unknown'}. Wait for it, stop it, or "
            "choose another hydra.run.dir."
        ) from None
    except OSError:  # a network drive without locks
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode())
    _held.add(descriptor)
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock a file; a process that its last holder started has it for a moment, until it becomes its own program."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def leave(descriptor: int | None) -> None:
    """Let a folder go. The file stays: to remove it could take it from under somebody who is about to lock it."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        _held.discard(descriptor)
        os.close(descriptor)


def disown() -> None:
    """Close the locks that this forked process shares with the one that took them, which alone is to hold them."""
    while _held:
        os.close(_held.pop())


def check_free(folder: Path) -> None:
    """Raise `MachineError` if another process holds a folder that exists."""
    if (folder / NAME).is_file() and is_primary():
        leave(take(folder))
