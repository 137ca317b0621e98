"""A sweep's result: a row a trial, means over seeds, pictures; from its folder alone, at any time."""

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.table import Table as RichTable

from cnnlab.errors import ConfigError
from cnnlab.files import read_json, write_text
from cnnlab.record import Record, typed
from cnnlab.stats import mean_interval
from cnnlab.sweep.folder import PLACE
from cnnlab.sweep.trial import split

SHOWN = 30  # rows on a terminal
NOT_STARTED = "not started"


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        name: Its folder's.
        number: Its place in the sweep.
        settings: The overrides that tell it from others.
        status: `completed`, `pruned`, `failed`, `interrupted`, `running` or `not started`.
        error: What went wrong.
        objective: What the sweep is about; None where it was not measured.
        metrics: All that was.
        epochs: How many were trained.
        seconds: The whole run.
        images_per_second: Median over the epochs.
        started: When it began, in seconds since the epoch.
        history: Validation by epoch: the columns of `history.csv`.
    """

    name: str
    number: int
    settings: Mapping[str, str]
    status: str
    error: str | None
    objective: float | None
    metrics: Mapping[str, float]
    epochs: int
    seconds: float
    images_per_second: float | None
    started: float | None
    history: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Group:
    """Trials that differ in nothing but the seed.

    Attributes:
        settings: What they share.
        rows: Those with an objective.
        mean: Of the objective.
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
class Sweep:
    """The whole.

    Attributes:
        folder: The sweep's.
        record: What it was begun with.
        keys: Those that differ between the trials.
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
        """The trials that somebody stopped."""
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
        together: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            if row.status == "completed" and row.objective is not None:
                shared = tuple((key, value) for key, value in row.settings.items() if key != "seed")
                together.setdefault(shared, []).append(row)
        found = [_group(dict(shared), rows) for shared, rows in together.items()]
        return sorted(found, key=lambda group: -self.sign * group.mean)

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
        overrides = read_json(self.folder / best.name / "trial.json")["overrides"]
        varied = {split(line)[0] for line in overrides}
        base = [line for line in self.record["base"] if split(line)[0] not in varied]
        return f"{self.record['program']} {typed([*base, *overrides])}"


def read(folder: Path) -> Sweep:
    """Read a sweep's folder, whether the sweep is running, has ended, or was killed.

    Raises:
        ConfigError: It is no sweep's folder.
    """
    record = read_json(folder / PLACE / "record.json")
    if not record:
        raise ConfigError(f"{folder} is no sweep's folder: there is no {PLACE}/record.json in it.")
    rows = [_row(path.parent) for path in sorted(folder.glob("*/trial.json"))]
    sign = 1 if record["objective"]["mode"] == "max" else -1
    begun = {row.name for row in rows}
    rows += [_waiting(planned) for planned in record.get("trials", ()) if planned["name"] not in begun]
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
    return Sweep(folder, record, differing or keys, rows)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / PLACE / "record.json").is_file()


def write(folder: Path, *, figures: bool = True) -> Sweep:
    """Write `sweep.csv`, `sweep.json`, `sweep.md` and the pictures; return what they say."""
    sweep = read(folder)
    write_text(folder / "sweep.csv", _csv(sweep))
    write_text(folder / "sweep.json", json.dumps(_json(sweep), indent=2) + "\n")
    write_text(folder / "sweep.md", _markdown(sweep))
    if figures and any(row.objective is not None for row in sweep.rows):
        from cnnlab.sweep.pictures import draw  # matplotlib

        draw(sweep)
    return sweep


def show(sweep: Sweep, console: Console | None = None) -> None:
    """Print the table, where everything is, and the winner's command."""
    console = console or Console()
    header, lines = _group_lines(sweep) if sweep.has_seeds else _row_lines(sweep)
    columns = [Column(escape(head), overflow="fold") for head in header]
    table = RichTable(*columns, title=_told_in_a_line(sweep), title_justify="left")
    for line in lines[:SHOWN]:
        table.add_row(*map(escape, line))
    if not console.is_terminal:
        console = Console(file=console.file, width=200)
    console.print(table)
    if len(lines) > SHOWN:
        console.print(f"{len(lines) - SHOWN} more in sweep.md", highlight=False)
    for row in sweep.failed:
        console.print(f"failed  {row.name}: {row.error}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"table   {sweep.folder / 'sweep.md'}", markup=False, highlight=False, soft_wrap=True)
    if sweep.winner:
        console.print(f"winner  {sweep.winner}", markup=False, highlight=False, soft_wrap=True)


def _group(settings: Mapping[str, str], rows: Sequence[Row]) -> Group:
    mean, sd, half = mean_interval([row.objective for row in rows if row.objective is not None])
    tested = [row.metrics["test/accuracy"] for row in rows if row.metrics.get("test/accuracy") is not None]
    return Group(settings, rows, mean, sd, half, statistics.fmean(tested) if tested else None)


def _row(folder: Path) -> Row:
    try:
        return _told(folder)
    except (ConfigError, KeyError, TypeError, ValueError) as error:  # damaged: no reason to lose the others' rows
        return Row(
            name=folder.name, number=0, settings={}, status="failed", error=str(error), objective=None, metrics={},
            epochs=0, seconds=0.0, images_per_second=None, started=None, history=[],
        )  # fmt: skip


def _waiting(planned: Mapping[str, Any]) -> Row:
    return Row(
        **planned, status=NOT_STARTED, error=None, objective=None, metrics={}, epochs=0, seconds=0.0,
        images_per_second=None, started=None, history=[],
    )  # fmt: skip


def _told(folder: Path) -> Row:
    note = read_json(folder / "trial.json")
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


def _json(sweep: Sweep) -> dict[str, Any]:
    return {
        "command": sweep.record["command"],
        "objective": sweep.record["objective"],
        "planned": sweep.record["planned"],
        "counts": _counts(sweep),
        "winner": sweep.winner,
        "groups": [
            {
                "settings": dict(group.settings),
                "n": len(group.rows),
                "mean": group.mean,
                "sd": group.sd,
                "interval_95": None if group.half is None else [group.mean - group.half, group.mean + group.half],
                "test/accuracy": group.test_accuracy,
                "trials": [row.name for row in group.rows],
            }
            for group in sweep.groups
        ],
        "trials": [
            {
                "name": row.name,
                "settings": dict(row.settings),
                "status": row.status,
                "error": row.error,
                "objective": row.objective,
                "metrics": {name: value for name, value in row.metrics.items() if name != "objective"},
                "epochs": row.epochs,
                "seconds": row.seconds,
                "images_per_second": row.images_per_second,
            }
            for row in sweep.rows
        ],
    }


def _counts(sweep: Sweep) -> dict[str, int]:
    statuses = [row.status for row in sweep.rows]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def _told_in_a_line(sweep: Sweep) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in _counts(sweep).items())
    return f"{sweep.progress}: {counts or 'none has begun'}"


def _csv(sweep: Sweep) -> str:
    columns = [
        *sweep.keys, "status", "objective", *_tests(sweep), "epochs", "seconds", "images_per_second", "folder", "error",
    ]  # fmt: skip
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    for row in sweep.rows:
        writer.writerow(
            [
                *(row.settings.get(key) for key in sweep.keys),
                row.status,
                row.objective,
                *(row.metrics.get(name) for name in _tests(sweep)),
                row.epochs,
                row.seconds,
                row.images_per_second,
                row.name,
                row.error,
            ]
        )
    return content.getvalue()


def _tests(sweep: Sweep) -> list[str]:
    names = dict.fromkeys(name for row in sweep.rows for name in row.metrics if name.startswith("test/"))
    return [name for name in names if name != sweep.metric]


def _row_lines(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    tests = [name for name in _tests(sweep) if name == "test/accuracy"]  # sweep.csv has the others
    header = [*_heads(sweep.keys), "status", sweep.metric, *tests, "epochs", "seconds", "images/s", "folder"]
    return header, [
        [
            *(_setting(row.settings.get(key, "")) for key in sweep.keys),
            row.status,
            _shown(row.objective),
            *(_shown(row.metrics.get(name)) for name in tests),
            str(row.epochs),
            f"{row.seconds:.0f}",
            "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
            row.name,
        ]
        for row in sweep.rows
    ]


def _group_lines(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in sweep.keys if key != "seed"]
    header = [*_heads(keys), "n", f"{sweep.metric}, mean", "sd", "95 % interval", "test/accuracy"]
    return header, [
        [
            *(_setting(group.settings.get(key, "")) for key in keys),
            str(len(group.rows)),
            _shown(group.mean),
            _shown(group.sd),
            "" if group.half is None else f"{group.mean - group.half:.4f} to {group.mean + group.half:.4f}",
            _shown(group.test_accuracy),
        ]
        for group in sweep.groups
    ]


def _heads(keys: Sequence[str]) -> list[str]:
    """Return the keys' last parts, as far as those tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]


def _setting(text: str) -> str:
    """Shorten a number that a search proposed; sweep.csv has all its digits."""
    try:
        return f"{float(text):.3g}" if len(text) > 9 else text
    except ValueError:
        return text


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _markdown(sweep: Sweep) -> str:
    parts = [f"# {sweep.folder.name}", f"```bash\n{sweep.record['command']}\n```", _told_in_a_line(sweep)]
    if sweep.winner:
        parts.append(f"The winner again:\n\n```bash\n{sweep.winner}\n```")
    if sweep.has_seeds:
        parts.append("## Over seeds\n\n" + "\n".join(_table(*_group_lines(sweep))))
    parts.append("## Trials\n\n" + "\n".join(_table(*_row_lines(sweep))))
    if sweep.failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {row.name}: {row.error}" for row in sweep.failed))
    parts += [f"![{path.stem}](figures/{path.name})" for path in sorted((sweep.folder / "figures").glob("*.png"))]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *lines):
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
