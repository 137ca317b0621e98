"""Exact resume: a run that is killed again and again ends with the bits of one that was left alone."""

import csv
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.checkpoint import is_whole
from tests.conftest import drawn, read
from tests.prove.child import Child, announce, run
from tests.prove.table import Row, expect

# Everything at once that a step's result could depend on: accumulation, dropout, batch norm, a moving average, a
# schedule, augmentation, validation inside the epoch.
OPTIONS = [
    "data=npz", "data.val_size=200", "data.batch_size=32", "data.eval_batch_size=20", "model.dropout=0.3",
    "augment=[flip_crop,cutout]", "schedule=cosine", "callbacks=[default,ema]", "callbacks.figures=null",
    "callbacks.dashboard=null", "callbacks.checkpoint.every_n_steps=3", "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=0.5", "trainer.max_epochs=6", "optimizer.momentum=0.9",
]  # fmt: skip

TIMES = ("train_seconds", "images_per_second")


def data(folder: Path, count: int = 1000) -> Path:
    """Write easy images, and a fifth as many to test with."""
    path = folder / "small.npz"
    train, test = drawn(count, 10, seed=0), drawn(count // 5, 10, seed=1)
    np.savez(path, X_train=train[0], y_train=train[1], X_test=test[0], y_test=test[1])
    return path


def prove(folder: Path, kills: int, seed: int = 0) -> Iterator[Row]:
    """Kill runs so many times, and compare what becomes of them with a run that was not killed."""
    chance = random.Random(seed)
    options = [*OPTIONS, f"data.path='{data(folder)}'"]
    whole = folder / "whole"
    code, text = run([*options, f"hydra.run.dir='{whole}'"], folder / "whole.txt")
    expect(code == 0, f"the run that is left alone ended with {code}: {text[-2000:]}")
    wanted, seconds = outcome(whole), read(whole / "run.json")["seconds"]

    # A quarter while a checkpoint is written, and more than a tenth in validation; the others anywhere.
    plan = ["c" if n % 10 in (0, 3, 6) else "v" if n % 10 in (2, 7) else "" for n in range(kills)]
    chance.shuffle(plan)
    killed: Counter[str] = Counter()
    runs = whole_files = same = 0
    while plan:
        victim = folder / f"killed{runs}"
        runs += 1
        first = True
        while True:
            arguments = [*options, f"hydra.run.dir='{victim}'"] if first else [f"resume='{victim}'"]
            child = Child(arguments, folder / "killed.txt", announce)
            # Some runs get to their end after a few kills, so that a start, a middle and an end are all killed often.
            goal = plan[-1] if plan and (first or chance.random() < 0.9) else None
            if goal is not None and strike(child, goal, chance, seconds):
                killed[plan.pop()] += 1
                whole_files += check_files(victim)
                # Killed before Hydra had written its record, there is nothing yet to go on with.
                first = not (victim / ".hydra" / "overrides.yaml").is_file()
                continue
            code = child.wait()
            expect(
                code == 0,
                f"a run that was killed {sum(killed.values())} times ended with {code}: {child.text()[-2000:]}",
            )
            break
        difference = compare(wanted, outcome(victim))
        expect(not difference, f"{victim}, killed {sum(killed.values())} times with the others: {difference}")
        same += 1
    total = sum(killed.values())
    yield Row("SIGKILL while a checkpoint is written", killed["c"], killed["c"], "every file whole or unborn")
    yield Row("SIGKILL in validation", killed["v"], killed["v"])
    yield Row("SIGKILL at a moment of chance", killed[""], killed[""])
    yield Row("a state to go on from is whole after the kill", total, total, f"{whole_files} files read")
    yield Row(
        "runs end with the bits of the one left alone", runs, same,
        f"{total / runs:.0f} kills each; {len(wanted['losses'])} losses, {wanted['tensors']} tensors",
    )  # fmt: skip


def strike(child: Child, goal: str, chance: random.Random, seconds: float) -> bool:
    """Kill a run at its next save, in a validation, or at a moment of chance; say whether it was there to be killed."""
    import time

    if goal == "":
        time.sleep(chance.uniform(0.2, 1.5 + seconds / 2))
        if child_ended(child):
            return False
    elif not child.reach(goal, chance.randint(1, 4)):
        return False
    else:
        time.sleep(chance.uniform(0, 0.05 if goal == "c" else 0.03))
    child.kill(signal.SIGKILL)
    code = child.wait()
    return code == -signal.SIGKILL


def child_ended(child: Child) -> bool:
    """Whether a run has ended, without taking its exit code away."""
    import os

    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def check_files(folder: Path) -> int:
    """Check every checkpoint under its final name, and that nothing that was there is gone; return how many."""
    files = list((folder / "checkpoints").glob("*.ckpt"))
    for path in files:
        expect(is_whole(path), f"{path} is not whole")
        torch.load(path, weights_only=True)
    expect(not (folder / "history.csv").exists() or (folder / "checkpoints/last.ckpt").exists() or
           len(rows(folder)) <= 1, f"{folder} lost its last.ckpt")  # fmt: skip
    return len(files)


def rows(folder: Path) -> list[dict[str, str]]:
    """Return history.csv without what the clock says."""
    with (folder / "history.csv").open() as file:
        return [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(file)]


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run ended with, but for what the clock says."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    history = state["callbacks"].pop("History")
    hyper = state.pop("hyper_parameters")
    hyper["config"].pop("resume")
    hyper["config"]["trainer"].pop("default_root_dir")
    hyper["config"].pop("logger")  # which names the folder
    return {
        "state": state,
        "config": hyper,
        "losses": history["losses"],
        "rows": rows(folder),
        "metrics": read(folder / "metrics.json"),
        "tensors": sum(1 for _ in tensors(state)),
    }


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a container."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def compare(one: Any, two: Any, place: str = "") -> str:
    """Return the first place where two outcomes differ; an empty text where they are the same to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return "" if torch.equal(one, two) else f"{place} differs"
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return f"{place} has other keys: {sorted(map(str, one.keys() ^ two.keys()))}"
        found = (compare(one[name], two[name], f"{place}.{name}") for name in one)
        return next(filter(None, found), "")
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        found = (compare(*pair, f"{place}[{at}]") for at, pair in enumerate(zip(one, two, strict=True)))
        return next(filter(None, found), "")
    return "" if one == two else f"{place}: {one!r} and {two!r}"
