"""The verbs of `cnnlab`, a file each; here are the arguments that several of them take."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.errors import MachineError

# What --help says; each is the module cnnlab.commands.<name>, imported when it is called and not before.
COMMANDS = {
    "check": "Rehearse a run before it begins: go or no go, and what it will take.",
    "evaluate": "Evaluate a run: metrics, confusion matrix, calibration, worst mistakes.",
    "predict": "Predict the classes of pictures, with a run's network or an exported one.",
    "export": "Write a run's network as ONNX, torch.export or safetensors.",
    "compare": "Compare runs: config, metrics, curves, and whether the difference is real.",
    "decide": "Decide whether one recipe is better than another, with no more seeds than that takes.",
    "ablate": "Leave a recipe's settings out in turn: which of them matter.",
    "runs": "List runs: what each was, how it ended, what it reached.",
    "benchmark": "Measure how fast a config trains on this machine, and what would be faster.",
    "data": "Fetch, pack and check the npz files that training reads, and find wrong labels.",
    "show": "Draw data, convolution, pooling, augmentation, schedules, and the inside of a network.",
    "report": "Write one HTML file about a run or a sweep.",
    "options": "List the options of each group, a project's own among them.",
    "schema": "Write a JSON schema of the config, so that editors complete and check yaml files.",
    "new": "Make a project of your own: a network, a loss, data, a recipe and a test.",
    "dashboard": "Start TensorBoard on a folder of runs.",
    "completion": "Print what lets the Tab key complete this command, in bash, zsh or fish.",
}

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
