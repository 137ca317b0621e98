"""`cnnlab dashboard`: TensorBoard on a folder of runs, arranged for this work."""

import contextlib
import io
import threading
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.errors import ConfigError, MachineError
from cnnlab.record import RUNS

app = typer.Typer(add_completion=False)

HOST = "127.0.0.1"
# TensorBoard draws a sample of long curves. Its own word for all points, 0, leaves the Custom Scalars tab empty
# (2.21, read and seen), so this is a number that no curve reaches.
ALL = 10**9


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, a sweep, or a folder of them.")] = RUNS,
    port: Annotated[int, typer.Option(help="The port to listen at; 0 takes a free one.")] = 6006,
) -> None:
    """Start TensorBoard for this machine alone, print its address, and go on until Ctrl-C.

    It opens on training and validation in common charts; of every curve all points are drawn.
    """
    print(f"{serve(folder, port)} shows {folder}; Ctrl-C ends it", flush=True)
    threading.Event().wait()  # for a signal, with which `cnnlab.cli` ends the process


def serve(folder: Path, port: int = 0) -> str:
    """Start TensorBoard on a folder in a thread of this process, and return its address.

    Args:
        folder: A run, a sweep, or a folder of them.
        port: The port to listen at; 0 takes a free one.

    Raises:
        ConfigError: There is no such folder, or the port is out of its range.
        MachineError: The port is taken.
    """
    if not folder.is_dir():
        raise ConfigError(f"FOLDER must be a folder of runs, and there is none at {folder}.")
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port must be between 0 and 65535, got {port}.")
    from tensorboard import default, program
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    # The first plugin with data is the tab that opens: training and validation in one chart, as laid out by the run.
    plugins = sorted(default.get_plugins(), key=lambda plugin: plugin is not CustomScalarsPlugin)
    board = program.TensorBoard(plugins)
    board.configure(
        logdir=str(folder),
        host=HOST,
        port=port,
        reload_interval=5.0,
        samples_per_plugin={"scalars": ALL, "images": ALL},
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a note on its loader, which is no news to anybody here
            return board.launch()
    except program.TensorBoardServerException as error:
        raise MachineError(f"--port {port}: {error.msg.strip()}. Choose another one; 0 takes a free one.") from error
