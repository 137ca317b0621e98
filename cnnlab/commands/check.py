"""`cnnlab check`: try a run out before it begins."""

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.config import ROOT

app = typer.Typer(add_completion=False)


# Hydra's flags are none of ours: they are left to train.py.
@app.command(context_settings={"ignore_unknown_options": True})
def check(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP=OPTION | KEY=VALUE]...", help="As for `cnnlab train`.")
    ] = None,
) -> None:
    """Try a run out before it begins; ends with go (exit 0) or no go (the exit code of what stands in its way).

    Shows the data, the first loss beside that of a network that knows nothing, whether gradients are finite and a few
    images can be learnt by heart, and what the whole run will take of time, memory and disk. Leaves nothing behind but
    the data file, where that is still to be fetched. The same as `cnnlab train ... check=true`.
    """
    script = str(ROOT / "train.py")
    sys.argv = [script, *(settings or []), "check=true"]
    sys.path.append(str(Path.cwd()))  # for networks of the user's own; last, as `cnnlab train` has it
    runpy.run_path(script, run_name="__main__")
