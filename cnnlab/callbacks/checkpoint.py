"""best.ckpt and last.ckpt."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning import callbacks as lightning_callbacks
from typing_extensions import override

from cnnlab.checkpoint import Loaded, read_checkpoint, write_checkpoint
from cnnlab.errors import Stopped
from cnnlab.files import copy_or_link
from cnnlab.record import LAST


class Checkpoint(lightning_callbacks.Checkpoint):
    """Keep the best and the last state of a run in `checkpoints/`.

    Lightning's ModelCheckpoint numbers its files, keeps a state whose metric is NaN, and trains on when it may not
    write.

    Args:
        monitor: The metric that says which state is best, as in `val/accuracy`. Where it is not measured, as without
            validation, the last state is the best.
        mode: Whether more (`max`) or less (`min`) is better.
        every_n_seconds: Save `last.ckpt` inside an epoch when so many seconds have passed since it was last saved.
        every_n_steps: Likewise after so many optimizer steps.

    A validation that takes longer than `LONG_SECONDS` has `last.ckpt` saved before it, so that a signal need not
    wait for its end.
    """

    LONG_SECONDS = 5.0

    def __init__(
        self,
        monitor: str = "val/accuracy",
        mode: Literal["min", "max"] = "max",
        every_n_seconds: float | None = 300,
        every_n_steps: int | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode}.")
        self.monitor = monitor
        self.mode = mode
        self.every_n_seconds = every_n_seconds or math.inf
        self.every_n_steps = every_n_steps or math.inf
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.folder = Path("checkpoints")
        self._validation_seconds: float | None = None

    @property
    def best(self) -> Path:
        """The file with the best state."""
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / LAST

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if resumable(trainer, batch_idx) and (self._is_due(trainer) or self._is_before_long(trainer, batch_idx)):
            self._save(trainer, self.last)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validation_seconds = time.monotonic() - self._validation_began
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and self._improves(float(score)):
            self.best_score = float(score)
            # Those of training are still the last epoch's.
            metrics = as_numbers(trainer.callback_metrics)
            self.best_metrics = {name: metrics[name] for name in metrics if name.startswith("val/")}
            self._save(trainer, self.best)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitored = self.monitor in trainer.callback_metrics
        if not monitored:
            # Noted before the state is saved: a run that is resumed from it may have nothing left but the test.
            self.best_metrics = as_numbers(trainer.callback_metrics)
        self._save(trainer, self.last)
        if not monitored and trainer.is_global_zero:
            copy_or_link(self.last, self.best)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Elsewhere a step is half done, or a validation has a moving average's weights in place of the network's.
        if isinstance(exception, Stopped) and exception.between_steps:
            self._save(trainer, self.last)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_metrics": self.best_metrics}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_metrics = dict(state_dict["best_metrics"])

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.global_step - self._saved_step >= self.every_n_steps:
            return True
        if trainer.world_size == 1:
            return time.monotonic() - self._saved_at >= self.every_n_seconds
        # Processes save together, and their clocks differ: the first process decides, asked now and then.
        if self.every_n_seconds == math.inf or trainer.fit_loop.total_batch_idx % 100:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.every_n_seconds)

    def _is_before_long(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a validation that may take long comes before the next state that can be saved."""
        batches, every = validation_rhythm(trainer, batch_idx)
        if (batches + trainer.accumulate_grad_batches) // every == batches // every:
            return False
        expected = self._validation_seconds
        if expected is None:  # the first validation: worth it if the training before it took long
            expected = time.monotonic() - self._saved_at
        # Processes save together, and their clocks differ.
        return bool(trainer.strategy.broadcast(expected > self.LONG_SECONDS))

    def _improves(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def _save(self, trainer: Trainer, path: Path) -> None:
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints sealed and in one step; read plain containers only.

    Attributes:
        loaded: A checkpoint that was read already: the next load of its path returns it, once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loaded: Loaded | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    @override
    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        loaded, self.loaded = self.loaded, None
        if loaded is not None and loaded.path == Path(path):
            return loaded.content
        return read_checkpoint(Path(path), map_location)


def resumable(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a run resumed from a state saved after this training batch comes to the same bits.

    Gradients that are still being accumulated are in no checkpoint, and Lightning skips the validation that was due
    after the batch it resumes from.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    batches, every = validation_rhythm(trainer, batch_idx)
    return batches % every != 0


def validation_rhythm(trainer: Trainer, batch_idx: int) -> tuple[int, float]:
    """Return the number of batches that count towards the next validation, and how many of them make one due."""
    batches = batch_idx + 1 if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx + 1
    return batches, (trainer.val_check_batch or math.inf) if trainer.enable_validation else math.inf


def as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as Python numbers."""
    return {name: float(value) for name, value in metrics.items()}
