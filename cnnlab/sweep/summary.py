"""A sweep's result in files and on the terminal: `sweep.csv`, `sweep.json`, `sweep.md` and the pictures."""

import csv
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab import tables
from cnnlab.files import csv_cell, printable, write_text
from cnnlab.sweep import verdict
from cnnlab.sweep.table import Table, read
from cnnlab.wording import format_end, format_metric, format_setting

TERMINAL_ROWS = 30


@dataclass(frozen=True)
class Summary:
    """A sweep's table, and what it adds up to.

    Attributes:
        table: The table.
        lead: Whether the winner's lead over the runner-up is more than chance, in a sentence.
        importance: Each setting's share in what made a trial one of the best quarter.
    """

    table: Table
    lead: str | None
    importance: Mapping[str, float]


def write(folder: Path, *, any_length: bool = False, pictures: bool = True) -> Summary:
    """Write `sweep.csv`, `sweep.json`, `sweep.md` and the pictures; return what they say.

    Args:
        folder: The sweep's folder.
        any_length: Whether trials that were trained to other limits than the sweep's count as the others do.
        pictures: Whether to draw them, and to ask Optuna which setting mattered.
    """
    table = read(folder, any_length=any_length)
    summary = Summary(table, verdict.lead(table), verdict.importance(table) if pictures else {})
    write_text(folder / "sweep.csv", _csv(table))
    write_text(folder / "sweep.json", json.dumps(_json(summary), indent=2) + "\n")
    if pictures and any(row.objective is not None for row in table.rows):
        from cnnlab.sweep.pictures import draw  # matplotlib

        draw(table, summary.importance)
    write_text(folder / "sweep.md", _markdown(summary))
    return summary


def describe(summary: Summary) -> str:
    """Return what a person at the terminal sees: the table, the winner's command, where everything is, what is next."""
    table = summary.table
    header, lines = _group_lines(table) if table.has_means else _row_lines(table)
    columns = [
        tables.Column(
            name, cells, number=all(map(_is_number, (cell.strip("%–").replace(",", "") or 0 for cell in cells)))
        )
        for name, *cells in zip(header, *lines[:TERMINAL_ROWS], strict=True)
    ]
    parts = [f"{len(lines) - TERMINAL_ROWS} more in sweep.md"] if len(lines) > TERMINAL_ROWS else []
    parts += [f"failed  {row.name}: {row.error}" for row in table.failed]
    parts += [f"length  {line}" for line in _incomparable_lines(table)]
    parts += [f"lead    {summary.lead}"] if summary.lead else []
    parts += [f"matters {_importance_line(summary)}"] if summary.importance else []
    parts += [f"winner  {table.winner}"] if table.winner else []
    folder = table.folder.relative_to(Path.cwd()) if table.folder.is_relative_to(Path.cwd()) else table.folder
    parts += [f"table   {folder / 'sweep.md'}"]
    parts += [f"next    cnnlab {verb} {shlex.quote(str(folder))}" for verb in ("report", "dashboard")]
    drawn = tables.draw(columns, title=_counts_line(table), elsewhere="sweep.csv")
    return "\n".join([drawn, *map(printable, parts)])


def _json(summary: Summary) -> dict[str, Any]:
    table = summary.table
    return {
        "command": table.record["command"],
        "objective": table.record["objective"],
        "planned": table.record["planned"],
        "counts": _counts(table),
        "winner": table.winner,
        "lead": summary.lead,
        "importance": dict(summary.importance),
        "groups": [
            {
                "settings": dict(group.settings),
                "n": len(group.rows),
                "mean": group.mean,
                "sd": group.sd,
                "interval_95": None if group.half is None else [group.mean - group.half, group.mean + group.half],
                "pooled": None if (pooled := verdict.pooled(table, group)) is None else pooled._asdict(),
                "test/accuracy": group.test_accuracy,
                "trials": [row.name for row in group.rows],
            }
            for group in table.groups
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
                "is_comparable": row.is_comparable,
                "seconds": row.seconds,
                "images_per_second": row.images_per_second,
            }
            for row in table.rows
        ],
    }


def _counts(table: Table) -> dict[str, int]:
    statuses = [row.status for row in table.rows]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def _counts_line(table: Table) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in _counts(table).items())
    return f"{table.progress}: {counts or 'none has begun'}"


def _csv(table: Table) -> str:
    columns = [
        *table.keys, "status", "objective", *_tests(table), "epochs", "seconds", "images_per_second", "folder", "error",
    ]  # fmt: skip
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    for row in table.rows:
        cells = [
            *(row.settings.get(key) for key in table.keys), row.status, row.objective,
            *(row.metrics.get(name) for name in _tests(table)), row.epochs, row.seconds, row.images_per_second,
            row.name, row.error,
        ]  # fmt: skip
        writer.writerow(cell if _is_number(cell) else csv_cell(cell) for cell in cells)
    return content.getvalue()


def _is_number(cell: Any) -> bool:
    """Whether a cell is a number, also one that is typed as -1."""
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError, OverflowError):
        return False


def _tests(table: Table) -> list[str]:
    names = dict.fromkeys(name for row in table.rows for name in row.metrics if name.startswith("test/"))
    return [name for name in names if name != table.metric]


def _incomparable_lines(table: Table) -> list[str]:
    """Say which trials were trained to other limits than the sweep's, and how to count them all the same."""
    names = ", ".join(f"{row.name} ({row.epochs} epochs)" for row in table.incomparable)
    if not names:
        return []
    return [
        f"trained to other limits than the sweep's, left out of ranking and means: {names}; "
        "`cnnlab report --any-length` counts them"
    ]


def _importance_line(summary: Summary) -> str:
    shares = ", ".join(f"{key} {share:.0%}" for key, share in summary.importance.items())
    return f"{shares} (share in what made a trial one of the best quarter)"


def _row_lines(table: Table) -> tuple[list[str], list[list[str]]]:
    tests = [name for name in _tests(table) if name == "test/accuracy"]  # sweep.csv has the others
    header = [*_short_names(table.keys), table.metric, *tests, "status", "epochs", "seconds", "images/s", "folder"]
    return header, [
        [
            *(format_setting(row.settings.get(key, "")) for key in table.keys),
            format_metric(table.metric, row.objective),
            *(format_metric(name, row.metrics.get(name)) for name in tests),
            row.status,
            str(row.epochs),
            f"{row.seconds:.0f}",
            "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
            row.name,
        ]
        for row in table.rows
    ]


def _group_lines(table: Table) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in table.keys if key not in table.over]
    pools = [verdict.pooled(table, group) for group in table.groups]
    header = [*_short_names(keys), f"{table.metric}, mean", "sd", "n", "95% interval", "test/accuracy"]
    header += ["all folds", "its 95% interval"] if any(pools) else []

    def interval(low: float, high: float) -> str:
        return f"{format_end(table.metric, low)} to {format_end(table.metric, high)}"

    return header, [
        [
            *(format_setting(group.settings.get(key, "")) for key in keys),
            format_metric(table.metric, group.mean),
            format_metric(table.metric, group.sd),
            str(len(group.rows)),
            "" if group.half is None else interval(group.mean - group.half, group.mean + group.half),
            format_metric("test/accuracy", group.test_accuracy),
            *([format_metric(table.metric, pool.accuracy), interval(pool.low, pool.high)] if pool else []),
            *(["", ""] if any(pools) and not pool else []),
        ]
        for group, pool in zip(table.groups, pools, strict=True)
    ]


def _short_names(keys: Sequence[str]) -> list[str]:
    """Return the keys' last parts, as far as those tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]


def _markdown(summary: Summary) -> str:
    table = summary.table
    parts = [f"# {table.folder.name}", f"```bash\n{table.record['command']}\n```", _counts_line(table)]
    if table.winner:
        parts.append(f"The winner again:\n\n```bash\n{table.winner}\n```")
    if table.has_means:
        parts.append(f"## Over {', '.join(table.over)}\n\n" + "\n".join(_markdown_table(*_group_lines(table))))
    if summary.lead:
        parts.append(f"{summary.lead}.")
    if summary.importance:
        parts.append(f"What decided whether a trial is among the best quarter: {_importance_line(summary)}.")
    parts.append("## Trials\n\n" + "\n".join(_markdown_table(*_row_lines(table))))
    parts += _incomparable_lines(table)
    if table.failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {row.name}: {row.error}" for row in table.failed))
    parts += [f"![{path.stem}](figures/{path.name})" for path in sorted((table.folder / "figures").glob("*.png"))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *lines):
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
