"""The `cnnlab` command: imports the verb that is called, and turns errors into exit codes."""

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cnnlab import lock, trust
from cnnlab.commands import COMMANDS as COMMANDS
from cnnlab.console import exit_on_error
from cnnlab.errors import MachineError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,  # `cnnlab completion` knows the verbs' own arguments
    help="A laboratory for convolutional networks: train, then look at what came out.",
)

COMPOSE = ("check", "benchmark", "show", "options", "schema", "decide", "ablate")
"""Verbs that read configs, and so see those of a project of the user's own."""
RESTORE = ("evaluate", "predict", "export", "compare", "report", "data")
"""Verbs that build what a run's folder names: in a project's folder they know its classes."""


HINT = "cnnlab: the same with --debug shows the traceback"


class _Verbatim(TyperCommand):
    """A command that leaves all its arguments, --help among them, to whom it calls."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata  # not before: it takes longer than all the rest of --help

        print(f"cnnlab {importlib.metadata.version('cnnlab')}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = debug
    lock.forget_stale_ranks()


@app.command(cls=_Verbatim, help="Train a network: all that follows goes to train.py (`cnnlab train --help`).")
def train(context: typer.Context) -> None:
    """Run train.py, which lies beside the configs."""
    with exit_on_error(debug=context.obj, last=True, hint=HINT, waiting="cnnlab train: starting"):
        script = str(_train_script())
        sys.argv = [script, *context.args]
        runpy.run_path(script, run_name="__main__")


def _train_script() -> Path:
    """Find train.py: inside the package in a wheel, above it in a checkout."""
    package = Path(__file__).parent
    for folder in (package, package.parent):
        if (folder / "train.py").is_file() and (folder / "conf").is_dir():
            return folder / "train.py"
    raise MachineError(f"train.py and conf must stand in {package} or {package.parent}. Install cnnlab again.")


def _forward_to(name: str) -> Callable[[typer.Context], None]:
    """Return a command that imports `cnnlab.commands.<name>` and calls its app."""

    def forward(context: typer.Context) -> None:
        debug = context.obj or "--debug" in context.args
        words = [word for word in context.args if word != "--debug"]
        with exit_on_error(debug=debug, last=True, hint=HINT, waiting=f"cnnlab {name}: starting"):
            folder = Path("conf")
            is_project = folder.is_dir() and not folder.samefile(_train_script().parent / "conf")
            if name in COMPOSE or "--trust" in words or (name in RESTORE and is_project):
                from cnnlab.config import own_classes, take_flags  # not before: Hydra takes a fifth of a second

                words = take_flags(words)
                trust.vouch(own_classes())
            importlib.import_module(f"cnnlab.commands.{name}").app(words, prog_name=f"cnnlab {name}")

    return forward


for _name, _help in COMMANDS.items():
    app.command(_name, cls=_Verbatim, help=_help)(_forward_to(_name))
