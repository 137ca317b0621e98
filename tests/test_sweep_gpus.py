"""Which GPUs the trials of a sweep get."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from cnnlab.sweep import local
from cnnlab.sweep.local import Local, ProcessPool, visible_gpus
from cnnlab.sweep.pool import devices_per_trial
from cnnlab.sweep.remote import Ray, Slurm

LISTED = """GPU 0: NVIDIA H100 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb-2)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc-3)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-dddd-4/1/0)
"""


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ["0", "1"]), (" 2 , 0", ["2", "0"]), ("", []), ("-1", []), ("0,-1,1", ["0"]),
        ("GPU-aaaa-1,GPU-bbbb-2", ["GPU-aaaa-1", "GPU-bbbb-2"]), ("MIG-GPU-dddd-4/1/0", ["MIG-GPU-dddd-4/1/0"]),
        (None, ["GPU-aaaa-1", "MIG-cccc-3", "MIG-GPU-dddd-4/1/0"]),
    ],
)  # fmt: skip
def test_gpus_are_named_as_the_user_or_the_driver_names_them(
    variable: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == names


def pool_of(gpus: list[str], trainer: dict[str, Any], trials: int, monkeypatch, **options: Any) -> ProcessPool:
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    launcher = Local(**options)
    launcher.config = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1, **trainer}})
    return launcher.pool(trials)


def run_trials(pool: ProcessPool, lengths: list[int], monkeypatch) -> list[list[str]]:
    """Run trials that last so many rounds each; return the GPUs that each one had."""
    owned: dict[str, list[str]] = {}
    left: dict[str, int] = {}

    def fork(argv: list[str], folder: Path, environment: dict[str, str], handle: int | None) -> SimpleNamespace:
        owned[argv[0]] = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return SimpleNamespace(pid=0, exitcode=None, name=argv[0])

    monkeypatch.setattr(pool, "_fork", fork)
    monkeypatch.setattr(pool, "_spawn", fork)
    waiting = [(str(index), length) for index, length in enumerate(lengths)]
    while waiting or left:
        while waiting and len(left) < pool.size:
            name, left[name] = waiting[0][0], waiting.pop(0)[1]
            pool.start(name, [name], Path(), None)
        busy = [gpu for name in left for gpu in owned[name]]
        assert max(busy.count(gpu) for gpu in busy) <= -(-len(busy) // len(pool.gpus)), (
            "no GPU has two more than another"
        )
        for name in list(left):
            left[name] -= 1
            if not left[name]:
                del left[name]
                pool._running[name].process.exitcode = 1 if int(name) % 2 else -9
        pool.wait(0)
    return [owned[str(index)] for index in range(len(lengths))]


@pytest.mark.parametrize("n_jobs", [None, 2, 3, 4])
def test_each_trial_has_a_gpu_of_its_own_evenly_also_after_others_died(n_jobs: int | None, monkeypatch):
    pool = pool_of(["0", "1"], {}, 12, monkeypatch, n_jobs=n_jobs)
    assert pool.size == (n_jobs or 2)
    gpus = run_trials(pool, [3, 1, 1, 2, 4, 1, 1, 3, 2, 1, 1, 1], monkeypatch)
    assert {len(owned) for owned in gpus} == {1}
    assert {owned[0] for owned in gpus} == {"0", "1"}


def test_trials_on_two_devices_have_two_gpus(monkeypatch):
    pool = pool_of(["a", "b", "c", "d", "e"], {"devices": 2}, 9, monkeypatch)
    assert pool.size == 2
    gpus = run_trials(pool, [1, 2, 2, 1, 1, 1], monkeypatch)
    assert all(len(set(owned)) == 2 for owned in gpus)


@pytest.mark.parametrize("devices", ["auto", -1, [1]])
def test_trials_on_all_devices_or_on_named_ones_see_all_and_run_alone(devices: Any, monkeypatch):
    pool = pool_of(["0", "1"], {"devices": devices}, 4, monkeypatch)
    assert pool.size == 1
    assert run_trials(pool, [1, 1], monkeypatch) == [["0", "1"], ["0", "1"]]


def test_a_machine_without_gpus_shares_its_cores(monkeypatch):
    pool = pool_of([], {}, 4, monkeypatch)
    assert pool.size >= 1
    assert pool.gpus == []


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), (2, 2), ("3", 3), ("auto", None), (-1, None), ([0, 2], None), ("0,1", None)]
)
def test_devices_of_a_trial(devices: Any, number: int | None):
    assert devices_per_trial(OmegaConf.create({"devices": devices})) == number


@pytest.mark.parametrize(
    ("accelerator", "cluster_gpus", "asked", "gpus", "room"),
    [
        ("gpu", 4, None, 2, 2), ("auto", 4, None, 2, 2), ("auto", 0, None, 0, 8), ("cpu", 4, None, 0, 8),
        ("gpu", 4, 0.5, 0.5, 8),
    ],
)  # fmt: skip
def test_ray_asks_for_the_gpus_that_a_trial_needs(accelerator, cluster_gpus, asked, gpus, room, monkeypatch):
    needs: dict[str, Any] = {}

    def remote(**options: Any) -> Any:
        needs.update(options)
        return lambda function: SimpleNamespace(remote=function)

    module = SimpleNamespace(
        init=lambda **_: None, cluster_resources=lambda: {"CPU": 8, "GPU": cluster_gpus}, remote=remote, wait=None,
        get=None, cancel=None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", module)
    launcher = Ray(num_gpus=asked)
    launcher.config = OmegaConf.create({"trainer": {"accelerator": accelerator, "devices": 2}})
    assert launcher.pool(100).size == room
    assert needs["num_gpus"] == gpus


@pytest.mark.parametrize(
    ("accelerator", "asked", "gpus"),
    [("gpu", None, 2), ("cuda", None, 2), ("gpu", 1, 1), ("auto", None, None), ("cpu", 3, 3)],
)
def test_slurm_asks_for_the_gpus_that_a_trial_needs(accelerator, asked, gpus, tmp_path: Path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    parameters: dict[str, Any] = {}
    monkeypatch.setattr(submitit.AutoExecutor, "update_parameters", lambda self, **given: parameters.update(given))
    launcher = Slurm(cluster="local", parameters={"gpus_per_node": asked, "timeout_min": 5})
    launcher.config = OmegaConf.create(
        {"trainer": {"accelerator": accelerator, "devices": 2}, "hydra": {"sweep": {"dir": str(tmp_path)}}}
    )
    launcher.pool(3)
    assert parameters.get("gpus_per_node") == gpus
