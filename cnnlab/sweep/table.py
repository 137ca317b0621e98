"""A sweep's trials as rows, put together over their seeds: read from its folder alone, at any time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnlab.errors import CnnlabError, ConfigError, DamagedError
from cnnlab.files import check_type, read_json
from cnnlab.record import SWEEP_RECORD, TRIAL, Record, limits_of, typed
from cnnlab.stats import mean_interval
from cnnlab.sweep.folder import read_record
from cnnlab.sweep.trial import Metrics, Note, split_override

NOT_STARTED = "not started"


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        name: The name of its folder.
        status: `completed`, `pruned`, `failed`, `interrupted`, `running` or `not started`.
        number: Its place in the sweep.
        settings: What varied: keys and values.
        overrides: The same as the command line has it.
        error: What went wrong.
        objective: What the sweep is about; None where it was not measured.
        metrics: All metrics that were measured.
        epochs: How many were trained.
        seconds: Duration of the whole run.
        images_per_second: Training speed, median over the epochs.
        started: When it began, in seconds since 1970.
        history: The rows of `history.csv`; NaN for what is no number.
        limits: Those that it was trained to (epochs, steps, time), as far as known.
        images: How many of each split were trained on or evaluated, as far as known.
        is_comparable: Whether it was trained to the sweep's own limits; a trial may have been resumed by itself.
    """

    name: str
    status: str
    number: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    error: str | None = None
    objective: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None
    started: float | None = None
    history: Sequence[Mapping[str, float]] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    is_comparable: bool = True


@dataclass(frozen=True)
class Group:
    """Trials that differ in nothing but the keys that means are taken over, as the seed.

    Attributes:
        settings: What they share.
        rows: Those with an objective, by their number.
        mean: Mean of the objective.
        sd: Its standard deviation; None for one trial.
        half: Half the width of the mean's 95 % interval (Student's t); None for one trial.
        test_accuracy: Mean of the test accuracy, where it was measured.
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
        rows: The best first, then those that are not comparable, those without an objective, and those of a grid that
            were not started.
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
    def incomparable(self) -> list[Row]:
        """The trials with a result that were trained to other limits than the sweep's."""
        return [row for row in self.rows if row.objective is not None and not row.is_comparable]

    @property
    def progress(self) -> str:
        """How many trials there are; of a search, how many of those that it is to have."""
        search = self.record["search"]
        if not search or search["sampler"] == "grid":
            return f"{len(self.rows)} trials"
        proposed = {row.number // (self.record["each"] or 1) for row in self.rows}
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

    @property
    def over(self) -> Sequence[str]:
        """The keys that means are taken over; folds of one set are always among them."""
        return [*self.record["objective"].get("over", ["seed"]), "data.fold"]

    @cached_property
    def groups(self) -> list[Group]:
        """The comparable trials that were completed, put together over the keys of `over`, the best first."""
        members: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.number):
            if row.status == "completed" and row.objective is not None and row.is_comparable:
                shared = tuple((key, value) for key, value in row.settings.items() if key not in self.over)
                members.setdefault(shared, []).append(row)
        groups = [_group(dict(shared), rows) for shared, rows in members.items()]
        return sorted(groups, key=lambda group: -self.sign * group.mean)

    @property
    def has_means(self) -> bool:
        """Whether some trials differ in nothing but the keys that means are taken over."""
        return any(len(group.rows) > 1 for group in self.groups)

    @property
    def winner(self) -> str | None:
        """The command that repeats the best trial, or all trials of the best mean."""
        if not self.groups:
            return None
        rows = self.groups[0].rows
        repeated: dict[str, dict[str, None]] = {}  # the values of each key, in the trials' order
        for override in (override for row in rows for override in row.overrides):
            repeated.setdefault(override.partition("=")[0], {})[override.partition("=")[2]] = None
        words = [f"{key}={','.join(values)}" for key, values in repeated.items()]
        varied = {split_override(word)[0] for word in words}
        base = [word for word in self.record["base"] if split_override(word)[0] not in varied]
        flag = ["-m"] if len(rows) > 1 else []
        return f"{self.record['program']} {typed([*flag, *base, *words])}"


def read(folder: Path, *, any_length: bool = False) -> Table:
    """Read a sweep's folder, whether the sweep is running, has ended, or was killed.

    Args:
        folder: The sweep's folder.
        any_length: Whether trials that were trained to other limits than the sweep's count as comparable.

    Raises:
        ConfigError: It is no sweep's folder.
    """
    record = read_record(folder)
    if not record:
        raise ConfigError(f"{folder} is no sweep's folder: there is no {SWEEP_RECORD} in it.")
    rows = [read_row(path.parent) for path in sorted(folder.glob(f"*/{TRIAL}"))]
    started = {row.name for row in rows}
    rows += [
        Row(trial["name"], NOT_STARTED, trial["number"], trial["settings"])
        for trial in record["trials"]
        if trial["name"] not in started
    ]
    if not any_length:
        limits = _limits(record)
        rows = [replace(row, is_comparable=_agrees(row, limits)) for row in rows]
    sign = 1 if record["objective"]["mode"] == "max" else -1
    rows.sort(
        key=lambda row: (
            row.status == NOT_STARTED,
            row.objective is None,
            not row.is_comparable,
            0 if row.objective is None else -sign * row.objective,
            row.number,
        )
    )
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    differing = [key for key in keys if len({row.settings.get(key) for row in rows}) > 1]
    return Table(folder, record, differing or keys, rows)


def _limits(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits that all trials of a sweep share, as far as its record says."""
    trainer = record["config"].get("trainer")
    varied = {"experiment", "trainer", "budget"} & set(record["keys"])
    if varied or not isinstance(trainer, Mapping):
        return {}
    return {
        name: limit for name, limit in limits_of(record["config"]).items()
        if "${" not in str(limit) and f"trainer.{name}" not in record["keys"] and (limit is not None or name in trainer)
    }  # fmt: skip


def _agrees(row: Row, limits: Mapping[str, Any]) -> bool:
    most = limits.get("max_epochs")
    if isinstance(most, int) and 0 <= most < row.epochs:
        return False
    return all(row.limits.get(name, limit) == limit for name, limit in limits.items())


def _group(settings: Mapping[str, str], rows: Sequence[Row]) -> Group:
    mean, sd, half = mean_interval([row.objective for row in rows if row.objective is not None])
    tested = [row.metrics["test/accuracy"] for row in rows if "test/accuracy" in row.metrics]
    return Group(settings, rows, mean, sd, half, statistics.fmean(tested) if tested else None)


def read_row(folder: Path) -> Row:
    """Read a trial's folder; where it is damaged, the trial has failed, and the others keep their rows."""
    try:
        return _read_row(folder)
    except CnnlabError as error:
        again = "resume the sweep to run it again, or delete its folder"
        return Row(folder.name, "failed", error=f"{str(error).rstrip('.')}; {again}")


def _read_row(folder: Path) -> Row:
    note = read_json(folder / TRIAL, Note)
    record = Record(folder)
    run, metrics = record.run, record.metrics
    if run.get("status") == "completed":
        check_type(metrics, Metrics, str(folder / "metrics.json"))
    status = run.get("status") or ("running" if note.get("starts", 1) else NOT_STARTED)
    if note.get("pruned") is not None and status == "completed":
        status = "pruned"
    history = _history(record)
    speeds = [row["images_per_second"] for row in history if math.isfinite(row.get("images_per_second", math.nan))]
    return Row(
        name=folder.name,
        status=status,
        number=note["number"],
        settings=note["settings"],
        overrides=note["overrides"],
        error=run.get("error") if status == "failed" else None,
        objective=metrics["objective"] if status in ("completed", "pruned") else None,
        metrics={name: value for name, value in metrics.items() if value is not None},
        epochs=len(history),
        seconds=run.get("seconds", 0.0),
        images_per_second=statistics.median(speeds) if speeds else None,
        started=_as_timestamp(run.get("started")),
        history=history,
        limits=run.get("limits", {}),
        images=run.get("images", {}),
    )


def _history(record: Record) -> list[dict[str, float]]:
    """Return the rows of `history.csv`, NaN for an empty cell; none where it is damaged, which costs no result."""
    try:
        return [{name: float(cell or "nan") for name, cell in row.items()} for row in record.history]
    except DamagedError:
        return []


def _as_timestamp(time: str | None) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp() if time else None
    except (OverflowError, ValueError):
        return None
