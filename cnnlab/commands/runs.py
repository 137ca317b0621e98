"""`cnnlab runs`: a table of all runs below a folder."""

import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab import ledger
from cnnlab.commands import open_file
from cnnlab.console import say
from cnnlab.errors import ConfigError
from cnnlab.files import csv_cell
from cnnlab.record import RUNS
from cnnlab.tables import LEAST_WIDTH, Column, print_table
from cnnlab.wording import count, format_metric, format_value

app = typer.Typer(add_completion=False)

# Those that matter most first: a narrow terminal shows as many as it can.
COLUMNS = ("run", "val/accuracy", "test/accuracy", "status", "changes", "model", "started", "tags", "note")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only these; also with !=, <, <=, >, >=. Repeatable: all must hold."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="The largest, or newest, first.")] = "started",
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    same_as: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only runs of the same settings, data and code as this one.")
    ] = None,
    show: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A column more. Repeatable.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Print whole cells and all columns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    open_number: Annotated[
        int | None, typer.Option("--open", min=1, metavar="N", help="Open the report of the run in row N.")
    ] = None,
) -> None:
    """List runs: what each was, how it ended, what it reached.

    A KEY is a fact of run.json (status, seed, seconds, tags), a group (model=resnet18), a metric (val/accuracy), or a
    key of the config (optimizer.lr).
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv: give one of them.")
    rows = ledger.list_runs(folder, where or (), sort, ascending)
    if same_as is not None:
        rows = ledger.same_as(rows, same_as)
    if open_number is not None:
        _open(rows, open_number)
        return
    first, *others = COLUMNS
    columns = list(dict.fromkeys([first, *(show or ()), *([] if sort == "started" else [sort]), *others]))
    if as_json:
        # All that is at hand, and what was asked for.
        say(json.dumps([{**row, **{name: row.get(name) for name in columns}} for row in rows], indent=1))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([csv_cell(row.get(name)) for name in columns] for row in rows)
    else:
        _print(rows, columns, folder, wide)


def _print(rows: list[ledger.Row], columns: list[str], folder: Path, wide: bool) -> None:
    columns = [name for name in columns if any(row.get(name) not in (None, []) for row in rows)] or ["run"]
    numbers = [name for name in columns if any(isinstance(row.get(name), float | int) for row in rows)]
    print_table(
        [
            Column("", [str(number + 1) for number in range(len(rows))], number=True),
            *(
                Column(
                    name,
                    [_cell(name, row.get(name)) for row in rows],
                    number=name in numbers,
                    least=20 if name == "run" else LEAST_WIDTH,
                )
                for name in columns
            ),
        ],
        title=f"{count(len(rows), 'run')} below {folder}",
        wide=wide,
        elsewhere="--wide, --csv and --json",
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if name == "seconds":
        return f"{value:,.0f}"
    if name == "started":
        return str(value)[5:16].replace("T", " ")
    return format_metric(name, value) if isinstance(value, float) else format_value(value)


def _open(rows: list[ledger.Row], number: int) -> None:
    if number > len(rows):
        raise ConfigError(f"--open must be a row of the table, 1 to {len(rows)}, got {number}.")
    folder = rows[number - 1].record.folder
    page = folder / "report.html"
    if not page.is_file():
        raise ConfigError(f"{folder} has no report yet: cnnlab report {shlex.quote(str(folder))}")
    open_file(page)
    say(page)
