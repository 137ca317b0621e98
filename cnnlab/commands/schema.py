"""`cnnlab schema`: a JSON schema of the config, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.config.schema import make_schema
from cnnlab.config.tree import groups
from cnnlab.errors import ConfigError
from cnnlab.files import write_text

app = typer.Typer(add_completion=False)


@app.command()
def schema(
    group: Annotated[
        str | None,
        typer.Argument(help="The schema of this group's options; by default that of recipes and project.yaml."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
) -> None:
    """Write a JSON schema of the config, by which editors complete and check yaml files."""
    if group and group not in groups():
        raise ConfigError(f"{group} is no group; choose from {', '.join(groups())}")
    text = json.dumps(make_schema(group), indent=1, ensure_ascii=False)
    if output:
        write_text(output, f"{text}\n")
    else:
        print(text)
