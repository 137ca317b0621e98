"""What only a GPU can show: `pytest -m gpu`, or `bash .ci/gpu`, which prints a table and writes gpu.json.

Each check returns the figures that it measured. It takes about ten minutes; `GPU_DATA` names an npz of CIFAR-10 for the
recipe's accuracy and the speed of the article's network, which else are left out. On the stand-in of `tests/standin`
the checks run as far as they go, so that they are known to be right themselves.
"""

import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from typing_extensions import override

from tests.conftest import ROOT, drawn
from tests.standin import cases, trials

IS_STANDIN = bool(os.environ.get("STANDIN"))
DATA = os.environ.get("GPU_DATA")
Figures = dict[str, Any]


def only_on_a_gpu() -> None:
    """Leave a check out on the stand-in."""
    if IS_STANDIN:
        pytest.skip("the stand-in has no streams, graphs, kernels or memory of its own")


class Place:
    """A folder for the checks, with a small data set."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cnnlab-gpu-"))
        self.npz = self.folder / "small.npz"
        train, test = drawn(4080, 10, seed=0), drawn(200, 10, seed=1)
        np.savez(self.npz, X_train=train[0], y_train=train[1], X_test=test[0], y_test=test[1])
        self.base = [
            "data=npz", f"data.path={self.npz}", "data.val_size=80", "data.batch_size=64",
            "trainer.accelerator=gpu",
        ]  # fmt: skip

    def run(self, *arguments: Any, code: int = 0, verb: bool = False, timeout: float = 400, **environment: str) -> str:
        """Run train.py, or with `verb` a command; return what it printed."""
        program = ["-c", "from cnnlab.cli import app; app()"] if verb else [str(ROOT / "train.py")]
        process = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=os.environ | environment,
        )  # fmt: skip
        assert process.returncode == code, f"exit {process.returncode}: {process.stderr[-1500:]}"
        return process.stdout + process.stderr

    def train(self, name: str, *overrides: str) -> Path:
        """Train into a folder of that name."""
        folder = self.folder / name
        self.run(*self.base, "callbacks.figures=null", *overrides, f"hydra.run.dir={folder}")
        return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's last state."""
    return torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def equal(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    mine, theirs = weights(one), weights(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def describe(place: Place) -> Figures:
    """Which device, which versions."""
    count = torch.cuda.device_count()
    driver = Path("/proc/driver/nvidia/version")
    return {
        "devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pytorch-lightning", "cnnlab")},
    }


def compare_with_cpu(overrides: list[str]) -> Callable[[Place], Figures]:
    """Train five steps here and on the CPU: losses near each other."""

    def check(place: Place) -> Figures:
        result = trials.compare(["matmul_precision=highest", *overrides], place.npz)
        ours, theirs = result["metrics"].get("test/loss", [0.0, 0.0])
        assert abs(ours - theirs) < 0.05, result["metrics"]
        return {"loss": ours, "loss_cpu": theirs, "largest_weight_difference": result["largest"]}

    return check


class Quiet(Callback):
    """Make an error of everything that waits for the device between two steps of an epoch."""

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            torch.cuda.set_sync_debug_mode("error")

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 20:
            torch.cuda.set_sync_debug_mode("default")


def never_wait(place: Place) -> Figures:
    """No step waits for the device, whatever it is made of."""
    only_on_a_gpu()
    for overrides in (
        [],
        ["augment=[flip_crop,cutout,mixup,cutmix]", "trainer.precision=bf16-mixed"],
        ["augment=alternating_flip", "optimizer=adam", "schedule=cosine", "trainer.gradient_clip_val=1"],
        ["model=speednet", "optimizer=muon", "callbacks=[default,lookahead]", "loss.label_smoothing=0.1"],
        ["callbacks=[default,ema]"],
        ["data.resident=host"],
    ):
        lab = trials.build([*overrides, "trainer.limit_train_batches=24"], place.npz, "gpu")
        lab.trainer.callbacks.insert(0, Quiet())  # type: ignore[attr-defined]
        try:
            lab.trainer.fit(lab.classifier, lab.data)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {}


def repeat_and_resume(place: Place) -> Figures:
    """With trainer.deterministic=true two runs, and one that is killed and resumed, have the same bits."""
    common = [
        "trainer.max_epochs=2", "trainer.deterministic=true", "augment=[flip_crop,mixup]", "model.dropout=0.2",
        "callbacks.checkpoint.every_n_steps=5",
    ]  # fmt: skip
    first, second = place.train("first", *common), place.train("second", *common)
    assert equal(first, second), "two runs differ"
    killed = place.folder / "killed"
    command = [sys.executable, "train.py", *place.base, "callbacks.figures=null", *common, f"hydra.run.dir={killed}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (killed / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    place.run(f"resume={killed}")
    assert equal(first, killed), "the resumed run differs"
    return {}


def compile_modes(place: Place) -> Figures:
    """Compiled and captured networks train to losses near those of the plain one."""
    only_on_a_gpu()
    losses = {}
    for mode in ("false", "default", "reduce-overhead", "max-autotune"):
        folder = place.train(f"compile-{mode}", f"model.compile={mode}", "trainer.max_epochs=1")
        losses[mode] = float(next(csv.DictReader((folder / "history.csv").open()))["train/loss"])
        assert abs(losses[mode] - losses["false"]) < 0.05, losses
    return losses


def use_verbs(place: Place) -> Figures:
    """Every verb answers about a run that was trained here, here and on the CPU; another kind of device is refused."""
    folder = place.train("verbs", "trainer.max_epochs=1")
    trained = json.loads((folder / "run.json").read_text())
    assert trained["device"].startswith("cuda:0")
    measured = json.loads((folder / "metrics.json").read_text())
    figures = {}
    for accelerator in ("gpu", "cpu"):
        printed = place.run("evaluate", folder, "--accelerator", accelerator, verb=True)
        assert "Tensor Cores" not in printed
        metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
        gap = max(abs(metrics[name] - measured[f"test/{name}"]) for name in metrics)
        assert gap <= (0 if accelerator == "gpu" or IS_STANDIN else 0.02), gap
        figures[f"evaluation_gap_{accelerator}"] = gap
    place.run("predict", folder, place.npz, verb=True)
    place.run("export", folder, "--format", "safetensors", verb=True)
    place.run("report", folder, verb=True)
    refusal = place.run(f"resume={folder}", "trainer.max_epochs=2", "trainer.accelerator=cpu", code=2)
    assert "this run was trained on cuda" in refusal
    return figures


def benchmark(place: Place) -> Figures:
    """`check` and `benchmark` run on the device."""
    place.run("check", *place.base, "callbacks.figures=null", verb=True)
    figures = {}
    for kind in ("plain", "dataloader"):
        path = place.folder / f"{kind}.json"
        place.run(
            "benchmark", *place.base, "--against", kind, "--rounds", 2, "--seconds", 0.3, "--json", path, verb=True
        )
        figures[kind] = json.loads(path.read_text()).get("time_ratio")
    return figures


def measure_speed(place: Place) -> Figures:
    """Time ratios to the plain loop."""
    only_on_a_gpu()
    if not DATA:
        pytest.skip("GPU_DATA names no npz of CIFAR-10")
    ratios = {}
    for model in ("lenet", "resnet18"):
        for size in (64, 512):
            path = place.folder / f"{model}-{size}.json"
            place.run(
                "benchmark", f"data.path={DATA}", f"model={model}", f"data.batch_size={size}",
                "trainer.accelerator=gpu", "--against", "plain", "--rounds", 5, "--seconds", 1, "--json", path,
                verb=True,
            )  # fmt: skip
            ratios[f"{model}, batch {size}"] = json.loads(path.read_text()).get("time_ratio")
    return ratios


def sweep(place: Place) -> Figures:
    """A sweep trains, in this process and with a GPU for each trial."""
    for launcher in ([], ["hydra/launcher=local"]):
        folder = place.folder / f"sweep{len(launcher)}"
        place.run(
            "-m", "seed=0,1", *place.base, *launcher, "trainer.max_epochs=1",
            "trainer.limit_train_batches=2", "callbacks.figures=null", f"hydra.sweep.dir={folder}",
        )  # fmt: skip
        records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
        assert [record["status"] for record in records] == ["completed"] * 2
        assert all(record["device"].startswith("cuda") for record in records)
    return {}


def use_memory(place: Place) -> Figures:
    """How much memory a training of resnet18 at batch 512 takes, and how much `check` finds beforehand."""
    overrides = ["model=lenet" if IS_STANDIN else "model=resnet18", "data.batch_size=512"]
    base = [line for line in place.base if not line.startswith("data.batch_size")]
    printed = place.run("check", "--json", *base, *overrides, "callbacks.figures=null", verb=True)
    findings = json.JSONDecoder().raw_decode(printed[printed.index("{") :])[0]["findings"]
    outcome = next(finding["outcome"] for finding in findings if finding["subject"] == "memory")
    match = re.search(r"on the device ([\d,]+) MiB", outcome)
    assert match, outcome
    only_on_a_gpu()
    torch.cuda.reset_peak_memory_stats()
    trials.train([*overrides, "trainer.limit_train_batches=3"], place.npz, "gpu")
    peak = torch.cuda.max_memory_allocated() / 2**20
    forecast = float(match[1].replace(",", ""))
    assert 0.5 < forecast / peak < 2, (forecast, peak)
    return {"peak_mib": peak, "check_mib": forecast}


def train_recipe(place: Place) -> Figures:
    """airbench94's recipe, five seeds: accuracy and time."""
    only_on_a_gpu()
    if not DATA:
        pytest.skip("GPU_DATA names no npz of CIFAR-10")
    accuracies, seconds = [], []
    for seed in range(5):
        folder = place.folder / f"recipe{seed}"
        place.run(
            "experiment=airbench94", f"data.path={DATA}", "trainer.accelerator=gpu", "trainer.precision=bf16-mixed",
            f"seed={seed}", "callbacks.figures=null", f"hydra.run.dir={folder}",
        )  # fmt: skip
        accuracies.append(json.loads((folder / "metrics.json").read_text())["test/accuracy"])
        rows = csv.DictReader((folder / "history.csv").open())
        seconds.append(sum(float(row["train_seconds"]) for row in rows))
    assert np.mean(accuracies) > 0.93, accuracies
    return {"accuracy": accuracies, "train_seconds": seconds}


def use_two(place: Place) -> Figures:
    """Two GPUs train as one with the same global batch, and end together on a signal to one rank."""
    only_on_a_gpu()
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    common = ["model.batch_norm=false", "matmul_precision=highest", "trainer.max_epochs=2"]
    one = place.train("one", *common, "data.batch_size=64")
    two = place.train("two", *common, "data.batch_size=32", "trainer.devices=2", "trainer.strategy=ddp")
    losses = [
        [float(row["train/loss"]) for row in csv.DictReader((folder / "history.csv").open())] for folder in (one, two)
    ]
    assert np.allclose(losses[0], losses[1], rtol=1e-2), losses
    stopped = place.folder / "stopped"
    process = subprocess.Popen(
        [sys.executable, "train.py", *place.base, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=500",
         "callbacks.figures=null", f"hydra.run.dir={stopped}"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (stopped / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    return {"losses": losses}


CHECKS: dict[str, Callable[[Place], Figures]] = {
    "device": describe,
    **{name: compare_with_cpu(overrides) for name, overrides in (cases.options() | cases.CROSSED).items()},
    **{name: compare_with_cpu(overrides) for name, overrides in cases.NARROW.items()},
    "no waits": never_wait,
    "the same bits": repeat_and_resume,
    "compiled": compile_modes,
    "verbs": use_verbs,
    "check and benchmark": benchmark,
    "speed": measure_speed,
    "sweeps": sweep,
    "memory": use_memory,
    "airbench94": train_recipe,
    "two GPUs": use_two,
}


MEASURES = {
    "no waits": "DEVICES.md: nothing waits", "compiled": "DEVICES.md: model.compile", "speed": "BENCHMARKS.md: Speed",
    "airbench94": "conf/experiment/airbench94.yaml: its header; BENCHMARKS.md: Recipes",
    "two GPUs": "DEVICES.md: Several devices",
}  # fmt: skip
"""Which lines of the documents a check gives the figures for."""


def print_table(path: Path) -> None:
    """Print what a run of the checks wrote, a line each."""
    for row in json.loads(path.read_text()):
        figures = re.sub(r"[{}\"']", "", json.dumps(row["figures"]))
        measured = f" ({MEASURES[row['check']]})" if row["check"] in MEASURES else ""
        print(f"{row['outcome']:<8}{row['seconds']:7.1f} s  {row['check']:<28} {figures[:120]}{measured}")


def remove(place: Place) -> None:
    """Remove what the checks left."""
    shutil.rmtree(place.folder, ignore_errors=True)


if __name__ == "__main__":
    print_table(Path(sys.argv[1]))
