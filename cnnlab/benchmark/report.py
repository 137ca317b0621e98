"""Sides that take turns, and what their times add up to."""

import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from cnnlab.errors import CnnlabError, ConfigError

Kind = Literal["lab", "plain", "dataloader"]
Told = Callable[[str], object]

FEWEST = 3  # steps of a block
SOUND_TOLERANCE = 0.05
"""Share by which the loss after 20 steps may differ from that of float32."""
FASTER = 1.02
"""What counts as faster: less is noise."""


@dataclass
class Side:
    """One way to train, in a process of its own that waits for its turn.

    Args:
        kind: `lab`, the Trainer as train.py runs it; `plain`, a loop in PyTorch; `dataloader`, Lightning over a
            DataLoader that collates sample by sample.
        overrides: Of train.py.

    Raises:
        CnnlabError: It cannot be built; the error is the one that train.py would end with.
    """

    kind: Kind
    overrides: Sequence[str]
    blocks: list[float] = field(default_factory=list)
    """Seconds a step, a value for each block."""

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.kind, list(self.overrides)), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._answer()

    @property
    def step_seconds(self) -> float:
        """Seconds a step, the median of the blocks."""
        return statistics.median(self.blocks)

    def ask(self, question: str, *arguments: Any) -> Any:
        """Let the process do something and return its answer.

        Raises:
            CnnlabError: It could not, or it died.
        """
        self._pipe.send((question, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise CnnlabError(f"the process of {self.kind} died (exit code {self._process.exitcode}).") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def sides(*wanted: tuple[Kind, Sequence[str]]) -> Iterator[list[Side]]:
    """Start the sides of a comparison, and end them with the block."""
    started: list[Side] = []
    try:
        for kind, overrides in wanted:
            started.append(Side(kind, overrides))
        yield started
    finally:
        for side in started:
            side.close()


def take_turns(competitors: Sequence[Side], rounds: int, seconds: float, told: Told) -> None:
    """Let the sides train in turn, about so many seconds a block; fills their `blocks`."""
    for side in competitors:
        side.blocks.clear()
    steps = [max(FEWEST, round(seconds / side.ask("train", FEWEST))) for side in competitors]
    for number in range(rounds):
        for side, count in zip(competitors, steps, strict=True):
            side.blocks.append(side.ask("train", count))
            told(f"round {number + 1} of {rounds}: {side.kind} {1000 * side.blocks[-1]:.2f} ms a step")


def report(
    overrides: Sequence[str],
    against: Sequence[Kind] = (),
    *,
    rounds: int = 5,
    seconds: float = 4.0,
    told: Told = lambda line: None,
) -> dict[str, Any]:
    """Measure a config, in turn with the loops that it is held against.

    Args:
        overrides: Of train.py.
        against: The loops.
        rounds: Blocks of each side; medians over them are reported.
        seconds: About how long a block takes.
        told: Is told what is being measured.

    Returns:
        What `cnnlab benchmark --json` writes: times in ms (`_ms`) or seconds (`_seconds`), memory in MiB (`_mib`),
        `ratio` of our time to the other's, the median over the rounds.
    """
    with sides(("lab", overrides), *((kind, overrides) for kind in against)) as started:
        lab = started[0]
        take_turns(started, rounds, seconds, told)
        step, images = lab.step_seconds, lab.facts["batch_size"]
        told("the parts of a step")
        parts = lab.ask("parts", max(FEWEST, round(seconds / step)))
        # The parts are measured one by one, in a loop of their own: their sum may be more than the whole.
        parts["everything else"] = max(0.0, 1000 * step - sum(parts.values()))
        flops = images * lab.facts["flops_per_image"] / step
        limit = lab.ask("matmul_flops")
        told("evaluation and prediction")
        return {
            "overrides": list(overrides),
            "hardware": lab.facts["hardware"],
            "versions": versions(),
            "precision": lab.facts["precision"],
            "batch_size": images,
            "images_per_second": images / step,
            "step_ms": 1000 * step,
            "step_ms_rounds": [1000 * block for block in lab.blocks],
            "parts_ms": parts,
            "flops_per_image": lab.facts["flops_per_image"],
            "flops_per_second": flops,
            "matmul_flops_per_second": limit,
            "share_of_matmul_rate": flops / limit,
            "start_up_seconds": lab.facts["start_up_seconds"],
            **lab.ask("inference", seconds),
            "peak_mib": lab.ask("peak_mib"),
            "against": {other.kind: _held_against(lab, other) for other in started[1:]},
        }


def _held_against(lab: Side, other: Side) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(lab.blocks, other.blocks, strict=True)]
    return {
        "step_ms": 1000 * other.step_seconds,
        "step_ms_rounds": [1000 * block for block in other.blocks],
        "ratio": statistics.median(ratios),
        "ratio_rounds": ratios,
    }


@dataclass
class Tried:
    """A setting of the switches, and what came of it: `faster`, `no faster`, or why it can't be had."""

    overrides: list[str]
    images_per_second: float | None = None
    verdict: str = ""


def sweep(
    overrides: Sequence[str],
    switches: Sequence[str],
    *,
    seconds: float = 3.0,
    told: Told = lambda line: None,
) -> tuple[list[Tried], list[str]]:
    """Try switches one after the other, each value in turn with the best so far, and keep what is faster and sound.

    Sound is a setting whose loss after 20 steps is within 5 % of that of float32 on the same batches; what is no faster
    is not asked for it.

    Args:
        overrides: Of train.py.
        switches: Of `SWITCHES`, in the order of trying.
        seconds: About how long a setting is measured.
        told: Is told what was tried.

    Returns:
        All that was tried, and the overrides of the fastest.

    Raises:
        ConfigError: There is no such switch.
    """
    if unknown := [name for name in switches if name not in SWITCHES]:
        raise ConfigError(f"--sweep takes {', '.join(SWITCHES)}, separated by commas; got {', '.join(unknown)}.")
    best: list[str] = []
    tried: list[Tried] = []
    for switch in switches:
        with sides(("lab", [*overrides, *best])) as (held,):
            attempts = [Tried([*best, line]) for line in SWITCHES[switch] if line not in held.facts["switches"]]
            for attempt in attempts:
                _try(attempt, held, overrides, seconds)
                told(f"{attempt.overrides[-1]}: {attempt.verdict}")
        tried += attempts
        best = max(
            (one for one in attempts if one.verdict == "faster"),
            key=lambda one: one.images_per_second or 0.0,
            default=Tried(best),
        ).overrides
    return tried, best


SWITCHES: dict[str, list[str]] = {
    "precision": [f"trainer.precision={name}" for name in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")],
    "channels_last": ["model.channels_last=true", "model.channels_last=false"],
    "compile": ["model.compile=false", "model.compile=true"],
    "batch_size": [f"data.batch_size={2**power}" for power in range(5, 12)],
}
"""What `sweep` can try."""


def _try(attempt: Tried, held: Side, overrides: Sequence[str], seconds: float) -> None:
    try:
        with sides(("lab", [*overrides, *attempt.overrides])) as (other,):
            take_turns([held, other], 3, seconds / 3, lambda line: None)
            before, after = (side.facts["batch_size"] / side.step_seconds for side in (held, other))
            attempt.images_per_second = after
            if after <= FASTER * before:
                attempt.verdict = "no faster"
                return
            loss, reference = other.ask("losses")
    except CnnlabError as error:
        attempt.verdict = f"does not run here: {str(error).splitlines()[0][:150]}"
        return
    if abs(loss - reference) <= SOUND_TOLERANCE * abs(reference):
        attempt.verdict = "faster"
    else:
        attempt.verdict = f"not sound: loss {loss:.3f} after 20 steps, in float32 {reference:.3f}"


def versions() -> dict[str, str]:
    """Return the versions that decide how fast a step is."""
    packages = ("torch", "pytorch-lightning", "cnnlab")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _serve(pipe: Connection, kind: Kind, overrides: list[str]) -> None:
    """Be a side: build what trains, say what it is, and answer questions until nobody asks."""
    begun = time.perf_counter()
    try:
        # Progress bars cost what they cost, but are not to be seen.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), tempfile.TemporaryDirectory() as folder:
            from cnnlab.benchmark import sides  # imports torch, which counts as start-up

            one = sides.KINDS[kind](overrides, Path(folder), begun)
            pipe.send(one.facts())
            while True:
                question, arguments = pipe.recv()
                pipe.send(getattr(one, question)(*arguments))
    except EOFError:
        return
    except CnnlabError as error:
        pipe.send(type(error)(str(error)))
    except Exception as error:
        traceback.print_exc(limit=-3)
        pipe.send(CnnlabError(f"{type(error).__name__}: {error}"))
