"""A trial: which overrides make it, what its folder is called, and what the sweep notes there."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cnnlab.errors import DamagedError
from cnnlab.files import read_json, write_json
from cnnlab.record import TRIAL, Facts

MAX_LETTERS = 100  # of a folder's name


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: The name of its folder.
        overrides: Those that tell it from the sweep's other trials.
        number: Its place in the sweep.
        extra: Overrides that belong to how it is run, not to what it is.
    """

    name: str
    overrides: tuple[str, ...]
    number: int
    extra: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, str]:
        """What varies: keys and values."""
        return dict(map(split_override, self.overrides))


def split_override(override: str) -> tuple[str, str]:
    """Return an override's key without its plus, and its value without quotes."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value.strip().strip("'\"")


def folder_name(overrides: Sequence[str], prefix: str = "") -> str:
    """Return a folder's name that says what varies: readable, safe in every shell and path, and unique.

    It depends on nothing but the trial itself, so that it stays the same when a grid grows.
    """
    settings = [split_override(override) for override in overrides]
    last = [key.rpartition(".")[2] for key, _ in settings]
    parts = [
        f"{short if last.count(short) == 1 else key}-{_rounded(value) if prefix else value}"
        for short, (key, value) in zip(last, settings, strict=True)
    ]
    plain = "_".join([*([prefix] if prefix else []), *parts]) or "trial"
    safe = re.sub(r"[^\w.+-]+", "-", plain, flags=re.ASCII).strip("-.") or "trial"
    # What was replaced or cut off may have told it from another; a prefix tells all but the seeds of one trial.
    if len(safe) > MAX_LETTERS or (safe != plain and not prefix):
        digest = hashlib.blake2b("\n".join(overrides).encode(), digest_size=3).hexdigest()
        safe = f"{safe[: MAX_LETTERS - 7]}-{digest}"
    return safe


def _rounded(value: str) -> str:
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.3g}"
    except ValueError:
        return value


def grid_trials(points: Iterable[Sequence[str]]) -> list[Trial]:
    """Return the trials of a grid, each combination once."""
    overrides = {folder_name(point): tuple(point) for point in points}
    return [Trial(name, point, number) for number, (name, point) in enumerate(overrides.items())]


class Metrics(TypedDict):
    """What a sweep needs of `metrics.json`."""

    objective: float | None


class Note(TypedDict):
    """What `trial.json` holds."""

    number: int
    overrides: list[str]
    settings: dict[str, str]
    starts: NotRequired[int]
    limits: NotRequired[dict[str, Any]]
    pruned: NotRequired[int | None]


class TrialFolder:
    """A trial's folder, as its sweep sees it: a damaged file there costs no more than this trial's result.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = self._read(TRIAL, Note)

    @property
    def run(self) -> dict[str, Any]:
        """`run.json` as it is now; empty where it is missing or damaged."""
        return self._read("run.json", Facts)

    @property
    def objective(self) -> float | None:
        """What the trial reached; None where it was not measured, or where `metrics.json` is damaged."""
        return self._read("metrics.json", Metrics).get("objective")

    def write(self, **facts: Any) -> None:
        """Add to `trial.json`."""
        self.note |= facts
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / TRIAL, self.note)

    def is_done(self, limits: dict[str, Any]) -> bool:
        """Whether the trial was completed in a sweep with these limits (epochs, steps, time), its result undamaged."""
        is_completed = self.run.get("status") == "completed" and self.note.get("limits") == limits
        return is_completed and "objective" in self._read("metrics.json", Metrics)

    def begin(self, trial: Trial) -> None:
        """Note that the trial is about to run."""
        self.write(
            number=trial.number,
            overrides=list(trial.overrides),
            settings=trial.settings,
            starts=self.note.get("starts", 0) + 1,
        )
        # What is said of its last start is not true of this one; a run whose record or result is damaged has lost
        # nothing else, and is resumed from its last checkpoint.
        run = self.run
        if run.get("status") in ("failed", "interrupted") or self._is_damaged():
            run.pop("error", None)
            write_json(self.path / "run.json", run | {"status": "running"})

    def end(self, cause: str | None, limits: dict[str, Any]) -> str:
        """Note that the trial has ended, mark it as failed if it didn't do so itself, and return its status.

        Args:
            cause: What killed it, if anything did.
            limits: Those of the sweep (epochs, steps, time).
        """
        status = self.run.get("status")
        self.write(starts=0, **({"limits": limits} if status == "completed" and cause is None else {}))
        if status in (None, "running"):
            self.fail(cause or "ended without a result")
            return "failed"
        return str(status)

    def fail(self, error: str) -> None:
        """Mark the trial as failed."""
        write_json(self.path / "run.json", self.run | {"status": "failed", "error": error})

    def _read(self, name: str, kind: Any = None) -> dict[str, Any]:
        try:
            return read_json(self.path / name, kind)
        except DamagedError:
            return {}

    def _is_damaged(self) -> bool:
        kinds = {"run.json": Facts, "metrics.json": Metrics}
        return any((self.path / name).exists() and not self._read(name, kind) for name, kind in kinds.items())
