"""Stopping between steps when a signal came, so that nothing is cut in half."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from cnnlab import signals


class StopOnSignal(Callback):
    """Let the batch under way end before SIGINT or SIGTERM stops the run; a second signal stops it at once."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(True)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signals.raise_if_received()

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        signals.raise_if_received()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.raise_if_received()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(False)
        signals.raise_if_received()
