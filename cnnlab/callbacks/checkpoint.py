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

from cnnlab.bounds import PositiveFloat, PositiveInt, within_bounds
from cnnlab.checkpoint import Loaded, read_checkpoint, storable, write_checkpoint
from cnnlab.classifier import callbacks_of
from cnnlab.errors import Stopped
from cnnlab.files import copy_or_link
from cnnlab.patches import just_logged, may_stop, reopen_epoch, step_plateaus
from cnnlab.record import LAST

WATCHERS = ("checkpoint", "history", "progress", "figures", "dashboard")
"""Callbacks that never end a training."""


@within_bounds("callbacks.checkpoint")
class Checkpoint(lightning_callbacks.Checkpoint):
    """Keep the best and the last state of a run in `checkpoints/`.

    Lightning's ModelCheckpoint numbers its files, keeps a state whose metric is NaN, and trains on when it may not
    write.

    Where two states are equally good, the one with the lower `val/loss` is the best, and then the later one. A state
    that was never validated is the best only as long as none was: then it is the last one.

    Args:
        monitor: The metric that says which state is best, where a validation or an epoch of training has logged it.
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
        every_n_seconds: PositiveFloat | None = 300,
        every_n_steps: PositiveInt | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode}.")
        self.monitor = monitor
        self.mode = mode
        self.every_n_seconds = every_n_seconds or math.inf
        self.every_n_steps = every_n_steps or math.inf
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.folder = Path("checkpoints")
        self.is_interrupted = False  # whether last.ckpt was saved since a signal came
        self._validation: dict[str, float] = {}  # the metrics of this epoch's last validation
        self._validation_seconds: float | None = None
        self._epoch_ends = False
        self._was_stopped = False
        self._device = "cpu"

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
        self._device = trainer.strategy.root_device.type

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that early stopping ended, and that was killed in its test, has nothing left to train.
        trainer.should_stop = trainer.should_stop or self._was_stopped

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = {}

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (self._is_due(trainer) or self._is_before_long(trainer, batch_idx)) and resumable(trainer, batch_idx):
            self._save_last(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validation_seconds = time.monotonic() - self._validation_began
        self._validation = just_logged(trainer, trainer.fit_loop.epoch_loop.val_loop)
        self._keep_if_best(trainer, self._validation, self._validation)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step_plateaus(trainer)
        self._epoch_ends = True
        try:
            train = just_logged(trainer, trainer.fit_loop.epoch_loop)
            self._keep_if_best(trainer, train, train | self._validation)
            if self.best_score is None:
                # Noted before the state is saved: a run that is resumed from it may have nothing left but the test.
                self._note_best(trainer, None, train | self._validation)
            self._save_last(trainer)
            if self.best_score is None and trainer.is_global_zero:
                copy_or_link(self.last, self.best)
        finally:
            self._epoch_ends = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Elsewhere a step is half done, or a validation has a moving average's weights in place of the network's.
        if isinstance(exception, Stopped) and exception.between_steps:
            # The state before the signal stays as previous.ckpt: a run that diverges goes back to that one, as it
            # would have done without the signal.
            keep_previous = not self.is_interrupted
            self.is_interrupted = True
            self._save(trainer, self.last, keep_previous=keep_previous)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["was_stopped"] = trainer.should_stop and not has_all_steps(trainer)
        if self._epoch_ends and is_cut_short(trainer):
            reopen_epoch(checkpoint)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Where what ended the training was changed, it decides anew.
        before, now = (stoppers(hyper) for hyper in (checkpoint.get("hyper_parameters", {}), pl_module.hparams))
        self._was_stopped = bool(checkpoint.get("was_stopped")) and before == now

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("best_score", "best_metrics", "best_epoch", "best_step", "is_interrupted")
        return {"validation": self._validation, "device": self._device} | {name: getattr(self, name) for name in names}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_metrics = dict(state_dict["best_metrics"])
        # Not in the files of earlier versions.
        self.best_epoch = state_dict.get("best_epoch")
        self.best_step = state_dict.get("best_step")
        self.is_interrupted = state_dict.get("is_interrupted", False)
        self._validation = dict(state_dict.get("validation", {}))

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
        expected = self._validation_seconds
        if expected is None:  # the first validation: worth it if the training before it took long
            expected = time.monotonic() - self._saved_at
        if trainer.world_size == 1 and expected <= self.LONG_SECONDS:
            return False
        batches, every = validation_rhythm(trainer, batch_idx)
        if (batches + trainer.accumulate_grad_batches) // every == batches // every:
            return False
        # Processes save together, and their clocks differ.
        return bool(trainer.strategy.broadcast(expected > self.LONG_SECONDS))

    def _keep_if_best(self, trainer: Trainer, logged: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        score = logged.get(self.monitor)
        if score is not None and self._improves(score, metrics.get("val/loss", math.inf)):
            self._note_best(trainer, score, metrics)
            self._save(trainer, self.best)

    def _improves(self, score: float, loss: float) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        if score == self.best_score:
            return not loss > self.best_metrics.get("val/loss", math.inf)
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def _note_best(self, trainer: Trainer, score: float | None, metrics: Mapping[str, float]) -> None:
        self.best_score, self.best_metrics = score, dict(metrics)
        self.best_epoch, self.best_step = trainer.current_epoch, trainer.global_step

    def _save_last(self, trainer: Trainer) -> None:
        self.is_interrupted = False
        self._save(trainer, self.last)

    def _save(self, trainer: Trainer, path: Path, keep_previous: bool = True) -> None:
        trainer.save_checkpoint(path, storage_options=None if keep_previous else {"keep_previous": False})
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
        write_checkpoint(storable(checkpoint), Path(path), **(storage_options or {}))

    @override
    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        loaded, self.loaded = self.loaded, None
        if loaded is not None and loaded.path == Path(path):
            return loaded.content
        return read_checkpoint(Path(path), map_location)


def find_checkpoint(trainer: Trainer) -> Checkpoint | None:
    """Return the trainer's callback of this kind, wherever it stands among others that save; None without one."""
    return next(callbacks_of(trainer, Checkpoint), None)


def stoppers(hyper: Mapping[str, Any]) -> Any:
    """Return the part of a run's settings that may end its training before `max_epochs` and `max_steps`."""
    config = hyper.get("config", {})
    callbacks = {name: node for name, node in (config.get("callbacks") or {}).items() if name not in WATCHERS}
    return callbacks, config.get("trainer", {}).get("max_time")


def resumable(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a run resumed from a state saved after this training batch comes to the same bits.

    Gradients that are still being accumulated are in no checkpoint, and Lightning skips the validation that was due
    after the batch it resumes from. After the run's last batch there is nothing to resume, but the epoch's end is
    still to come.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    if has_all_steps(trainer) or (trainer.should_stop and may_stop(trainer)):
        return False
    batches, every = validation_rhythm(trainer, batch_idx)
    return batches % every != 0


def has_all_steps(trainer: Trainer) -> bool:
    """Whether a run has made the steps that `max_steps` allows."""
    return 0 <= trainer.max_steps <= trainer.global_step


def is_cut_short(trainer: Trainer) -> bool:
    """Whether an epoch that ends has batches left, as where `max_steps` or a callback ended the run inside it."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return not progress.is_last_batch and progress.current.ready < trainer.num_training_batches


def validation_rhythm(trainer: Trainer, batch_idx: int) -> tuple[int, float]:
    """Return the number of batches that count towards the next validation, and how many of them make one due."""
    if not trainer.enable_validation:
        return batch_idx + 1, math.inf
    if trainer.check_val_every_n_epoch is None:
        return trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch or math.inf
    if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
        return batch_idx + 1, math.inf
    return batch_idx + 1, trainer.val_check_batch or math.inf


def as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as Python numbers."""
    return {name: float(value) for name, value in metrics.items()}
