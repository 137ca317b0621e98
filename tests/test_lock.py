"""A run's folder has one writer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlab import lock
from cnnlab.errors import MachineError

HOLD = "import sys; from pathlib import Path; from cnnlab import lock; lock.take(Path(sys.argv[1])); print(flush=True)"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path):
    command = [sys.executable, "-c", f"{HOLD}; input()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(MachineError, match=f"process {holder.pid} on"):
            lock.take(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock.take(tmp_path) is not None
    assert (tmp_path / lock.NAME).read_text().startswith(f"{os.getpid()} ")


def test_a_process_that_the_holder_started_does_not_keep_the_lock(tmp_path: Path):
    held = lock.take(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False):
        lock.leave(held)
        lock.leave(lock.take(tmp_path))


def test_other_ranks_neither_take_nor_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = lock.take(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    lock.check_free(tmp_path)
    lock.leave(held)
