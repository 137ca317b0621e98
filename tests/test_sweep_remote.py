"""Sweeps on a cluster: what can be shown of it on one machine."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

from cnnlab.config import preflight
from cnnlab.errors import ConfigError
from cnnlab.sweep import Local, Ray, Slurm
from cnnlab.sweep.remote import Task
from tests.conftest import ROOT, read, run_process

QUICK = [
    "data.val_size=80", "data.batch_size=32", "trainer.max_epochs=1", "callbacks.figures=null",
    "callbacks.dashboard=null", "logger=none",
]  # fmt: skip


@pytest.mark.parametrize("launcher", ["slurm", "ray", "local"])
def test_presets_compose_and_take_their_keys(launcher: str):
    preflight(["-m", "seed=0,1", f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=3"])
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.n_job is no key"):
        preflight(["-m", "seed=0,1", f"hydra/launcher={launcher}", "hydra.launcher.n_job=3"])


@pytest.mark.parametrize("launcher", [Local, Slurm, Ray])
@pytest.mark.parametrize("n_jobs", [0, -1])
def test_a_sweep_of_no_trials_at_a_time_is_refused_and_does_not_wait_forever(launcher, n_jobs: int):
    with pytest.raises(ConfigError, match=rf"n_jobs must be at least 1, got {n_jobs}\."):
        launcher(n_jobs=n_jobs).setup(hydra_context=Mock(), task_function=Mock(), config=OmegaConf.create())


def grid(npz: Path, folder: Path, *launcher: str) -> dict:
    ended = run_process(
        "-m", "data=npz", f"data.path='{npz}'", *QUICK, "optimizer.lr=0.1,0.001", "seed=0,1",
        f"hydra.sweep.dir='{folder}'", *launcher,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return read(folder / "sweep.json")


def comparable(table: dict) -> list[tuple]:
    return [(row["name"], row["status"], row["objective"], row["metrics"]) for row in table["trials"]]


@pytest.mark.long
def test_submitits_local_executor_ends_with_the_same_table(npz: Path, tmp_path: Path):
    here = grid(npz, tmp_path / "here")
    there = grid(
        npz, tmp_path / "there", "hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.n_jobs=2"
    )
    assert comparable(there) == comparable(here)


@pytest.mark.long
def test_ray_ends_with_the_same_table(npz: Path, tmp_path: Path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    here = grid(npz, tmp_path / "here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = tempfile.mkdtemp(prefix="ray")  # pytest's own is longer than a socket's path may be
    head = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats",
            f"--temp-dir={place}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 90
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < until
                assert head.poll() is None
                time.sleep(0.5)
        time.sleep(3)  # the port is open before the node is there
        there = grid(npz, tmp_path / "there", "hydra/launcher=ray", f"hydra.launcher.address='127.0.0.1:{port}'")
    finally:
        head.terminate()
        head.wait(30)
        shutil.rmtree(place, ignore_errors=True)
    assert comparable(there) == comparable(here)


@pytest.mark.long
def test_a_job_that_is_queued_again_goes_on(npz: Path, tmp_path: Path):
    folder = tmp_path / "trial"
    folder.mkdir()
    argv = [
        "data=npz", f"data.path='{npz}'", *QUICK, "trainer.max_epochs=400", f"hydra.run.dir='{folder}'",
    ]  # fmt: skip
    code = (
        "import sys, signal, threading\n"
        "from pathlib import Path\n"
        "from cnnlab.sweep.remote import Task\n"
        f"task = Task({str(ROOT / 'train.py')!r}, {argv!r}, Path({str(folder)!r}), Path({str(tmp_path)!r}))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: (task.checkpoint(), sys.exit(0)))\n"
        "sys.exit(task())"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR2)
    job.wait(90)
    assert read(folder / "run.json")["status"] == "interrupted"
    before = len((folder / "history.csv").read_text().splitlines()) - 1
    argv[argv.index("trainer.max_epochs=400")] = f"trainer.max_epochs={before + 2}"
    assert Task(str(ROOT / "train.py"), argv, folder, tmp_path)() == 0
    rows = (folder / "history.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(before + 2))
    assert (folder / "console.log").read_text().count("epoch 1/") == 1
