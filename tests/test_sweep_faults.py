"""Whatever becomes of a trial, or of the sweep itself, the sweep ends in a truthful table."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, read

NETWORK = """
import os
import sys
import time

from torch import nn


class Planted(nn.Sequential):
    def __init__(self, in_channels, num_classes, seed=0, faults=None):
        fault = (faults or {}).get(seed)
        if fault == "raise":
            raise RuntimeError("planted")
        if fault == "abort":
            os.abort()
        if fault == "signal":
            os.kill(os.getpid(), 40)  # a real-time signal, which has no name
        if fault == "exit":
            sys.exit(3)
        super().__init__(nn.Conv2d(in_channels, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, num_classes))
        if fault == "diverge":
            nn.init.constant_(self[3].weight, float("nan"))
        if fault == "slow":
            self.register_forward_pre_hook(lambda *_: time.sleep(0.2))
"""


@pytest.fixture
def home(tmp_path: Path, npz: Path) -> Path:
    (tmp_path / "planted.py").write_text(NETWORK)
    (tmp_path / "small.npz").symlink_to(npz)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "-m", "data=npz", "data.path=small.npz", "data.val_size=80",
        "data.batch_size=32", "trainer.max_epochs=1", "callbacks.figures=null", "callbacks.dashboard=null",
        "model=custom", "model._target_=planted.Planted", "+model.seed=${seed}", *arguments,
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(home)}


def sweep(home: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), cwd=home, env=environment(home), capture_output=True, text=True, timeout=timeout
    )


def statuses(folder: Path) -> dict[str, str]:
    return {path.parent.name: read(path)["status"] for path in folder.glob("*/run.json")}


def killed(home: Path, *arguments: str, after: int) -> None:
    """Start a sweep, and kill it without warning when so many trials are completed."""
    process = subprocess.Popen(
        command(*arguments), cwd=home, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while list(statuses(home / "sweep").values()).count("completed") < after:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()


def finished(folder: Path) -> dict[str, int]:
    """Return when each completed trial's record was written last."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in folder.glob("*/run.json")
        if read(path)["status"] == "completed"
    }


def epochs(folder: Path) -> list[int]:
    with (folder / "history.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("count", [pytest.param(7, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
def test_killed_sweep_with_faults_ends_with_all_its_results(home: Path, count: int):
    place = "hydra.sweep.dir=sweep"
    faults = "+model.faults={1:raise,3:abort,4:exit,5:signal,6:diverge}"
    grid = [f"seed=range({count})", "hydra/launcher=local", "hydra.launcher.n_jobs=2", faults]
    killed(home, *grid, place, after=count // 4)
    before = finished(home / "sweep")
    ended = sweep(home, *grid, "resume=sweep")
    assert ended.returncode == 7, ended.stderr
    after = finished(home / "sweep")
    assert len(after) == count - 5
    assert {name: after[name] for name in before} == before, "no finished trial was touched again"
    assert all(epochs(home / "sweep" / name) == [0] for name in after)
    table = read(home / "sweep" / "sweep.json")
    failed = {row["name"]: row["error"] for row in table["trials"] if row["status"] == "failed"}
    assert set(failed) == {"seed-1", "seed-3", "seed-4", "seed-5", "seed-6"}
    assert "planted" in failed["seed-1"]
    assert failed["seed-3"] == "killed by SIGABRT"
    assert failed["seed-5"] == "killed by signal 40"
    assert "SystemExit" in failed["seed-4"]
    assert "diverged" in failed["seed-6"]
    assert all(name in ended.stderr for name in failed)
    assert f"5 of {count} trials failed" in ended.stderr
    # Once more: nothing that is done is done again, and the failed ones get another chance.
    again = sweep(home, *grid[:-1], "+model.faults={}", "resume=sweep")
    assert again.returncode == 2, "the base has changed"
    assert "model.faults" in again.stderr


@pytest.mark.long
def test_basic_launcher_passes_over_a_trial_that_took_the_process_down_twice(home: Path):
    grid = ["seed=range(4)", "+model.faults={0:exit,1:diverge,2:abort}"]
    for start in ("hydra.sweep.dir=sweep", "resume=sweep"):
        assert sweep(home, *grid, start).returncode == -signal.SIGABRT
    ended = sweep(home, *grid, "resume=sweep")
    assert ended.returncode == 7, ended.stderr
    assert statuses(home / "sweep") == {
        "seed-0": "failed", "seed-1": "failed", "seed-2": "failed", "seed-3": "completed",
    }  # fmt: skip
    assert "took the sweep's process down 2 times" in read(home / "sweep" / "seed-2" / "run.json")["error"]


@pytest.mark.parametrize(
    "signum",
    [pytest.param(signal.SIGINT, marks=pytest.mark.long), pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_stopped_sweep_saves_its_trials_and_goes_on(home: Path, signum: int):
    grid = ["seed=range(3)", "hydra/launcher=local", "hydra.launcher.n_jobs=2", "+model.faults={0:slow,1:slow}"]
    process = subprocess.Popen(
        command(*grid, "trainer.max_epochs=2", "hydra.sweep.dir=sweep"), cwd=home, env=environment(home),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (home / "sweep" / "seed-0" / "history.csv").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "resume with: " in err
    assert "resume=" in err
    assert statuses(home / "sweep") == {"seed-0": "interrupted", "seed-1": "interrupted"}
    table = read(home / "sweep" / "sweep.json")
    assert table["counts"] == {"interrupted": 2, "not started": 1}
    assert table["trials"][-1]["settings"] == {"seed": "2"}
    assert not (home / "sweep" / "seed-2").exists()
    ended = sweep(home, *grid, "trainer.max_epochs=2", "resume=sweep")
    assert ended.returncode == 0, ended.stderr
    assert all(epochs(home / "sweep" / f"seed-{seed}") == [0, 1] for seed in range(3))
    console = (home / "sweep" / "seed-0" / "console.log").read_text()
    assert console.count("epoch 1/2") == 1, "it went on from where it was stopped"


@pytest.mark.parametrize(
    "streams",
    [
        ">/dev/full 2>/dev/full",
        *(pytest.param(text, marks=pytest.mark.slow) for text in (">/dev/full", ">&-", "2>&-", ">&- 2>&-", "| true")),
    ],
)
@pytest.mark.parametrize("launcher", ["local", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_sweep_that_nobody_listens_to_ends_well(home: Path, streams: str, launcher: str):
    line = shlex.join(command("seed=0,1", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"))
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {streams}"], cwd=home, env=environment(home), timeout=200
    )
    assert ended.returncode == 0
    assert read(home / "sweep" / "sweep.json")["counts"] == {"completed": 2}


INTERRUPT = """
import os, signal, sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib.colors":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)


sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_signal_while_matplotlib_is_imported_ends_the_sweep_with_its_code(home: Path):
    grid = ["hydra/launcher=local", "hydra.launcher.n_jobs=1"]
    assert sweep(home, "seed=0,1", *grid, "hydra.sweep.dir=sweep").returncode == 0
    (home / "sitecustomize.py").write_text(INTERRUPT)
    ended = sweep(home, "seed=0,1,2", *grid, "resume=sweep")
    assert ended.returncode == 143, ended.stderr
    assert "resume with: " in ended.stderr
    counts = read(home / "sweep" / "sweep.json")["counts"]
    assert counts in ({"completed": 2, "not started": 1}, {"completed": 3})
