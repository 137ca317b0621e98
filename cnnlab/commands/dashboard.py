"""`cnnlab dashboard`: TensorBoard on a folder of runs, arranged for this work."""

import contextlib
import io
import re
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.console import say
from cnnlab.errors import ConfigError, MachineError
from cnnlab.record import RUNS

app = typer.Typer(add_completion=False)

HOST = "127.0.0.1"
# TensorBoard draws a sample of long curves. Its own word for all points, 0, leaves the Custom Scalars tab empty
# (2.21, read and seen), so this is a number that no curve reaches.
ALL = 10**9

# How the page opens is fixed in its script: smoothed by 0.6 and without outliers, which on a point an epoch shows what
# never was; all of a run's curves in one colour; names folded away. Read in TensorBoard 2.21.
OPENING = (
    (r'"_smoothingWeight",\{defaultValue:\.6\}', '"_smoothingWeight",{defaultValue:0}'),
    (r'"_ignoreYOutliers",\{defaultValue:!0,', '"_ignoreYOutliers",{defaultValue:!1,'),
    (r"this\._matchesListOpened=!1", "this._matchesListOpened=!0"),
    # The tab Time Series: likewise, and all of its groups unfolded, not the first two.
    (r"ignoreOutliers:!0,", "ignoreOutliers:!1,"),
    (r"scalarSmoothing:\.6,", "scalarSmoothing:0,"),
    (r"\.slice\(0,2\)\)(\w+)\.set\((\w+)\.groupName,!0\)", r")\1.set(\2.groupName,!0)"),
    # Validation has its run's colour made darker, on a dark page lighter. Its opposite is, or nearly, another run's.
    (
        r"scale\((\w+)\)\{return this\.runBasedColorScale\.scale\(this\.parseRunName\(\1\)\)\}",
        r"scale(\1){const own=this.runBasedColorScale.scale(this.parseRunName(\1));"
        r"const end=document.body.classList.contains('dark-mode')?255:0;"
        r"return /^val[/]/.test(\1)&&/^#[0-9a-f]{6}$/i.test(own)"
        r'?"#"+own.match(/\\w\\w/g).map(part=>(parseInt(part,16)+end>>1).toString(16).padStart(2,"0")).join(""):own}',
    ),
)


@app.command()
def dashboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, a sweep, or a folder of them.")] = RUNS,
    port: Annotated[int, typer.Option(help="The port to listen at; 0 takes a free one.")] = 6006,
) -> None:
    """Start TensorBoard for this machine alone, print its address, and go on until Ctrl-C.

    It opens on training and validation in common charts; of every curve all points are drawn.
    """
    say(f"{serve(folder, port)} shows {folder}; Ctrl-C ends it", flush=True)
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
    from tensorboard import assets, default, program
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    # The first plugin with data is the tab that opens: training and validation in one chart, as laid out by the run.
    plugins = sorted(default.get_plugins(), key=lambda plugin: plugin is not CustomScalarsPlugin)
    board = program.TensorBoard(plugins, rearranged(assets.get_default_assets_zip_provider()))
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


def rearranged(provide: Callable[[], Any]) -> Callable[[], Any]:
    """Return TensorBoard's page so that it opens on curves as they are, training and validation told apart.

    Args:
        provide: Opens the zip file that holds the page.
    """
    content = io.BytesIO()
    with provide() as file, zipfile.ZipFile(file) as page, zipfile.ZipFile(content, "w") as copy:
        for name in page.namelist():
            data = page.read(name)
            if name == "index.js":
                script = data.decode()
                for pattern, replacement in OPENING:
                    script, count = re.subn(pattern, replacement, script)
                    if not count:
                        say("cnnlab: TensorBoard's page has changed: it may open smoothed.", file=sys.stderr)
                data = script.encode()
            copy.writestr(name, data)
    return lambda: io.BytesIO(content.getvalue())
