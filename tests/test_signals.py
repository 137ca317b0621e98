"""What a signal does, while it is handled at once and while it is deferred."""

import os
import signal
import time
from pathlib import Path

import pytest

from cnnlab import signals
from cnnlab.errors import Stopped
from cnnlab.run import Run
from tests.conftest import read


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)],
)
def test_each_signal_stops_with_its_exit_code(signum: int, code: int):
    with pytest.raises(Stopped) as stopped, signals.handled():
        send(signum)
    assert stopped.value.exit_code == code


def test_a_deferred_signal_waits_for_a_safe_point_however_often_slurm_sends_it():
    with signals.handled():
        signals.defer(True)
        for signum in (signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
            send(signum)
        assert signals.received() == signal.SIGTERM
        with pytest.raises(Stopped):
            signals.raise_if_received(between_steps=True)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once(first: int):
    with signals.handled():
        signals.defer(True)
        send(first)
        with pytest.raises(Stopped):
            send(signal.SIGINT)


def test_a_step_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.05)
    began = time.monotonic()
    with signals.handled():
        signals.defer(True)
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            time.sleep(5)
    assert time.monotonic() - began < 2


def test_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in signals.MEANING]
    with signals.handled():
        signals.silence()
        send(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in signals.MEANING] == before


def cut_off() -> None:
    try:
        send(signal.SIGINT)
    finally:
        raise RuntimeError("a loader that was half made")


def test_an_error_that_follows_a_signal_ends_as_the_signal_does(tmp_path: Path):
    with pytest.raises(SystemExit) as ended, Run(tmp_path):
        cut_off()
    assert ended.value.code == 130
    assert read(tmp_path / "run.json")["status"] == "interrupted"
