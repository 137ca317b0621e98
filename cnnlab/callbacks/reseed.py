"""Random numbers of a user's own code that a resumed run draws again."""

import random
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from cnnlab.batch import mix_seed
from cnnlab.classifier import manual_seed


class Reseed(Callback):
    """Restart the random numbers of PyTorch, NumPy and Python before each epoch and each step.

    No checkpoint holds where they are; `Classifier` restarts PyTorch's in its own step. It stands before all other
    callbacks, so that what theirs draw is repeated too.

    Args:
        seed: Decides them, together with the step and the process.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(trainer, pl_module, 0, trainer.current_epoch)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restart(trainer, pl_module, trainer.fit_loop.total_batch_idx)

    def _restart(self, trainer: Trainer, module: LightningModule, *place: int) -> None:
        seed = mix_seed(self.seed, *place, trainer.global_rank)
        manual_seed(module.device, seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # the generator that others' code draws from
