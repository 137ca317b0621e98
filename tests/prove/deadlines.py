"""Deadlines are kept, also where another process takes half of the machine midway."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cnnlab.data import shapes
from tests.conftest import ROOT, read
from tests.prove.table import Row, expect

BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the proof


def prove(folder: Path, deadlines: int, seed: int = 0) -> Iterator[Row]:
    """Train so many runs to deadlines of 25 to 50 s, most of them beside processes that start midway."""
    chance = random.Random(seed)
    path = shapes.generate(folder / "shapes.npz")
    held = 0
    lines, off = [], []
    cores = len(os.sched_getaffinity(0))
    for number in range(deadlines):
        asked, planted = chance.randint(25, 50), number % 4 != 0
        late = asked * chance.uniform(0.3, 0.7)
        load = os.getloadavg()[0]
        used = measure(asked, late if planted else None, path, folder / str(number), cores)
        if used is None:
            lines.append(f"{asked} s: refused, starting up took too long; load before {load:.1f}")
            print(lines[-1], flush=True)
            continue
        off.append(used - asked)
        held += abs(used - asked) <= max(0.05 * asked, 5)
        steps = read(folder / str(number) / "run.json")["budget"]["steps"]
        beside = f"half taken after {late:.0f} s" if planted else "alone"
        lines.append(f"{asked} s: {used:.1f} s, {steps} steps, {beside}; load before {load:.1f}")
        print(lines[-1], flush=True)
    yield Row(
        "the command ends within 5 s or 5 % of its budget", len(off), held,
        f"{min(off):+.1f} to {max(off):+.1f} s; {deadlines - len(off)} refused",
    )  # fmt: skip


def measure(asked: int, planted_after: float | None, path: Path, folder: Path, cores: int) -> float | None:
    """Return how long the command of a run with a budget took, in seconds; None if it found no time to train."""
    command = [
        sys.executable, str(ROOT / "train.py"), "experiment=quickstart", f"data.path='{path}'", f"budget={asked}s",
        f"hydra.run.dir='{folder}'",
    ]  # fmt: skip
    began = time.monotonic()
    busy: list[subprocess.Popen] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as train:
        try:
            while train.poll() is None:
                if planted_after is not None and not busy and time.monotonic() - began > planted_after:
                    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
                time.sleep(0.01)
            expect(train.returncode in (0, 2), f"a run with a budget of {asked} s ended with {train.returncode}")
            return time.monotonic() - began if train.returncode == 0 else None
        finally:
            for process in busy:
                process.kill()
                process.wait()
