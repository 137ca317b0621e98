"""Who has which GPU: what the trials of a sweep are watched with."""

import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override


class Claim(Callback):
    """Lock the one GPU that this process sees, until the process ends; raise where another one has it.

    Args:
        folder: Of the locks: a file for each GPU, in which each seed that was trained there has a line.
        dies: The seed whose process kills itself in its second step.
    """

    def __init__(self, folder: str, dies: int) -> None:
        self.folder = Path(folder)
        self.dies = dies

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert pl_module.device == torch.device("cuda", 0)
        assert torch.cuda.device_count() == 1
        self.file = (self.folder / os.environ["CUDA_VISIBLE_DEVICES"]).open("a")
        fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(pl_module.seed, file=self.file, flush=True)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1 and pl_module.seed == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
