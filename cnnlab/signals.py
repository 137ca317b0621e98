"""SIGINT and SIGTERM, and what Slurm sends: stop at once, or, while a step is under way, at its end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
}

PATIENCE_SECONDS = 8.0
"""How long a step under way may take to its end: less than what is left between SIGTERM and SIGKILL anywhere."""

UNWINDING_SECONDS = 1.0
"""How long what a signal raised is left to clean up behind itself: a scheduler may send two within milliseconds."""

_received: int | None = None
_received_at = 0.0
_raised_at: float | None = None
_deferring = False
_handling = False
_alarm: threading.Timer | None = None
_uninterrupted: set[CodeType] = set()


@contextmanager
def handled(*, last: bool = False) -> Iterator[None]:
    """Turn the signals into `Stopped` within the block.

    Args:
        last: The process ends behind the block. If a signal stopped it, the ones that follow no longer change that
            or its exit code; a Ctrl-C still ends it at once.
    """
    global _received, _raised_at, _handling
    _received, _raised_at, outer, _handling = None, None, _handling, True
    before = {signum: signal.signal(signum, _on_signal) for signum in MEANING}
    try:
        yield
    finally:
        _put_back(before, outer, last and _received is not None)


def uninterrupted(function: Function) -> Function:
    """Let our handlers do nothing from a function's first instruction to its last."""
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
        if last:
            handler = _end_at_once if MEANING[signal.Signals(signum)] == signal.SIGINT else signal.SIG_IGN
        signal.signal(signum, handler)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + received())


def defer(on: bool) -> None:
    """While on, the first signal is only noted: who turned it on calls `raise_if_received` at safe points."""
    global _deferring
    _deferring = on
    if _handling:
        # Lightning puts handlers of its own before ours, and ends a run at its next convenience with exit code 0.
        for signum in MEANING:
            signal.signal(signum, _on_signal)


def silence() -> None:
    """Let none interrupt what is left of the block: to write down how it ended.

    Whoever calls this is to be `uninterrupted`: a signal may come in front of its first line.
    """
    for signum in MEANING:
        signal.signal(signum, signal.SIG_IGN)


def received() -> int:
    """Return the signal that came; 0 if none did."""
    return _received or 0


def waited(seconds: float) -> bool:
    """Whether a signal came, at least so many seconds ago."""
    return _received is not None and time.monotonic() - _received_at >= seconds


def raise_if_received(*, between_steps: bool = False) -> None:
    """Stop now if a signal came.

    That is for signals that were deferred, and for those that stopped nothing: Python drops an exception that a
    handler raises while it calls a destructor or the callback of a weak reference.
    """
    if _received is not None:
        raise Stopped(_received, between_steps=between_steps)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _received, _received_at, _alarm
    while frame is not None:
        if frame.f_code in _uninterrupted:
            return
        frame = frame.f_back
    meant = MEANING[signal.Signals(signum)]
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
