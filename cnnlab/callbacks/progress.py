"""A progress bar on a terminal, and now and then a line in a log."""

import logging
import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich import get_console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from typing_extensions import override

from cnnlab.bounds import NonNegativeFloat, within_bounds
from cnnlab.callbacks.history import History
from cnnlab.classifier import callbacks_of, find_pace
from cnnlab.schedule import Pace
from cnnlab.wording import format_duration, format_metric

log = logging.getLogger(__name__)

LEAST_BAR = 14  # characters, with what stands around it
LOG_SECONDS = 60.0  # at least, between two lines where there is no terminal


@within_bounds("callbacks.progress")
class Progress(Callback):
    """Show how far the training is, ten times a second at most; where there is no terminal, in a line a minute.

    Epoch, time left of the run, loss and accuracy of the epoch's steps so far, speed, time left of the epoch: on one
    line, as many of these as the terminal has room for.
    """

    def __init__(self, refresh_seconds: NonNegativeFloat = 0.1) -> None:
        self.refresh_seconds = refresh_seconds
        self._bar: Bar | None = None
        self._pace: Pace | None = None
        self._history: History | None = None
        self._task = TaskID(0)
        self._next = 0.0
        self._start: tuple[float, int] | None = None  # when the epoch's first step was done, and which that was

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        console = get_console()
        steps = trainer.estimated_stepping_batches
        total: float | None = int(steps) * trainer.accumulate_grad_batches if 0 <= steps < math.inf else None
        self._pace = find_pace(trainer)
        if self._pace is not None:  # the number of steps is only guessed
            total = 1.0
        self._history = next(callbacks_of(trainer, History), None)
        self._bar = Bar(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=None),
            console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=2.5 * LOG_SECONDS,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=total)
        self._bar.start()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = None
        if self._bar is not None and self._bar.disable:  # the epoch before has a line of its own
            self._next = time.monotonic() + LOG_SECONDS

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        self._start = self._start or (now, batch_idx)
        if now >= self._next:
            self._next = now + (LOG_SECONDS if self._bar.disable else self.refresh_seconds)
            completed = self._pace.shares[-1] if self._pace else trainer.fit_loop.total_batch_idx + 1
            self._bar.update(self._task, completed=completed)
            seconds = (now - self._start[0]) / max(1, batch_idx - self._start[1])
            description = self._describe(self._bar, trainer, len(batch.targets), batch_idx, seconds)
            if self._bar.disable:
                log.info(description)
            else:
                self._bar.update(self._task, description=description)

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

    def _describe(self, bar: Bar, trainer: Trainer, batch_size: int, batch_idx: int, seconds: float) -> str:
        """Return what stands before the bar: what matters most first, as much as there is room for.

        Args:
            bar: Knows how much is left, and how wide the terminal is.
            trainer: Knows the epoch.
            batch_size: Of each device.
            batch_idx: The last step's place in its epoch.
            seconds: That a step takes; 0 where that is not known yet.
        """
        epochs = trainer.max_epochs or -1
        parts = [f"epoch {trainer.current_epoch + 1}{f'/{epochs}' if epochs > 0 else ''}"]
        if (left := bar.tasks[0].time_remaining) is not None:
            parts.append(f"{format_duration(left)} left")
        if self._history:
            parts += [f"{name} {format_metric(name, value)}" for name, value in self._history.so_far().items()]
        if seconds:
            parts.append(f"{batch_size * trainer.world_size / seconds:,.0f} images/s")
            if not math.isinf(trainer.num_training_batches):
                left = (trainer.num_training_batches - batch_idx - 1) * seconds
                parts.append(f"{format_duration(left)} of the epoch")
        while len(parts) > 1 and not bar.disable and len(", ".join(parts)) + LEAST_BAR > bar.console.width:
            parts.pop()
        return ", ".join(parts)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
