"""`cnnlab runs`: a table of all runs below a folder."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab import ledger
from cnnlab.errors import ConfigError
from cnnlab.record import RUNS

app = typer.Typer(add_completion=False)

COLUMNS = ("run", "status", "started", "model", "val/accuracy", "test/accuracy", "changes")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only these; also with !=, <, <=, >, >=. Repeatable: all must hold."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="The largest, or newest, first.")] = "started",
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    show: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A column more. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List runs: what each was, how it ended, what it reached.

    A KEY is a fact of run.json (status, seed, seconds), a group (model=resnet18), a metric (val/accuracy), or a key
    of the config (optimizer.lr).
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv: give one of them.")
    rows = ledger.list_runs(folder, where or (), sort, ascending)
    columns = list(dict.fromkeys([*COLUMNS, *(condition for condition in show or ()), *([sort] if sort else [])]))
    if as_json:
        print(json.dumps([{name: row.get(name) for name in columns} for row in rows], indent=1))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name) for name in columns] for row in rows)
    else:
        _print(rows, columns, folder)


def _print(rows: list[ledger.Row], columns: list[str], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    columns = [name for name in columns if any(row.get(name) is not None for row in rows)] or ["run"]
    cells = {name: [_cell(name, row.get(name)) for row in rows] for name in columns}
    # What was changed gets the room that is left: all else is short, and the point of the table.
    heads = [
        Column(name, no_wrap=True, ratio=1)
        if name == "changes"
        else Column(
            name, min_width=min(30, max(map(len, [name, *cells[name]]))), overflow="fold",
            justify="right" if any(isinstance(row.get(name), float | int) for row in rows) else "left",
        )
        for name in columns
    ]  # fmt: skip
    table = Table(
        *heads,
        title=f"{len(rows)} runs below {folder}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(escape, row))
    console = Console()
    # A file has room for all columns.
    Console(width=console.width if console.is_terminal else 200).print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:,.0f}"
    if name == "started":
        return str(value)[5:16].replace("T", " ")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
