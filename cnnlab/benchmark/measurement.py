"""Let sides train in turn, and report their times."""

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

from cnnlab.config import project
from cnnlab.errors import CnnlabError, ConfigError

Kind = Literal["lab", "plain", "dataloader"]
Progress = Callable[[str], object]
"""Called with what is being measured."""

FEWEST_STEPS = 3  # of a block
SOUND_TOLERANCE = 0.05
"""Share by which the loss after 20 steps may differ from that of float32."""
FASTER = 1.02
"""Ratio of speeds from which a setting counts as faster: less is noise."""


@dataclass
class Side:
    """One way to train, in a separate process that waits for its turn.

    Args:
        kind: `lab`, the Trainer as train.py runs it; `plain`, a loop in PyTorch; `dataloader`, Lightning over a
            DataLoader that collates sample by sample.
        overrides: Of train.py.

    Raises:
        CnnlabError: The side cannot be built; the error is the one that train.py would end with.
    """

    kind: Kind
    overrides: Sequence[str]
    blocks: list[float] = field(default_factory=list)
    """Seconds a step, a value for each block."""

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        lines = [*self.overrides, *project.words()]
        self._process = context.Process(target=_serve, args=(theirs, self.kind, lines), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()

    @property
    def step_seconds(self) -> float:
        """Seconds a step, the median of the blocks."""
        return statistics.median(self.blocks)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the side in its process, and return the result.

        Raises:
            CnnlabError: The method raised it, or the process died.
        """
        self._pipe.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise CnnlabError(f"the process of {self.kind} died (exit code {self._process.exitcode}).") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def start_sides(*kinds: tuple[Kind, Sequence[str]]) -> Iterator[list[Side]]:
    """Start the sides of a comparison, and end them with the block."""
    started: list[Side] = []
    try:
        for kind, overrides in kinds:
            started.append(Side(kind, overrides))
        yield started
    finally:
        for side in started:
            side.close()


def take_turns(competitors: Sequence[Side], rounds: int, seconds: float, progress: Progress) -> None:
    """Let the sides train in turn, and fill their `blocks`; a block takes about `seconds`."""
    for side in competitors:
        side.blocks.clear()
    steps = [max(FEWEST_STEPS, round(seconds / side.call("train", FEWEST_STEPS))) for side in competitors]
    for number in range(rounds):
        for side, count in zip(competitors, steps, strict=True):
            side.blocks.append(side.call("train", count))
            progress(f"round {number + 1} of {rounds}: {side.kind} {1000 * side.blocks[-1]:.2f} ms a step")


def measure(
    overrides: Sequence[str],
    against: Sequence[Kind] = (),
    *,
    rounds: int = 5,
    seconds: float = 4.0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure a config, in turn with the loops that it is compared with.

    Args:
        overrides: Of train.py.
        against: The loops.
        rounds: Blocks of each side; medians over them are reported.
        seconds: About how long a block takes.
        progress: Called with what is being measured.

    Returns:
        What `cnnlab benchmark --json` writes: times in ms (`_ms`) or seconds (`_seconds`), memory in MiB (`_mib`),
        `ratio` of our time to the other's, the median over the rounds.
    """
    with start_sides(("lab", overrides), *((kind, overrides) for kind in against)) as started:
        lab = started[0]
        take_turns(started, rounds, seconds, progress)
        step, images = lab.step_seconds, lab.facts["images_per_step"]
        progress("the parts of a step")
        parts = lab.call("parts", max(FEWEST_STEPS, round(seconds / step)))
        # The parts are measured in a separate loop: their sum may be more than a step.
        parts["everything else"] = max(0.0, 1000 * step - sum(parts.values()))
        flops = images * lab.facts["flops_per_image"] / step
        limit = lab.call("matmul_flops")
        progress("evaluation and prediction")
        return {
            "overrides": list(overrides),
            "hardware": lab.facts["hardware"],
            "versions": list_versions(),
            "precision": lab.facts["precision"],
            "batch_size": lab.facts["batch_size"],
            "images_per_second": images / step,
            "step_ms": 1000 * step,
            "step_ms_rounds": [1000 * block for block in lab.blocks],
            "parts_ms": parts,
            "flops_per_image": lab.facts["flops_per_image"],
            "flops_per_second": flops,
            "matmul_flops_per_second": limit,
            "share_of_matmul_rate": flops / limit,
            "start_up_seconds": lab.facts["start_up_seconds"],
            **lab.call("inference", seconds),
            "peak_mib": lab.call("peak_mib"),
            "against": {other.kind: _compare(lab, other) for other in started[1:]},
        }


def _compare(lab: Side, other: Side) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(lab.blocks, other.blocks, strict=True)]
    return {
        "step_ms": 1000 * other.step_seconds,
        "step_ms_rounds": [1000 * block for block in other.blocks],
        "ratio": statistics.median(ratios),
        "ratio_rounds": ratios,
    }


@dataclass
class Candidate:
    """A setting of the switches that was tried.

    Attributes:
        overrides: The setting.
        images_per_second: Its speed; None where it cannot be used.
        baseline_images_per_second: Speed of the best setting so far, measured in turn with it.
        ratio: Of the two speeds, the median over the rounds.
        verdict: `faster`, `no faster`, or why it cannot be used.
    """

    overrides: list[str]
    images_per_second: float | None = None
    baseline_images_per_second: float | None = None
    ratio: float | None = None
    verdict: str = ""


def try_switches(
    overrides: Sequence[str],
    switches: Sequence[str],
    *,
    seconds: float = 3.0,
    progress: Progress = lambda line: None,
) -> tuple[list[Candidate], list[str]]:
    """Try switches one after the other, each value in turn with the best so far, and keep what is faster and sound.

    A setting is sound if its loss after 20 steps is within 5 % of that of float32 on the same batches; only faster
    settings are tested for it.

    Args:
        overrides: Of train.py.
        switches: Of `SWITCHES`, in the order of trying.
        seconds: About how long a setting is measured.
        progress: Called with what was tried.

    Returns:
        All settings that were tried, and the overrides of the fastest.

    Raises:
        ConfigError: There is no such switch.
    """
    if unknown := [name for name in switches if name not in SWITCHES]:
        raise ConfigError(f"--sweep takes {', '.join(SWITCHES)}, separated by commas; got {', '.join(unknown)}.")
    best: list[str] = []
    candidates: list[Candidate] = []
    for switch in switches:
        with start_sides(("lab", [*overrides, *best])) as (baseline,):
            values = [Candidate([*best, line]) for line in SWITCHES[switch] if line not in baseline.facts["switches"]]
            for candidate in values:
                _try(candidate, baseline, overrides, seconds)
                progress(f"{candidate.overrides[-1]}: {candidate.verdict}")
        candidates += values
        # By the ratio: what was measured at different times is not comparable.
        faster = [candidate for candidate in values if candidate.verdict == "faster"]
        best = max(faster, key=lambda candidate: candidate.ratio or 0.0, default=Candidate(best)).overrides
    return candidates, best


SWITCHES: dict[str, list[str]] = {
    "precision": [f"trainer.precision={name}" for name in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")],
    "channels_last": ["model.channels_last=true", "model.channels_last=false"],
    "compile": ["model.compile=false", "model.compile=true"],
    "batch_size": [f"data.batch_size={2**power}" for power in range(5, 12)],
}
"""What `try_switches` can try."""


def _try(candidate: Candidate, baseline: Side, overrides: Sequence[str], seconds: float) -> None:
    try:
        with start_sides(("lab", [*overrides, *candidate.overrides])) as (other,):
            take_turns([baseline, other], 3, seconds / 3, lambda line: None)
            speeds = [[side.facts["images_per_step"] / block for block in side.blocks] for side in (baseline, other)]
            candidate.baseline_images_per_second, candidate.images_per_second = map(statistics.median, speeds)
            candidate.ratio = statistics.median(after / before for before, after in zip(*speeds, strict=True))
            if candidate.ratio <= FASTER:
                candidate.verdict = "no faster"
                return
            loss, reference = other.call("losses")
    except CnnlabError as error:
        candidate.verdict = f"does not run here: {str(error).splitlines()[0][:150]}"
        return
    if abs(loss - reference) <= SOUND_TOLERANCE * abs(reference):
        candidate.verdict = "faster"
    else:
        candidate.verdict = f"not sound: loss {loss:.3f} after 20 steps, in float32 {reference:.3f}"


def list_versions() -> dict[str, str]:
    """Return the versions that decide how fast a step is."""
    packages = ("torch", "pytorch-lightning", "cnnlab")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _serve(pipe: Connection, kind: Kind, overrides: list[str]) -> None:
    """Be a side: build what trains, send its facts, and answer calls until the pipe is closed."""
    process_start = time.perf_counter()
    try:
        # Progress bars are part of what is measured, but must not be seen.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), tempfile.TemporaryDirectory() as folder:
            from cnnlab.benchmark import sides  # imports torch, which counts as start-up

            side = sides.KINDS[kind](overrides, Path(folder), process_start)
            pipe.send(side.facts())
            while True:
                method, arguments = pipe.recv()
                pipe.send(getattr(side, method)(*arguments))
    except EOFError:
        return
    except CnnlabError as error:
        pipe.send(type(error)(str(error)))
    except Exception as error:
        traceback.print_exc(limit=-3)
        pipe.send(CnnlabError(f"{type(error).__name__}: {error}"))
