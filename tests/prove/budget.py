"""Training to a deadline, exactly: a run that is killed again and again is repeated, in one go, to the same bits."""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import read
from tests.prove.child import Child, announce, run
from tests.prove.resume import OPTIONS, compare, data, outcome
from tests.prove.table import Row, expect

SECONDS = 8
PLACES = {
    "t": "in a step", "c": "in a save", "v": "in a validation", "e": "in the test", "T": "by SIGTERM",
}  # fmt: skip


def prove(folder: Path, kills: int, seed: int = 0) -> Iterator[Row]:
    """Kill runs with a budget so many times, and repeat each by the record that it left."""
    chance = random.Random(seed)
    options = [*(line for line in OPTIONS if "max_epochs" not in line), f"data.path='{data(folder)}'"]
    killed: Counter[str] = Counter()
    steps: list[int] = []
    late: list[float] = []
    while sum(killed.values()) < kills:
        victim, again = folder / f"killed{len(steps)}", folder / f"again{len(steps)}"
        arguments = [*options, f"budget={SECONDS}s", f"hydra.run.dir='{victim}'"]
        for _ in range(min(8, kills - sum(killed.values()))):
            child = Child(arguments, folder / "killed.txt", announce)
            place = chance.choice("ttccvveT")
            if not strike(child, place, chance):
                break
            killed[place] += 1
            if (victim / ".hydra" / "overrides.yaml").is_file():
                arguments = [f"resume='{victim}'"]
        code, text = run([f"resume='{victim}'"], folder / "last.txt")
        expect(code == 0, f"a run that was killed ended with {code}: {text[-2000:]}")
        code, text = run([*options, f"budget='{victim}'", f"hydra.run.dir='{again}'"], folder / "again.txt")
        expect(code == 0, f"a run that is repeated ended with {code}: {text[-2000:]}")
        difference = compare(outcome_by_step(victim), outcome_by_step(again))
        expect(not difference, f"{victim}, killed {dict(killed)} with the others: {difference}")
        facts = read(victim / "run.json")["budget"]
        steps.append(facts["steps"])
        late.append(facts["used"] - SECONDS)
    for place in killed:
        yield Row(f"ended {PLACES[place]}", killed[place], killed[place])
    yield Row(
        "runs are repeated in one go to the same bits", len(steps), len(steps),
        f"{min(steps)} to {max(steps)} steps; {min(late):+.1f} to {max(late):+.1f} s at the end",
    )  # fmt: skip


def strike(child: Child, place: str, chance: random.Random) -> bool:
    """End a run at a place; say whether it got there."""
    times = 1 if place == "e" else chance.randint(1, 4) if place in "cv" else chance.randint(1, 150)
    if not child.reach(place.lower(), times):
        child.wait()
        return False
    time.sleep(chance.uniform(0, 0.03))
    child.kill(signal.SIGTERM if place == "T" else signal.SIGKILL)
    return child.wait() in (-signal.SIGKILL, 143)


def outcome_by_step(folder: Path) -> dict[str, Any]:
    """Return what a run with a budget ended with, but for what the clock says."""
    content = outcome(folder)
    content["state"]["callbacks"]["Budget"].pop("clock")
    content["config"]["config"].pop("budget")
    return content
