"""`cnnlab options`: what can be chosen for each group."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cnnlab.config.project import own_folders
from cnnlab.config.schema import first_sentence
from cnnlab.config.tree import chosen, groups, options
from cnnlab.errors import ConfigError

app = typer.Typer(add_completion=False)


@app.command("options")
def list_options(
    group: Annotated[str | None, typer.Argument(help="One group, such as model; all of them by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the options of each group, a project's own among them; * is taken by default."""
    if group and group not in groups():
        raise ConfigError(f"{group} is no group; choose from {', '.join(groups())}")
    rows: list[dict[str, Any]] = [
        {
            "group": name, "option": option, "default": option in chosen(name),
            "own": any((folder / name / f"{option}.yaml").is_file() for folder in own_folders()),
            "about": first_sentence(name, option),
        }
        for name in ([group] if group else groups())
        for option in options(name)
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("option", "", "about", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            f"{row['group']}={row['option']}{'*' if row['default'] else ''}", "own" if row["own"] else "", row["about"]
        )
    Console(markup=False, highlight=False).print(table)
