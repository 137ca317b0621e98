"""What a sweep shows while it runs: a live table on a terminal, a line a trial elsewhere."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import get_console
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cnnlab.sweep.table import read_row

log = logging.getLogger(__name__)


class Board:
    """Show how far a sweep is: trials done, running and failed, the best so far, the time left.

    Args:
        folder: The sweep's folder.
        objective: Its `metric` and `mode`.
    """

    def __init__(self, folder: Path, objective: Mapping[str, Any]) -> None:
        self.folder = folder
        self.objective = objective
        self.planned = 0
        self.done = 0
        self.failed: list[str] = []
        self.best: tuple[float, str] | None = None
        self._running: dict[str, float] = {}
        self._started = time.monotonic()
        self._ended = 0
        console = get_console()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def plan(self, planned: int, done: int) -> None:
        """Say how many trials there are, and how many of them are done before the first starts."""
        self.planned, self.done = planned, done

    def start(self, name: str) -> None:
        """Say that a trial starts."""
        self._running[name] = time.monotonic()

    def end(self, name: str) -> None:
        """Say that a trial has ended, however it did."""
        started = self._running.pop(name, time.monotonic())
        row = read_row(self.folder / name)
        status, value = row.status, row.objective
        self._ended += 1
        if status == "failed":
            self.failed.append(name)
        elif status in ("completed", "pruned"):
            self.done += 1
        sign = 1 if self.objective["mode"] == "max" else -1
        if value is not None and (self.best is None or sign * value > sign * self.best[0]):
            self.best = (value, name)
        result = row.error
        if result is None and value is not None:
            result = f"{self.objective['metric']} {value:.4f}"
        count = f"{self.done + len(self.failed)}/{self.planned}"
        line = f"[{count}] {name}: {status}{f', {result}' if result else ''} ({time.monotonic() - started:.0f} s)"
        if self._live is not None and self._live.is_started:
            self._live.console.print(line, markup=False, highlight=False)  # above the table
        else:
            log.info(line)

    def refresh(self) -> None:
        """Draw the table again, where there is a terminal and trials do not write to it themselves."""
        if self._live is None or not self._running:
            return
        if not self._live.is_started:
            self._live.start()
        table = Table.grid(padding=(0, 2))
        for name, started in self._running.items():
            history = read_row(self.folder / name).history
            epoch = f"epoch {len(history)}" if history else ""
            if history and math.isfinite(value := history[-1].get(self.objective["metric"], math.nan)):
                epoch += f", {self.objective['metric']} {value:.4f}"
            table.add_row("running", name, f"{time.monotonic() - started:.0f} s", epoch)
        left = self.planned - self.done - len(self.failed)
        parts = [f"{self.done} done", f"{len(self._running)} running", f"{len(self.failed)} failed"]
        if self.best:
            parts.append(f"best {self.objective['metric']} {self.best[0]:.4f} ({self.best[1]})")
        if self._ended:
            parts.append(f"about {(time.monotonic() - self._started) / self._ended * left / 60:.0f} min left")
        self._live.update(Group(table, Text(" · ".join(parts))), refresh=True)

    def close(self) -> None:
        """Take the live table away."""
        if self._live is not None and self._live.is_started:
            self._live.stop()
