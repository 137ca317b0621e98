"""A progress bar on a terminal."""

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from typing_extensions import override

from cnnlab.bounds import NonNegativeFloat
from cnnlab.classifier import find_pace
from cnnlab.schedule import Pace


class Progress(Callback):
    """Show how far the training is, ten times a second at most, and only where somebody can see it."""

    def __init__(self, refresh_seconds: NonNegativeFloat = 0.1) -> None:
        self.refresh_seconds = refresh_seconds
        self._bar: Bar | None = None
        self._pace: Pace | None = None
        self._task = TaskID(0)
        self._next = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        console = get_console()
        if not (console.is_terminal and trainer.is_global_zero):
            return
        steps = trainer.estimated_stepping_batches
        total: float | None = int(steps) * trainer.accumulate_grad_batches if 0 <= steps < math.inf else None
        count: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("steps")]
        self._pace = find_pace(trainer)
        if self._pace is not None:  # the number of steps is only guessed
            total, count = 1.0, [TaskProgressColumn()]
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=None), *count,
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=total)
        self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.refresh_seconds
            self._bar.update(
                self._task,
                completed=self._pace.shares[-1] if self._pace else trainer.fit_loop.total_batch_idx + 1,
                description=f"epoch {trainer.current_epoch + 1}",
            )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=f"epoch {trainer.current_epoch + 1}, validation")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
