"""Training on a GPU, on a stand-in for one: `tests/standin` says what that shows, and what it can't."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnlab.commands import COMMANDS
from tests import gpu, standin
from tests.conftest import ROOT, read, run_process
from tests.standin import cases

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA of its own: pytest -m gpu"),
    pytest.mark.skipif(standin.compiler() is None, reason="no C++ compiler to make the stand-in GPU with: install g++"),
]


def run(npz: Path, tmp_path: Path, *kinds: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Run the cases of some kinds in a process of its own: PyTorch asks for CUDA's hooks once."""
    path = tmp_path / "results.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.standin.trials", str(npz), str(path), *kinds],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"STANDIN_LIBRARY": str(standin.library())},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(path.read_text())
    for kind in {*kinds} - {"faults"}:
        for name, content in results[kind].items():
            assert "error" not in content, f"{name}: {content['traceback']}"
    return results


@pytest.mark.slow
def test_a_gpu_trains_and_resumes_to_the_bits_of_the_cpu_and_no_step_waits_for_it(npz: Path, tmp_path: Path):
    results = run(npz, tmp_path, "exact", "narrow", "resumed")
    for name, result in results["exact"].items():
        assert result["steps"] >= 3, name
        assert result["moved"] > 0, name
        assert not result["waits"], f"{name}: {result['waits']}"
        if "muon" in name or name in cases.MUON:  # its iteration is in bfloat16 on a GPU
            assert result["largest"] <= 0.01, f"{name}: {result['largest']}"
        else:
            assert not result["different"], f"{name}: {result['different']}"
            assert all(ours == theirs for ours, theirs in result["metrics"].values()), f"{name}: {result['metrics']}"
    for name, result in results["narrow"].items():
        assert result["moved"] > 0, name
        assert result["largest"] <= 0.05, f"{name}: {result['largest']}"
        # float16's scaler asks in each step whether it is to be taken.
        waits = sum(result["waits"].values()) / result["steps"]
        assert waits <= (1 if name.startswith("16-mixed") else 0), f"{name}: {result['waits']}"
    for name, result in results["resumed"].items():
        assert not result["different"], f"{name}: a resumed run ends with other bits than one in one go"


@pytest.mark.slow
def test_operations_do_not_grow_with_the_number_of_parameters(npz: Path, tmp_path: Path):
    """What looks at every parameter does so in lists: to a deeper network it adds what it adds to a shallow one."""
    operations = {name: result["operations"] for name, result in run(npz, tmp_path, "growth")["growth"].items()}
    for name in cases.GROWING:
        added = [operations[f"{name}, {depth}"] - operations[f"sgd, {depth}"] for depth in cases.DEPTHS]
        assert added[0] == added[1], f"{name}: {added} operations more than with plain SGD"


def test_a_step_launches_few_operations(npz: Path, tmp_path: Path):
    results = run(npz, tmp_path, "launches")["launches"]
    for name, result in results.items():
        assert result["operations"] <= cases.LAUNCHES[name][1], f"{name}: {result['operations']}"
        assert not result["waits"], f"{name}: {result['waits']}"
    assert results["lenet"]["operations"] <= 1.05 * results["a plain loop"]["operations"]


def test_planted_faults_are_caught_and_two_gpus_for_one_run_refused_without_nccl(npz: Path, tmp_path: Path):
    results = run(npz, tmp_path, "faults")["faults"]
    assert "found at least two devices, cuda:0 and cpu" in results["HostIndex"]["error"]
    assert "Expected a 'cuda' device type for generator" in results["HostGenerator"]["error"]
    assert any("_local_scalar_dense at faults.py" in wait for wait in results["ReadBack"]["waits"])
    assert any("index by a mask at faults.py" in wait for wait in results["ReadMask"]["waits"])
    refusal = results["two GPUs"]["error"]
    assert refusal.startswith("MachineError: trainer.devices=2: this PyTorch")
    assert "no NCCL" in refusal
    assert "trainer.devices=1" in refusal


@pytest.mark.slow
def test_every_verb_answers_on_either_device_and_only_what_needs_the_gpu_wakes_it(npz: Path, tmp_path: Path):
    """A command that needs no GPU starts sooner without one, takes no memory there, and may fork."""
    results = run(npz, tmp_path, "verbs")["verbs"]
    for device, result in results.items():
        assert result["device"].startswith({"cpu": "cpu", "gpu": "cuda:0"}[device])
        assert not [row for row in result["rows"] if row["code"] or row["gap"]]
        assert result["refusal"] == 2, "a run resumes on its own kind of device only"
    *others, check, evaluate, _ = results["cpu"]["rows"]
    assert not [row for row in others if row["woken"]]
    assert set(check["woken"]) <= {"_lazy_init"}, "Adam asks every device whether it captures a graph: torch 2.13"
    assert evaluate["woken"]
    # Three train in processes of their own, as `train` does; one serves until a signal ends it.
    left_out = {"benchmark", "decide", "ablate", "dashboard"}
    assert {row["verb"] for row in results["cpu"]["rows"]} == {"train", *COMMANDS} - left_out
    assert results["cpu"]["forks"] == [0, 1], "as on a GPU, a process can use it only if it was forked before"


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_each_trial_trains_on_a_gpu_of_its_own_also_after_one_was_killed(
    start: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Real processes: each locks its GPU while it trains, and one kills itself meanwhile."""
    tool, locks, folder = tmp_path / "nvidia-smi", tmp_path / "locks", tmp_path / "sweep"
    tool.write_text("#!/bin/sh\necho 'GPU 0: stand-in (UUID: GPU-a)'\necho 'GPU 1: stand-in (UUID: GPU-b)'\n")
    tool.chmod(0o755)
    locks.mkdir()
    for name, value in standin.environment(2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    done = run_process(
        "-m", *small, "trainer.limit_train_batches=3", "callbacks.figures=null", "callbacks.dashboard=null",
        "logger=none", "trainer.accelerator=gpu", "hydra/launcher=local", f"hydra.launcher.start={start}",
        "seed=range(6)", "+callbacks.claim._target_=tests.standin.claim.Claim", f"+callbacks.claim.folder={locks}",
        "+callbacks.claim.dies=2", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert read(folder / "sweep.json")["counts"] == {"completed": 5, "failed": 1}
    records = {path.parent.name: read(path) for path in folder.glob("*/run.json")}
    assert {name for name, record in records.items() if record["status"] == "completed"} == {
        f"seed-{seed}" for seed in (0, 1, 3, 4, 5)
    }
    assert all(record["device"].startswith("cuda:0") for record in records.values())
    seeds = {path.name: path.read_text().split() for path in locks.iterdir()}
    assert sorted(seed for owned in seeds.values() for seed in owned) == list("012345")
    assert set(seeds) == {"GPU-a", "GPU-b"}
    assert all(len(owned) > 1 for owned in seeds.values())
    assert all("2" not in owned[-1:] for owned in seeds.values()), "the GPU of the killed one is used again"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_checks_for_a_real_gpu_go_to_their_end_here(tmp_path: Path):
    """All of `.ci/gpu`, so that who has a GPU runs a script that is right; what the stand-in has not is left out."""
    result = tmp_path / "gpu.json"
    process = subprocess.run(
        ["bash", ".ci/gpu", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, env=standin.environment() | {"GPU_JSON": str(result)},
    )  # fmt: skip
    rows = {row["check"]: row["outcome"] for row in json.loads(result.read_text())}
    left_out = ("no waits", "compiled", "speed", "memory", "airbench94", "two GPUs")
    assert rows == {check: "skipped" if check in left_out else "passed" for check in gpu.CHECKS}, process.stdout[-3000:]
    assert process.returncode == 0
    table = process.stdout.splitlines()[-len(rows) :]
    assert [line.split()[0] for line in table] == list(rows.values())
