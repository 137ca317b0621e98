"""`cnnlab report`: rebuild a sweep's table and pictures."""

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.sweep import summary

app = typer.Typer(add_completion=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's folder; it may still be running.")],
) -> None:
    """Write sweep.csv, sweep.json, sweep.md and figures/ anew, and print the table."""
    summary.show(summary.write(folder))
