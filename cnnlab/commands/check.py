"""`cnnlab check`: try a run out before it begins."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.commands import AsJson
from cnnlab.config import compose
from cnnlab.console import ConsoleHandler, exit_on_error
from cnnlab.run import importing

app = typer.Typer(add_completion=False)


# Hydra's flags are none of ours: the composition answers them.
@app.command(context_settings={"ignore_unknown_options": True})
def check(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP=OPTION | KEY=VALUE]...", help="As for `cnnlab train`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a run out before it begins; ends with go (exit 0) or no go (the exit code of what stands in its way).

    Shows the data, the first loss beside that of a network that knows nothing, whether gradients are finite and a few
    images can be learnt by heart, and what the whole run will take of time, memory and disk. Leaves nothing behind but
    the data file, where that is still to be fetched. The same as `cnnlab train ... check=true`.
    """
    try_out(settings or [], as_json)


def try_out(lines: Sequence[str], as_json: bool = False) -> None:
    """Compose a run and rehearse it.

    Args:
        lines: The overrides of the run.
        as_json: Whether to print one JSON object.
    """
    began = time.monotonic()
    run = compose(lines, Path.cwd(), verify_presence=True)
    handler, root = logging.StreamHandler() if as_json else ConsoleHandler(), logging.getLogger()
    root.setLevel(logging.INFO)
    # Whatever logs already in this process may print to standard output, which is the answer's alone.
    root.handlers, before = [handler], root.handlers
    try:
        with exit_on_error(debug=run.config.debug):
            with importing():
                from cnnlab.rehearsal import rehearse
            rehearse(run.config, Path(run.run_dir), began, as_json)
    finally:
        root.handlers = before
