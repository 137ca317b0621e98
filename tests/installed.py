"""cnnlab as somebody has it who installed the wheel: an environment and folders outside of the checkout."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tests.conftest import ROOT

# Command lines in processes forked from one that has imported what each would: real ones, which real signals kill.
COMMANDS = """
import json, os, signal, sys
import matplotlib.pyplot, onnxruntime, onnxscript, pytorch_lightning, torch.onnx, torchmetrics
import cnnlab.build, cnnlab.evaluation, cnnlab.export, cnnlab.fit, cnnlab.report, cnnlab.sweep.summary
from cnnlab.callbacks import StopOnSignal
from cnnlab.cli import app

for line in sys.stdin:
    step = json.loads(line)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            output = os.open(step["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(step["cwd"])
            if step["killed_at"]:
                def die(self, trainer, *_):
                    if trainer.fit_loop.total_batch_idx == step["killed_at"]:
                        os.kill(os.getpid(), signal.SIGKILL)
                StopOnSignal.on_train_batch_end = die
            sys.argv = ["cnnlab", *step["words"]]
            app()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Step(NamedTuple):
    """A command line, and how it is to end.

    Attributes:
        words: What follows `cnnlab`.
        code: The exit code; negative for the signal that kills it.
        killed_at: The training batch after which it kills itself, counted from 0; 0 for never.
    """

    words: Sequence[str]
    code: int = 0
    killed_at: int = 0


class Installed:
    """An environment that has the wheel.

    Args:
        python: Its interpreter.
    """

    def __init__(self, python: Path) -> None:
        self.python = python
        self._commands: subprocess.Popen | None = None

    def call(self, *arguments: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess:
        """Run Python in a process of its own."""
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, timeout=timeout)

    def cnnlab(self, *words: str, cwd: Path) -> subprocess.CompletedProcess:
        """Run a command line in a process of its own."""
        code = "import sys; from cnnlab.cli import app; sys.argv[0] = 'cnnlab'; app()"
        return self.call("-c", code, *words, cwd=cwd)

    def run(self, step: Step, cwd: Path) -> str:
        """Run a command line that must end as it is to, forked from a process that is kept; return what it printed."""
        if self._commands is None:
            command = [str(self.python), "-c", COMMANDS]
            self._commands = subprocess.Popen(
                command, cwd=cwd, env=clean(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._commands.stdin is not None
        assert self._commands.stdout is not None
        output = cwd / "output.txt"
        content = {"words": list(step.words), "killed_at": step.killed_at, "output": str(output), "cwd": str(cwd)}
        print(json.dumps(content), file=self._commands.stdin, flush=True)
        code = self._commands.stdout.readline().strip()
        printed = output.read_text()
        assert code == str(step.code), f"{' '.join(step.words)} ended with {code}: {printed[-3000:]}"
        return printed

    def close(self) -> None:
        """End the process that is kept."""
        if self._commands is not None:
            self._commands.communicate(timeout=30)


def clean() -> dict[str, str]:
    """Return the environment without what leads to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def build_wheel(folder: Path) -> Path:
    """Build the wheel."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Installed:
    """Install the wheel into an environment that borrows this one's packages, but not its checkout of cnnlab."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    install = ["--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *install], check=True, timeout=120)
    (site / "zz_borrowed.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    return Installed(folder / "bin" / "python")
