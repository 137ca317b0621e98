"""Stop between steps when a signal came, so that no step is cut in half."""

import logging
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning import callbacks as lightning_callbacks
from typing_extensions import override

from cnnlab import signals
from cnnlab.callbacks.checkpoint import resumable
from cnnlab.errors import Stopped

log = logging.getLogger(__name__)

VALIDATION_GRACE_SECONDS = 5.0  # that a validation under way may take to its end
AGREE_EVERY = 10
"""Batches after which several processes ask each other for signals: they wait for one another and for the device."""


class Timer(lightning_callbacks.Timer):
    """Stop when the time is up, and say so in the log.

    Lightning's own ends a run that is resumed after its time without the end of the epoch: no row in the history, no
    validation. Here one more step is made.
    """

    @override
    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None: ...

    @override
    def _check_time_remaining(self, trainer: Trainer) -> None:
        was_stopped = trainer.should_stop
        super()._check_time_remaining(trainer)
        if trainer.should_stop and not was_stopped:
            log.info(f"trainer.max_time is up in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}")


class LastStep(Callback):
    """Have the state validated that `max_steps` ends a run with inside an epoch.

    Lightning ends such a run without: the last state would never be the best one, and where there was no whole epoch
    before, nothing would be measured.
    """

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step + 1 >= trainer.max_steps:
            trainer.should_stop = True


class StopOnSignal(Callback):
    """Let the batch under way end before SIGINT or SIGTERM stops the run; a second signal stops it at once."""

    def __init__(self) -> None:
        self._batches = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(True)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signum = signals.received()
        if (signum or trainer.world_size > 1) and resumable(trainer, batch_idx):
            self._stop_now_and_then(trainer, signum, between_steps=True)

    @override
    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # After the validation the epoch's state is saved; before a validation that takes longer, a state was saved.
        self._stop_now_and_then(trainer, signals.received() if signals.waited(VALIDATION_GRACE_SECONDS) else 0)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_together(trainer, signals.received())
        signals.defer(False)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(trainer.world_size > 1)

    @override
    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._stop_now_and_then(trainer, signals.received())

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(False)
        signals.raise_if_received()

    def _stop_now_and_then(self, trainer: Trainer, signum: int, *, between_steps: bool = False) -> None:
        self._batches += 1
        # Every process counts the same batches, so all of them ask after the same one.
        if trainer.world_size == 1 or self._batches % AGREE_EVERY == 0:
            stop_together(trainer, signum, between_steps=between_steps)


def stop_together(trainer: Trainer, signum: int, *, between_steps: bool = False) -> None:
    """Stop if a signal came to any of the run's processes: all after the same batch, or one would wait for another."""
    if trainer.world_size > 1:
        flag = torch.tensor(signum, device=trainer.strategy.root_device)
        signum = int(trainer.strategy.reduce(flag, reduce_op="max"))
    if signum:
        raise Stopped(signum, between_steps=between_steps)
