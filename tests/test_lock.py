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


def test_a_forked_worker_that_disowns_the_lock_does_not_keep_it(tmp_path: Path):
    held = lock.take(tmp_path)
    assert held is not None
    ready, done = os.pipe(), os.pipe()
    if not (worker := os.fork()):
        lock.disown()
        os.write(ready[1], b".")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(MachineError):
        lock.take(tmp_path)  # still the holder's
    lock.leave(held)
    lock.leave(lock.take(tmp_path))
    os.write(done[1], b".")
    os.waitpid(worker, 0)


def test_other_ranks_neither_take_nor_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = lock.take(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    lock.check_free(tmp_path)
    lock.leave(held)
