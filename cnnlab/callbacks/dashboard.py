"""What TensorBoard shows besides curves and pictures: its layout, the network's graph, the HParams tab."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.jit import TracerWarning
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from cnnlab.callbacks.figures import data_of, first_batch

LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["train/loss_epoch", "val/loss"]],
        "accuracy": ["Multiline", ["train/accuracy", "val/accuracy"]],
        "loss of every step": ["Multiline", ["^train/loss$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "images per second": ["Multiline", ["images_per_second"]],
    }
}


class Dashboard(Callback):
    """Arrange TensorBoard for a run: train and validation on one chart, the graph, the run's real results."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        for writer in writers(trainer):
            writer.add_custom_scalars(LAYOUT)
            if data is not None:
                images = first_batch(data).images[:1].to(pl_module.device)
                with warnings.catch_warnings():
                    # Tracing fixes sizes that are decided in Python; the graph is only looked at.
                    warnings.simplefilter("ignore", TracerWarning)
                    warnings.simplefilter("ignore", DeprecationWarning)
                    training = pl_module.training
                    pl_module.eval()
                    writer.add_graph(pl_module.network, images)
                    pl_module.train(training)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        settings = dict(leaves(pl_module.hparams.get("config", {})))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.log_hyperparams(settings, metrics)


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """Yield the TensorBoard writers of the process that writes."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's values under their dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
