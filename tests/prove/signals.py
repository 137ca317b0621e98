"""Signals in every phase of a run: the right exit code in time, nothing half-written, and a run that can go on."""

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cnnlab.checkpoint import is_whole
from tests.conftest import ROOT, read
from tests.prove.child import Child, announce, run
from tests.prove.resume import data
from tests.prove.table import Row, expect

OPTIONS = [
    "data=npz", "data.val_size=200", "data.batch_size=32", "data.eval_batch_size=20", "callbacks.figures=null",
    "callbacks.dashboard=null", "callbacks.checkpoint.every_n_steps=5", "trainer.max_epochs=3",
    "trainer.num_sanity_val_steps=2",
]  # fmt: skip

# How the place is found: a letter that the run tells, how often at most, and seconds that may pass behind it.
PLACES = {
    "start, data, sanity check": ("", 1, 1.5),
    "training": ("t", 40, 0.02),
    "validation": ("v", 3, 0.03),
    "a save": ("c", 6, 0.05),
    "test": ("e", 8, 0.01),
}
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143, "SIGINT twice": 130, "SIGTERM twice": 143}


def prove(folder: Path, each: int, seed: int = 0) -> Iterator[Row]:
    """Send so many signals of each kind, spread over the phases; below 5, only the two kinds that come most."""
    chance = random.Random(seed)
    options = [*OPTIONS, f"data.path='{data(folder)}'"]
    for kind, code in CODES.items() if each >= 5 else list(CODES.items())[:2]:
        seconds, resumed = [], 0
        for n in range(each):
            place = list(PLACES)[(n + 1) % len(PLACES)]
            victim = folder / f"{kind}{n}"
            seconds.append(stop(options, victim, kind, code, place, chance, folder / "out.txt"))
            if n % 10 == 5 and (victim / ".hydra" / "overrides.yaml").is_file():
                resumed += goes_on(victim, folder / "out.txt")
        slow = sorted(seconds)[max(0, int(0.95 * len(seconds)) - 1)]
        expect(slow <= 10, f"{kind}: 95 % of the runs ended within {slow:.1f} s")
        yield Row(
            f"{kind}: exit code {code}", each, len(seconds),
            f"median {statistics.median(seconds):.2f} s, 95 % {slow:.2f} s, longest {max(seconds):.2f} s; "
            f"{resumed} went on to the end",
        )  # fmt: skip
    if each < 5:
        return
    yield from imports(folder, options, max(1, each // 20))
    yield long_validation(folder, options)
    yield from ranks(folder, options)


def stop(options: list[str], victim: Path, kind: str, code: int, place: str, chance: random.Random, out: Path) -> float:
    """Stop a run at a place by a signal; return the seconds from the signal to its end."""
    letter, most, spread = PLACES[place]
    child = Child([*options, f"hydra.run.dir='{victim}'"], out, announce)
    if letter:
        expect(child.reach(letter, chance.randint(1, most)), f"{place} was never reached: {child.text()[-1000:]}")
    else:
        # Python itself is not yet ready for a signal in the first moment.
        while not (victim / ".hydra").is_dir():
            time.sleep(0.01)
    time.sleep(chance.uniform(0, spread))
    sent = time.monotonic()
    for _ in range(2 if "twice" in kind else 1):
        child.kill(getattr(signal, kind.split()[0]))
        time.sleep(0.002)
    ended = child.wait(30)
    seconds = time.monotonic() - sent
    expect(ended == code, f"{kind} in {place} ended with {ended}: {child.text()[-2000:]}")
    expect("Traceback" not in child.text(), f"{kind} in {place} printed a traceback: {child.text()[-2000:]}")
    record = victim / "run.json"
    status = read(record)["status"] if record.exists() else "interrupted"
    expect(status in ("interrupted", "completed"), f"{kind} in {place} left run.json at {status}")
    for path in victim.rglob("*"):
        expect(not re.search(r"\.part$|\.\d+$", path.name) or path.name.startswith("events"), f"{path} is left")
        expect(path.suffix != ".ckpt" or is_whole(path), f"{path} is not whole")
    return seconds


def goes_on(victim: Path, out: Path) -> int:
    """Resume a run that was stopped; return 1."""
    code, text = run([f"resume='{victim}'"], out)
    expect(code == 0, f"{victim} did not go on: {text[-2000:]}")
    expect(read(victim / "run.json")["status"] == "completed", f"{victim} is not completed")
    return 1


def imports(folder: Path, options: list[str], each: int) -> Iterator[Row]:
    """Signals while Python imports: processes that are not forked. By its own handlers, Python dies of the signal."""
    for kind, code in (("SIGINT", 130), ("SIGTERM", 143)):
        for n in range(each):
            victim = folder / f"import{kind}{n}"
            process = start([*options, f"hydra.run.dir='{victim}'"])
            time.sleep(0.6 + 3 * n / each)
            sent = time.monotonic()
            process.send_signal(getattr(signal, kind))
            process.communicate(timeout=30)
            expect(process.returncode in (code, 128 - code), f"{kind} in imports: {process.returncode}")
            expect(time.monotonic() - sent < 10, f"{kind} in imports took {time.monotonic() - sent:.1f} s")
        yield Row(f"{kind} while modules are imported", each, each)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start train.py in a process group of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def long_validation(folder: Path, options: list[str]) -> Row:
    """SIGTERM in a validation that would take a minute: it ends early, and goes on from the step in front of it."""
    import torch

    def crawl(tell) -> None:
        from cnnlab.callbacks import Checkpoint
        from cnnlab.classifier import Classifier

        announce(tell)
        Checkpoint.LONG_SECONDS = 0.0
        plain = Classifier.validation_step

        def slow(self: Classifier, batch, batch_idx: int) -> None:
            time.sleep(3)
            plain(self, batch, batch_idx)

        Classifier.validation_step = slow  # type: ignore[method-assign]

    victim = folder / "long"
    options = [*options, "trainer.num_sanity_val_steps=0", "callbacks.checkpoint.every_n_steps=null"]
    child = Child([*options, f"hydra.run.dir='{victim}'"], folder / "out.txt", crawl)
    expect(child.reach("v"), "no validation")
    sent = time.monotonic()
    child.kill(signal.SIGTERM)
    code, seconds = child.wait(30), time.monotonic() - sent
    expect((code, seconds < 10) == (143, True), f"a long validation ended with {code} after {seconds:.1f} s")
    step = int(torch.load(victim / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    expect(step == 800 // 32 - 1, f"it goes on from step {step}")
    goes_on(victim, folder / "out.txt")
    return Row("SIGTERM in a validation of a minute", 1, 1, f"{seconds:.1f} s; one step is repeated")


def ranks(folder: Path, options: list[str]) -> Iterator[Row]:
    """Two processes on the CPU: a signal to one stops both, and the death of one ends the other."""
    both = [*options, "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=500",
            "trainer.num_sanity_val_steps=0"]  # fmt: skip
    for promise, signum, whom, codes in (
        ("SIGTERM to the second of two ranks", signal.SIGTERM, 1, (143,)),
        ("SIGTERM to the first of two ranks", signal.SIGTERM, 0, (143,)),
        ("the second of two ranks dies", signal.SIGKILL, 1, (5, 7)),
        ("the first of two ranks dies", signal.SIGKILL, 0, (-9,)),
    ):
        victim = folder / promise
        process = start([*both, f"hydra.run.dir='{victim}'"])
        end = time.monotonic() + 120
        while not (victim / "history.csv").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        second = children(process.pid)
        expect(len(second) == 1, f"{promise}: there are {len(second)} other processes: {process.poll()}")
        sent = time.monotonic()
        os.kill(second[0] if whom else process.pid, signum)
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - sent
        expect(process.returncode in codes, f"{promise}: exit code {process.returncode}: {errors[-2000:]}")
        while Path(f"/proc/{second[0]}").exists() and time.monotonic() - sent < 30:
            time.sleep(0.1)
        expect(not Path(f"/proc/{second[0]}").exists(), f"{promise}: an orphan is left after {seconds:.1f} s")
        yield Row(promise, 1, 1, f"exit code {process.returncode} after {seconds:.1f} s, no orphan")


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that run Python."""
    lists = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    found = [int(child) for some in lists for child in some]
    return [child for child in found if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
