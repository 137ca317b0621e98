"""What each verb makes a person at a terminal wait for: `python -m tests.prove waiting`, on a machine that is quiet.

With the folder of an earlier version in WAITING_BASE, that one is measured in turn with this one.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.conftest import ROOT, drawn
from tests.prove.table import Row, expect
from tests.terminal import COMMAND, run_on_terminal

FIRST, SILENCE = 0.5, 3.0  # seconds at most, to the first character and between two
TRAIN = """
import os, runpy, sys
sys.argv[0] = os.path.join(os.environ["PYTHONPATH"], "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DATA = ["data=npz", "data.path=small.npz", "data.val_size=80", "data.batch_size=32"]
SEARCH = ["search=random", "search.n_trials=2", "optimizer.lr=interval(0.01,0.1)", "hydra.sweep.dir=outputs/search"]
RUN, SECOND = "outputs/one", "outputs/two"


class Verb(NamedTuple):
    """A command: its name, its words, what Python runs, what it makes, and the last that it prints if it never ends."""

    name: str
    words: list[str]
    code: str = COMMAND
    makes: str = ""
    last: bytes = b"\0"


IMPORTS = Verb("import torch, pytorch_lightning", [], "import torch, pytorch_lightning")
VERBS = [
    Verb("--help", ["--help"]),
    Verb("train, mistyped key", ["optimizer.lrr=1"], TRAIN),
    Verb("train, one step", [*DATA, "trainer.max_steps=1", "hydra.run.dir=outputs/new"], TRAIN, "outputs/new"),
    Verb("train, resumed", [f"resume={RUN}", "trainer.max_epochs=1"], TRAIN),
    Verb("search, two trials", [*DATA, *SEARCH, "trainer.max_epochs=1"], TRAIN, "outputs/search"),
    Verb("check", ["check", *DATA]),
    Verb("evaluate", ["evaluate", RUN]),
    Verb("predict", ["predict", RUN, "photos"]),
    Verb("predict, ONNX", ["predict", "model.onnx", "photos"]),
    Verb("export", ["export", RUN, "--output", "new.onnx"], makes="new.onnx"),
    Verb("report, evaluated", ["report", RUN]),
    Verb("report, sweep", ["report", "outputs/search"]),
    Verb("compare, evaluated", ["compare", RUN, SECOND]),
    Verb("runs", ["runs"]),
    Verb("decide, done", ["decide", RUN, SECOND, "--max-seeds", "3", "--folder", "outputs/decision"]),
    Verb("benchmark", ["benchmark", *DATA, "--rounds", "1", "--seconds", "0.1"]),
    Verb("show model", ["show", "model", *DATA]),
    Verb("show convolution", ["show", "convolution"]),
    Verb("data check", ["data", "check", "small.npz"]),
    Verb("data pack", ["data", "pack", "photos", "photos.npz", "--size", "32"], makes="photos.npz"),
    Verb("dashboard", ["dashboard", "--port", "0"], last=b"Ctrl-C"),
]


class _There(Exception):  # noqa: N818 - no error: a verb that goes on until it is stopped is where it should be
    pass


def prove(folder: Path, amount: int, seed: int) -> Iterator[Row]:
    """Run every verb `amount` times; the figures are medians: to the first character / longest silence / whole command.

    Raises:
        Broken: A verb failed.
    """
    roots = {"now": ROOT}
    if earlier := os.environ.get("WAITING_BASE"):
        roots["before"] = Path(earlier)
    for name, root in roots.items():
        _prepare(folder / name, root)
    slow = []
    for verb in (IMPORTS, *VERBS):
        seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in roots}
        for name, root in [*roots.items()] * amount:
            if verb.makes:
                shutil.rmtree(folder / name / verb.makes, ignore_errors=True)
                (folder / name / verb.makes).unlink(missing_ok=True)
            measured = _measure(verb, folder / name, root)
            expect(measured or name == "before", f"{verb.name} failed")
            seconds[name] += [measured] if measured else []
        medians = {name: [median(column) for column in zip(*rounds, strict=True)] for name, rounds in seconds.items()}
        if verb is not IMPORTS and (medians["now"][0] > FIRST or medians["now"][1] > SILENCE):
            slow.append(verb.name)
        figure = "; ".join(
            f"{name} {' / '.join(f'{part:.2f}' for part in parts) or 'failed'}" for name, parts in medians.items()
        )
        cells = [f"{part:.2f}" for parts in medians.values() for part in parts]
        print(f"| `{' '.join(verb.words) or verb.name}` | {' | '.join(cells)} |", flush=True)  # for BENCHMARKS.md
        yield Row(verb.name, amount, amount, figure)
    promise = f"first character within {FIRST} s, no silence over {SILENCE} s"
    yield Row(promise, len(VERBS), len(VERBS) - len(slow), ", ".join(slow))


def _measure(verb: Verb, folder: Path, root: Path) -> tuple[float, float, float] | None:
    """Return the seconds to the first character, of the longest silence and of the whole; None if the verb failed."""
    times, content = [0.0], b""

    def see(seconds: float, piece: bytes) -> None:
        nonlocal content
        times.append(seconds)
        content += piece
        if verb.last in content:
            raise _There

    start = time.monotonic()
    with contextlib.suppress(_There):
        run_on_terminal(verb.words, cwd=folder, code=verb.code, seen=see, timeout=300, root=root)
    times.append(time.monotonic() - start)
    if verb is not IMPORTS and "mistyped" not in verb.name and (b"error:" in content or b"Traceback" in content):
        return None
    return times[1], max(later - earlier for earlier, later in pairwise(times)), times[-1]


def _prepare(folder: Path, root: Path) -> None:
    """Make data, pictures, two runs that are evaluated, and an exported network."""
    folder.mkdir()
    train, test = drawn(400, 10, seed=0), drawn(100, 10, seed=1)
    np.savez(folder / "small.npz", X_train=train[0], y_train=train[1], X_test=test[0], y_test=test[1])
    for index, (image, label) in enumerate(zip(*test, strict=True)):
        (folder / "photos" / str(label[0])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((64, 48)).save(folder / "photos" / str(label[0]) / f"{index}.png")
    begin = ["-c", TRAIN, *DATA, "trainer.max_epochs=1"]
    for words in (
        [*begin, f"hydra.run.dir={RUN}"], [*begin, "seed=1", f"hydra.run.dir={SECOND}"],
        *(["-c", COMMAND, "evaluate", run] for run in (RUN, SECOND)),
        ["-c", COMMAND, "export", RUN, "--output", "model.onnx"],
    ):  # fmt: skip
        subprocess.run(
            [sys.executable, *words], cwd=folder, env=os.environ | {"PYTHONPATH": str(root)},
            check=True, capture_output=True,
        )  # fmt: skip
