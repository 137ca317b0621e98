"""SIGINT, SIGTERM and SIGHUP, and what Slurm sends: stop at once, or, while a step is under way, at its end."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any, TypeVar

from cnnlab.errors import Stopped

Function = TypeVar("Function", bound=Callable[..., object])

# SIGUSR1 and SIGUSR2 are what `sbatch --signal` is asked to send before a job's time is up. Pre-emption sends SIGTERM,
# with SIGCONT in front, which wakes a process and does nothing else.
MEANING = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGTERM,
    signal.SIGUSR2: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,  # the terminal was closed
}

PATIENCE_SECONDS = 8.0
"""How long a step under way may take to its end: less than what is left between SIGTERM and SIGKILL anywhere."""

UNWINDING_SECONDS = 1.0
"""How long what a signal raised is left to clean up after itself: a scheduler may send two within milliseconds."""

_received: int | None = None
_received_at = 0.0
_late: int | None = None
_raised_at: float | None = None
_deferring = False
_handling = False
_alarm: threading.Timer | None = None
_uninterrupted: set[CodeType] = set()


@contextmanager
def handled(*, last: bool = False) -> Iterator[None]:
    """Turn the signals into `Stopped` within the block.

    Args:
        last: The process ends after the block. If a signal stopped it, the ones that follow no longer change that
            or its exit code; a Ctrl-C still ends it at once.

    Raises:
        Stopped: Within such a block, one came already and stopped nothing.
    """
    global _received, _late, _raised_at, _handling
    if _handling:
        raise_if_received()
    _received, _late, _raised_at, outer, _handling = None, None, None, _handling, True
    before = {signum: signal.signal(signum, _on_signal) for signum in _meant()}
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_on_unraisable, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _put_back(before, outer, last and _received is not None)


def _meant() -> list[signal.Signals]:
    """List the signals to handle; `nohup` has a closed terminal ignored, and means it."""
    return [signum for signum in MEANING if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN]


def uninterrupted(function: Function) -> Function:
    """Let our handlers only note what comes, from a function's first instruction to its last."""
    _uninterrupted.add(function.__code__)
    return function


@uninterrupted
def _put_back(before: dict[signal.Signals, Any], outer: bool, last: bool) -> None:
    global _handling
    defer(False)
    _handling = outer
    if _alarm is not None:
        _alarm.cancel()
    for signum, handler in before.items():
        signal.signal(signum, _after_the_end if last else handler)


def _after_the_end(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT or waited(PATIENCE_SECONDS):
        os._exit(128 + received())


def _on_unraisable(otherwise: Callable[[Any], Any], unraisable: Any) -> None:
    """Send the signal again whose exception was dropped: raised in a destructor or a callback of a weak reference."""
    global _raised_at
    if not isinstance(unraisable.exc_value, Stopped):
        otherwise(unraisable)
        return
    delay_seconds = 0.01
    while True:
        _raised_at = None
        again = threading.Timer(delay_seconds, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        try:
            again.start()
            break
        except Stopped:  # it came before the thread was seen to run, and would be dropped here too
            delay_seconds *= 2


def end_with_parent(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it ends, as other ranks must; on Linux."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signum)


def defer(on: bool) -> None:
    """While on, the first signal is only noted: who turned it on calls `raise_if_received` at safe points."""
    global _deferring
    _deferring = on
    if _handling:
        # Lightning puts handlers of its own before ours, and ends a run at its next convenience with exit code 0.
        for signum in _meant():
            signal.signal(signum, _on_signal)


def received() -> int:
    """Return the signal that came; 0 if none did."""
    return _received or 0


def waited(seconds: float) -> bool:
    """Whether a signal came, at least so many seconds ago."""
    return _received is not None and time.monotonic() - _received_at >= seconds


def raise_if_received() -> None:
    """Stop now if a signal came.

    That is for signals that were deferred, and for those that stopped nothing: they came while a run of a sweep ended,
    or Python dropped the exception, as it does within a destructor or the callback of a weak reference.
    """
    if signum := _received or _late:
        raise Stopped(signum)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _received, _received_at, _late, _alarm
    meant = MEANING[signal.Signals(signum)]
    while frame is not None:
        if frame.f_code in _uninterrupted:
            _late = _late or meant
            return
        frame = frame.f_back
    if _received is None:
        _received, _received_at = meant, time.monotonic()
        if _deferring and meant == signal.SIGTERM:
            _alarm = threading.Timer(PATIENCE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
            _alarm.daemon = True
            _alarm.start()
    elif _raised_at is not None and time.monotonic() - _raised_at < UNWINDING_SECONDS:
        return
    # A second Ctrl-C stops at once. A second SIGTERM does not: Slurm sends it to a job's processes more than once.
    elif meant == signal.SIGINT or waited(PATIENCE_SECONDS):
        _stop()
    if not _deferring:
        _stop()


def _stop() -> None:
    global _raised_at
    assert _received is not None
    _raised_at = time.monotonic()
    raise Stopped(_received)
