"""The verbs of `cnnlab`, a file each; here are the arguments that several of them take."""

from typing import Annotated

import typer

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, a checkpoint file, `last` or `best`.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="PACKAGE", help="May be imported though the run's folder names it; repeatable."),
]
