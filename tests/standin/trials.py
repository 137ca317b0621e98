"""Train on the stand-in GPU and on the CPU, in one process: `python -m tests.standin.trials NPZ RESULT KIND...`.

The result is a JSON file with an object for each kind, and in that one for each case.
"""

import collections
import copy
import json
import math
import os
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests import standin

if __name__ == "__main__":
    standin.install(2)

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback
from torch import Tensor, nn
from typing_extensions import override

import train as script
from cnnlab import fit
from cnnlab.benchmark.sides import PlainSide
from cnnlab.build import Lab, build_lab
from cnnlab.callbacks import Checkpoint
from cnnlab.cli import app
from cnnlab.config import composed, preflight
from tests.launches import Launches
from tests.standin import cases

STEPS = 5


class Window(Callback):
    """Watch the steps between the first and the last of an epoch: data, augmentation, network, optimizer, callbacks."""

    def __init__(self) -> None:
        self.launches = Launches("cuda")
        self.steps = 0

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self.launches.active:
            self.steps += 1
            if is_last:
                self.launches.__exit__(None, None, None)
        elif not is_last:
            self.launches.__enter__()

    def close(self) -> None:
        """Stop watching where an error came between."""
        if self.launches.active:
            self.launches.__exit__(None, None, None)


def build(overrides: list[str], npz: Path, device: str) -> Lab:
    """Build a short run on a device."""
    cfg = copy.deepcopy(compose(tuple(overrides), npz))
    cfg.trainer.accelerator, cfg.trainer.default_root_dir = device, tempfile.mkdtemp()
    lab = build_lab(cfg)
    if isinstance(lab.trainer.checkpoint_callback, Checkpoint):
        lab.trainer.checkpoint_callback.LONG_SECONDS = math.inf
    return lab


@cache
def compose(overrides: tuple[str, ...], npz: Path) -> DictConfig:
    """Compose a short run's config; this takes longer than the run."""
    keys = {line.partition("=")[0] for line in overrides}
    base = [
        "data=npz", f"data.path={npz}", "data.val_size=40", "data.batch_size=8", "data.eval_batch_size=20",
        "trainer.max_epochs=1", "logger=none", f"trainer.limit_train_batches={STEPS}", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    ]  # fmt: skip
    lines = [*(line for line in base if line.partition("=")[0] not in keys), *overrides]
    lines = [line.replace("TEACHER", train_teacher(npz)) if "TEACHER" in line else line for line in lines]
    if "callbacks=none" not in overrides:
        lines.append("callbacks.figures=null")
    return composed(lines, Path(tempfile.mkdtemp()))


@cache
def train_teacher(npz: Path) -> str:
    """Train the network that others learn from, on the CPU; return its folder."""
    folder = Path(tempfile.mkdtemp()) / "teacher"
    words = ["data=npz", f"data.path={npz}", "data.val_size=40", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    assert (
        run_main(script.main, "train.py", *preflight([*words, "callbacks.figures=null", f"hydra.run.dir={folder}"]))
        == 0
    )
    return str(folder)


def network_of(lab: Lab) -> nn.Module:
    """Return the network."""
    network = lab.classifier.network
    assert isinstance(network, nn.Module)
    return network


class Trained(NamedTuple):
    """What came of a training.

    Attributes:
        weights: The network's tensors, on the CPU.
        moved: How far the most changed one of its parameters is from where it began.
        metrics: Of validation and test.
        window: What was seen of the steps.
    """

    weights: dict[str, Tensor]
    moved: float
    metrics: dict[str, float]
    window: Window


def train(overrides: list[str], npz: Path, device: str) -> Trained:
    """Build, fit and test."""
    lab = build(overrides, npz, device)
    before = [parameter.detach().clone() for parameter in network_of(lab).parameters()]
    window = fit_watched(lab)
    weights = {name: value.detach().cpu().clone() for name, value in network_of(lab).state_dict().items()}
    after = [parameter.detach().cpu() for parameter in network_of(lab).parameters()]
    moved = max(float((new.double() - old.double()).abs().max()) for new, old in zip(after, before, strict=True))
    return Trained(weights, moved, fit.test(lab).metrics, window)


def fit_watched(lab: Lab) -> Window:
    """Fit, and return what was seen of the steps."""
    window = Window()
    lab.trainer.callbacks.append(window)  # type: ignore[attr-defined]
    try:
        lab.trainer.fit(lab.classifier, lab.data)
    finally:
        window.close()
    return window


def compare(overrides: list[str], npz: Path) -> dict[str, Any]:
    """Train on both devices."""
    weights, _, metrics, window = train(overrides, npz, "gpu")
    # The CPU has no float16.
    on_cpu = [line for line in overrides if not line.startswith("trainer.precision=16")]
    expected, moved, expected_metrics, _ = train(on_cpu, npz, "cpu")
    gaps = {name: float((weights[name].double() - expected[name].double()).abs().max()) for name in expected}
    by_place: collections.Counter[str] = collections.Counter()
    for (name, place), count in window.launches.operations.items():
        by_place[f"{name} {place}"] += count
    return {
        "steps": window.steps,
        "operations": window.launches.count / max(window.steps, 1),
        "where": dict(by_place.most_common(400)),
        "waits": {f"{reason} at {place}": count for (reason, place), count in window.launches.waits.items()},
        "different": {name: gap for name, gap in gaps.items() if not torch.equal(weights[name], expected[name])},
        "largest": max(gaps.values()),
        "moved": moved,
        "metrics": {name: [metrics.get(name), value] for name, value in expected_metrics.items()},
    }


def count(overrides: list[str], npz: Path) -> dict[str, Any]:
    """Train on the stand-in only."""
    if overrides == cases.PLAIN_LOOP:
        return count_plain(npz)
    window = fit_watched(build(overrides, npz, "gpu"))
    operations = window.launches.count / window.steps
    return {"operations": operations, "waits": {str(key): value for key, value in window.launches.waits.items()}}


def count_plain(npz: Path) -> dict[str, Any]:
    """Train the article's network as `cnnlab benchmark --against plain` does."""
    overrides = ["data=npz", f"data.path={npz}", "data.val_size=40", "data.batch_size=8", "trainer.accelerator=gpu"]
    side = PlainSide(overrides, Path(tempfile.mkdtemp()), 0.0)
    counts = []
    for steps in (3, 13):
        with Launches("cuda") as launches:
            side.train(steps)
        counts.append(launches.count)
    return {"operations": (counts[1] - counts[0]) / 10, "waits": {}}


def resume(overrides: list[str], npz: Path) -> dict[str, Any]:
    """Stop after the first of two epochs, resume from its checkpoint, compare with a run in one go."""
    two = [*overrides, "trainer.max_epochs=2"]
    whole = train(two, npz, "gpu").weights
    first = build([*overrides, "trainer.max_epochs=1"], npz, "gpu")
    first.trainer.fit(first.classifier, first.data)
    second = build(two, npz, "gpu")
    second.trainer.fit(second.classifier, second.data, ckpt_path=first.trainer.checkpoint_callback.last)  # type: ignore[union-attr]
    resumed = network_of(second).state_dict()
    return {"different": {name: 1.0 for name, value in whole.items() if not torch.equal(value, resumed[name].cpu())}}


def use_verbs(overrides: list[str], npz: Path) -> dict[str, Any]:
    """Train, ask every verb about the run, on the CPU and then here, and note what wakes CUDA.

    Whether there is any is asked without; a process that has woken it sees nothing in most of what follows.
    """
    base = Path(tempfile.mkdtemp())
    run, picture = base / "run", str(base / "picture.png")
    folder, other, draw = str(run), train_teacher(npz), ["--output", picture]
    settings = [
        "data=npz", f"data.path={npz}", "data.val_size=40", "trainer.max_epochs=1", "callbacks.figures=null",
        *overrides,
    ]  # fmt: skip
    about_no_run = [
        ["options"], ["schema"], ["completion", "bash"], ["new", str(base / "project")], ["data", "check", str(npz)],
        ["show", "augment", *settings, *draw],
    ]  # fmt: skip
    lines = [
        ["train", *settings, f"hydra.run.dir={folder}"], ["train", f"resume={folder}", "trainer.max_epochs=2"],
        ["train", *settings, "-m", "seed=0,1", f"hydra.sweep.dir={base / 'sweep'}", "trainer.limit_train_batches=1"],
        ["evaluate", other, "--accelerator", "cpu"], ["evaluate", folder, "--accelerator", "cpu"], ["runs", folder],
        ["compare", folder, other], ["report", folder], ["export", folder, "--format", "safetensors"],
        ["predict", folder, str(npz), "--accelerator", "cpu"], ["show", "model", folder, *draw],
        ["show", "filters", folder, *draw], ["show", "activations", folder, picture, *draw],
        ["check", *settings], ["evaluate", folder, "--accelerator", "gpu"],
        ["predict", folder, str(npz), "--accelerator", "gpu"],
    ]  # fmt: skip
    if "trainer.accelerator=cpu" in overrides:
        lines = about_no_run + lines
    rows, forks = [], [use_in_a_fork()]
    for line in lines:
        standin.woken.clear()
        is_training = line[0] == "train"
        argv = ("train.py", *preflight(line[1:])) if is_training else ("cnnlab", *line)
        code = run_main(script.main if is_training else app, *argv)
        row = {"verb": line[0], "line": " ".join(line), "code": code, "woken": [*standin.woken], "gap": 0.0}
        if line[:2] == ["evaluate", folder]:
            measured = json.loads((run / "metrics.json").read_text())
            metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
            row["gap"] = max(abs(metrics[name] - measured[f"test/{name}"]) for name in metrics)
        rows.append(row)
    device = json.loads((run / "run.json").read_text())["device"]
    words = [f"resume={folder}", "trainer.max_epochs=3", f"trainer.accelerator={'cpu' if 'cuda' in device else 'gpu'}"]
    refusal = run_main(script.main, "train.py", *preflight(words))
    return {"device": device, "rows": rows, "forks": [*forks, use_in_a_fork()], "refusal": refusal}


def use_in_a_fork() -> int:
    """Use CUDA in a forked process; return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        torch.cuda.set_device(0)
    except RuntimeError:
        os._exit(1)
    os._exit(0)


def run_main(main: Any, *argv: str) -> int:
    """Call an entry point as a process would; return its exit code."""
    sys.argv = list(argv)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


KINDS: dict[str, tuple[Any, dict[str, list[str]]]] = {
    "exact": (compare, cases.options() | cases.CROSSED),
    "narrow": (compare, cases.NARROW),
    "faults": (compare, cases.FAULTS | cases.REFUSED),
    "verbs": (use_verbs, {device: [f"trainer.accelerator={device}"] for device in ("cpu", "gpu")}),
    "resumed": (resume, cases.RESUMED),
    "growth": (
        count,
        {
            f"{name}, {depth}": [*network, *overrides]
            for name, overrides in cases.GROWING.items()
            for depth, network in cases.DEPTHS.items()
        },
    ),
    "launches": (
        count,
        {name: overrides for name, (overrides, _) in cases.LAUNCHES.items()},
    ),
}  # fmt: skip


def main() -> None:
    """Run the cases of a kind and write what came of them."""
    warnings.filterwarnings("ignore")
    npz, path, *kinds = sys.argv[1:]
    results: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        function, chosen = KINDS[kind]
        results[kind] = {}
        for name, overrides in chosen.items():
            try:
                results[kind][name] = function(overrides, Path(npz))
            except Exception as error:
                results[kind][name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
