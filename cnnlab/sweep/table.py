"""A sweep's trials as rows, put together over their seeds: read from its folder alone, at any time."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnlab.errors import ConfigError
from cnnlab.files import read_json
from cnnlab.record import SWEEP_RECORD, TRIAL, Record, typed
from cnnlab.stats import mean_interval
from cnnlab.sweep.trial import split_override

NOT_STARTED = "not started"


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        name: The name of its folder.
        status: `completed`, `pruned`, `failed`, `interrupted`, `running` or `not started`.
        number: Its place in the sweep.
        settings: The overrides that tell it from others.
        error: What went wrong.
        objective: What the sweep is about; None where it was not measured.
        metrics: All metrics that were measured.
        epochs: How many were trained.
        seconds: Duration of the whole run.
        images_per_second: Training speed, median over the epochs.
        started: When it began, in seconds since the epoch.
        history: The rows of `history.csv`.
    """

    name: str
    status: str
    number: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    objective: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None
    started: float | None = None
    history: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Group:
    """Trials that differ in nothing but the seed.

    Attributes:
        settings: What they share.
        rows: Those with an objective.
        mean: Mean of the objective.
        sd: Its standard deviation over the seeds; None for one.
        half: Half the width of the mean's 95 % interval (Student's t); None for one.
        test_accuracy: Mean over the seeds, where it was measured.
    """

    settings: Mapping[str, str]
    rows: Sequence[Row]
    mean: float
    sd: float | None
    half: float | None
    test_accuracy: float | None


@dataclass(frozen=True)
class Table:
    """A sweep's trials, and what they were begun with.

    Attributes:
        folder: The sweep's folder.
        record: The sweep's record.
        keys: The settings that differ between the trials.
        rows: The best first, then those without an objective, of a grid those that were not started among them.
    """

    folder: Path
    record: Mapping[str, Any]
    keys: Sequence[str]
    rows: Sequence[Row]

    @property
    def failed(self) -> list[Row]:
        """The trials that failed."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def interrupted(self) -> list[Row]:
        """The trials that a signal stopped."""
        return [row for row in self.rows if row.status == "interrupted"]

    @property
    def progress(self) -> str:
        """How many trials there are; of a search, how many of those that it shall have."""
        search = self.record.get("search")
        if not search or search["sampler"] == "grid":
            return f"{len(self.rows)} trials"
        proposed = {row.number // (self.record.get("each") or 1) for row in self.rows}
        runs = "" if len(self.rows) == len(proposed) else f", {len(self.rows)} runs"
        return f"{len(proposed)} of {self.record['planned']} trials{runs}"

    @property
    def metric(self) -> str:
        """The objective's name."""
        return str(self.record["objective"]["metric"])

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.record["objective"]["mode"] == "max" else -1

    @cached_property
    def groups(self) -> list[Group]:
        """The trials that were completed, put together over their seeds, the best first."""
        members: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            if row.status == "completed" and row.objective is not None:
                shared = tuple((key, value) for key, value in row.settings.items() if key != "seed")
                members.setdefault(shared, []).append(row)
        groups = [_group(dict(shared), rows) for shared, rows in members.items()]
        return sorted(groups, key=lambda group: -self.sign * group.mean)

    @property
    def has_seeds(self) -> bool:
        """Whether some trials differ in nothing but the seed."""
        return any(len(group.rows) > 1 for group in self.groups)

    @property
    def winner(self) -> str | None:
        """The command that repeats the best trial: with several seeds, the first of the best group."""
        if not self.groups:
            return None
        best = min(self.groups[0].rows, key=lambda row: row.number)
        overrides = read_json(self.folder / best.name / TRIAL)["overrides"]
        varied = {split_override(line)[0] for line in overrides}
        base = [line for line in self.record["base"] if split_override(line)[0] not in varied]
        return f"{self.record['program']} {typed([*base, *overrides])}"


def read(folder: Path) -> Table:
    """Read a sweep's folder, whether the sweep is running, has ended, or was killed.

    Raises:
        ConfigError: It is no sweep's folder.
    """
    record = read_json(folder / SWEEP_RECORD)
    if not record:
        raise ConfigError(f"{folder} is no sweep's folder: there is no {SWEEP_RECORD} in it.")
    rows = [_row(path.parent) for path in sorted(folder.glob(f"*/{TRIAL}"))]
    sign = 1 if record["objective"]["mode"] == "max" else -1
    started = {row.name for row in rows}
    rows += [Row(**trial, status=NOT_STARTED) for trial in record.get("trials", ()) if trial["name"] not in started]
    rows.sort(
        key=lambda row: (
            row.status == NOT_STARTED,
            row.objective is None,
            0 if row.objective is None else -sign * row.objective,
            row.number,
        )
    )
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    differing = [key for key in keys if len({row.settings.get(key) for row in rows}) > 1]
    return Table(folder, record, differing or keys, rows)


def _group(settings: Mapping[str, str], rows: Sequence[Row]) -> Group:
    mean, sd, half = mean_interval([row.objective for row in rows if row.objective is not None])
    tested = [row.metrics["test/accuracy"] for row in rows if row.metrics.get("test/accuracy") is not None]
    return Group(settings, rows, mean, sd, half, statistics.fmean(tested) if tested else None)


def _row(folder: Path) -> Row:
    try:
        return _read_row(folder)
    except (ConfigError, KeyError, TypeError, ValueError) as error:  # damaged: the other trials keep their rows
        return Row(folder.name, "failed", error=str(error))


def _read_row(folder: Path) -> Row:
    note = read_json(folder / TRIAL)
    record = Record(folder)
    run = record.run
    status = record.status or ("running" if note.get("starts", 1) else NOT_STARTED)
    if note.get("pruned") is not None and status == "completed":
        status = "pruned"
    speeds = [float(row["images_per_second"]) for row in record.history if row.get("images_per_second")]
    objective = record.objective
    started = run.get("started")
    return Row(
        name=folder.name,
        number=note.get("number", 0),
        settings=note.get("settings", {}),
        status=status,
        error=run.get("error") if status == "failed" else None,
        objective=objective if isinstance(objective, int | float) and status in ("completed", "pruned") else None,
        metrics={name: value for name, value in record.metrics.items() if isinstance(value, int | float)},
        epochs=len(record.history),
        seconds=run.get("seconds") or 0.0,
        images_per_second=statistics.median(speeds) if speeds else None,
        started=datetime.fromisoformat(started).timestamp() if started else None,
        history=record.history,
    )
