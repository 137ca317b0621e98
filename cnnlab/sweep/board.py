"""What a sweep shows while it runs: a live table on a terminal, a line a trial elsewhere."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cnnlab.console import ConsoleHandler
from cnnlab.files import printable
from cnnlab.sweep.table import read_row
from cnnlab.wording import format_duration, format_metric, shorten

PAUSE_SECONDS = 60  # between two lines of a trial that runs in this process: the board has a line for each


class Board:
    """Show how far a sweep is: trials done, running and failed, the best so far, the time left.

    Args:
        folder: The sweep's folder.
        objective: Its `metric` and `mode`.
    """

    def __init__(self, folder: Path, objective: Mapping[str, Any]) -> None:
        self.folder = folder
        self.planned = self.done = self.failed = 0
        self.best: tuple[float, str] | None = None
        self._metric = str(objective["metric"])
        self._sign = 1 if objective["mode"] == "max" else -1
        self._running: dict[str, float] = {}  # when each started
        self._started = time.monotonic()
        ConsoleHandler.pause_seconds = PAUSE_SECONDS
        self._ended = 0
        console = Console()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def plan(self, planned: int, done: int, size: int) -> None:
        """Say how many trials there are, how many of them are done already, and how many run at a time."""
        self.planned, self.done = planned, done
        parts = [f"{planned} trials", f"{done} done already" if done else "", f"{size} at a time" if size > 1 else ""]
        self.show(", ".join(filter(None, parts)))

    def start(self, name: str) -> None:
        """Say that a trial starts."""
        self._running[name] = ConsoleHandler.last = time.monotonic()

    def end(self, name: str) -> None:
        """Say that a trial has ended, however it did."""
        started = self._running.pop(name, time.monotonic())
        row = read_row(self.folder / name)
        self._ended += 1
        self.failed += row.status == "failed"
        self.done += row.status in ("completed", "pruned")
        facts = [row.status, row.error or "", f"{time.monotonic() - started:.0f} s"]
        if row.objective is not None:
            facts.insert(1, f"{self._metric} {format_metric(self._metric, row.objective)}")
            if self.best is None or self._sign * row.objective > self._sign * self.best[0]:
                self.best = (row.objective, name)
        count = f"{self.done + self.failed} of {self.planned}"
        self.show(printable(f"[{count}] {name}: {', '.join(filter(None, [*facts, *self._time_left()]))}"))

    def show(self, text: str) -> None:
        """Print a text, above the live table; a full disk or a closed pipe behind standard output ends no sweep."""
        try:
            if self._live is not None and self._live.is_started:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, flush=True)
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

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
            if history and math.isfinite(value := history[-1].get(self._metric, math.nan)):
                epoch += f", {self._metric} {format_metric(self._metric, value)}"
            table.add_row("running", shorten(name), f"{time.monotonic() - started:.0f} s", printable(epoch))
        parts = [f"{self.done} of {self.planned} done", f"{len(self._running)} running", f"{self.failed} failed"]
        parts += self._time_left()
        if self.best:
            parts.append(f"best {self._metric} {format_metric(self._metric, self.best[0])} ({shorten(self.best[1])})")
        line = Text(printable(" · ".join(parts)), no_wrap=True, overflow="ellipsis")
        self._live.update(Group(table, line), refresh=True)

    def _time_left(self) -> list[str]:
        left = self.planned - self.done - self.failed
        if not self._ended or left <= 0:
            return []
        half_done = len(self._running) / 2  # on average
        seconds = (time.monotonic() - self._started) / (self._ended + half_done) * (left - half_done)
        return [f"about {format_duration(seconds)} left"]

    def close(self) -> None:
        """Take the live table away."""
        ConsoleHandler.pause_seconds = 0
        if self._live is not None and self._live.is_started:
            self._live.stop()
