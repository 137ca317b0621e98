"""SIGINT and SIGTERM: stop at once, or, while a step is under way, at its end."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cnnlab.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: int | None = None
_received_at = 0.0
_deferring = False
_handling = False


@contextmanager
def handled() -> Iterator[None]:
    """Turn the signals into `Stopped` within the block."""
    global _received, _handling
    _received, _handling = None, True
    before = {signum: signal.signal(signum, _on_signal) for signum in SIGNALS}
    try:
        yield
    finally:
        _handling = False
        defer(False)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def defer(on: bool) -> None:
    """While on, the first signal is only noted: who turned it on calls `raise_if_received` at safe points."""
    global _deferring
    _deferring = on
    if _handling:
        # Lightning puts a handler of its own before ours, and ends a run at its next convenience with exit code 0.
        for signum in SIGNALS:
            signal.signal(signum, _on_signal)


def received() -> int:
    """Return the signal that came; 0 if none did."""
    return _received or 0


def raise_if_received(*, between_steps: bool = False, grace_seconds: float = 0.0) -> None:
    """Stop now if a signal came, at least so many seconds ago.

    That is for signals that were deferred, and for those that stopped nothing: Python drops an exception that a
    handler raises while it calls a destructor or the callback of a weak reference.
    """
    if _received is not None and time.monotonic() - _received_at >= grace_seconds:
        raise Stopped(_received, between_steps=between_steps)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _received, _received_at
    second = _received is not None
    _received, _received_at = signum, time.monotonic()
    if second or not _deferring:
        raise Stopped(signum)
