"""The verbs of `cnnlab`, a file each; here are the arguments that several of them take."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.errors import MachineError

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, a checkpoint file, `last` or `best`.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="PACKAGE", help="May be imported though the run's folder names it; repeatable."),
]
Wide = Annotated[bool, typer.Option("--wide", help="Print whole cells and all columns.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead; .github/JSON.md has its keys.")]


def check_screen() -> None:
    """Check that there is a screen to open something on.

    Raises:
        MachineError: There is none.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MachineError("--open: there is no screen here. Leave it out; the file stays where it is.")


def open_file(path: Path) -> None:
    """Open a file with the desktop's program for it.

    Raises:
        MachineError: There is no screen.
    """
    check_screen()
    typer.launch(str(path))
