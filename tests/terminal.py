"""Run a command on a terminal of its own, as a person at one sees it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT

COMMAND = "import sys; sys.argv[0] = 'cnnlab'; from cnnlab.cli import app; app()"


def run_on_terminal(
    words: Sequence[str],
    *,
    width: int = 80,
    cwd: Path,
    code: str = COMMAND,
    seen: Callable[[float, bytes], object] = lambda seconds, content: None,
    timeout: float = 120,
    root: Path = ROOT,
) -> str:
    """Return what a command writes on a terminal of this width, without colours.

    Args:
        words: The command's arguments.
        width: Of the terminal, in characters.
        cwd: The folder it is run in.
        code: What Python runs.
        seen: Called with each piece of output, and the seconds since the start.
        timeout: In seconds.
        root: Of the checkout whose cnnlab is run.
    """
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=cwd,
        env=environment | {"TERM": "xterm-256color", "PYTHONPATH": str(root)},
    )  # fmt: skip
    os.close(terminal)
    content = b""
    try:
        while time.monotonic() - start < timeout:
            if not select.select([control], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(control, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            seen(time.monotonic() - start, piece)
            content += piece
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(control)
    text = content.decode(errors="replace").replace("\r\n", "\n")
    text = re.sub(r"[^\n]*\r\x1b\[K", "", text)  # lines that were taken away again
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
