"""best.ckpt and last.ckpt."""

import io
import math
import os
import pickle
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning import __version__ as lightning_version
from pytorch_lightning import callbacks as lightning_callbacks
from typing_extensions import override

from cnnlab.errors import CheckpointError, MachineError, Stopped, UnsafeError
from cnnlab.record import LAST, PREVIOUS
from cnnlab.seal import has_seal, is_whole, sealed


class Checkpoint(lightning_callbacks.Checkpoint):
    """Keep the best and the last state of a run in `checkpoints/`.

    Lightning's ModelCheckpoint numbers its files, keeps a state whose metric is NaN, and goes on when it may not
    write.

    Args:
        monitor: The metric that says which state is best, as in `val/accuracy`. When it is not there, as without
            validation, the last state is the best.
        mode: Whether more (`max`) or less (`min`) is better.
        every_n_seconds: Save `last.ckpt` inside an epoch when so many seconds have passed since it was last saved.
        every_n_steps: Likewise after so many optimizer steps.

    A validation that takes longer than `LONG_SECONDS` has `last.ckpt` saved in front of it, so that a signal need not
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
        """The file to go on from."""
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
            metrics = plain(trainer.callback_metrics)
            self.best_metrics = {name: metrics[name] for name in metrics if name.startswith("val/")}
            self._save(trainer, self.best)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            # Noted before the state is saved: a run that goes on from it may have nothing left but the test.
            self.best_metrics = plain(trainer.callback_metrics)
            self._save(trainer, self.best)
        self._save(trainer, self.last)

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
        # Processes save together, and their clocks differ: the first one's decides, asked now and then.
        if self.every_n_seconds == math.inf or trainer.fit_loop.total_batch_idx % 100:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.every_n_seconds)

    def _is_before_long(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a validation that may take long comes before the next state that can be saved."""
        batches, every = validation_rhythm(trainer, batch_idx)
        if (batches + trainer.accumulate_grad_batches) // every == batches // every:
            return False
        expected = self._validation_seconds
        if expected is None:  # the first one: worth it if the training before it took long
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
    """Write a checkpoint beside its target, sealed, and rename it when it is on the disk; read plain containers only.

    The `last.ckpt` that it takes the place of stays as `previous.ckpt`.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        # Into memory first: torch would turn a full disk into another error.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_sealed(path, buffer.getvalue())

    @override
    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        return read_checkpoint(Path(path), map_location)


def write_sealed(path: Path, content: bytes) -> None:
    """Put what `torch.save` made in the place of a checkpoint, in one step; at every moment a whole one is there.

    Raises:
        MachineError: What arrived on the disk is not what was written.
        OSError: The disk is full, or the folder may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.unlink(missing_ok=True)  # of a run that was killed
        with beside.open("xb") as file:
            file.writelines(sealed(content))
            file.flush()
            os.fsync(file.fileno())
        if not is_whole(beside):
            raise MachineError(
                f"{path} was not written as it should be: the disk returns other bytes. The old one stays."
            )
        if path.name == LAST and path.exists():
            keep(path, path.with_name(PREVIOUS))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    flush_folder(path.parent)


def keep(path: Path, name: Path) -> None:
    """Give a file a second name in one step."""
    link = name.with_name(f".{name.name}.part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # a file system without links: for a moment only the second name is there, which is read too
        path.replace(name)
    else:
        link.replace(name)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint's containers and tensors; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged, or not cnnlab's.
        UnsafeError: The file asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint.")
    whole = is_whole(path)
    if not whole and has_seal(path):
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written. {_instead(path)}")
    try:
        # True whatever the environment says: a checkpoint is data.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"(?i)unsupported|not an allowed global", str(error)):
            raise UnsafeError(f"{path} holds more than tensors and plain containers and was not loaded.") from error
        raise CheckpointError(f"{path} is damaged and cannot be loaded. {_instead(path)}") from error
    except Exception as error:  # torch promises nothing about which ones, for a file of chance
        raise CheckpointError(f"{path} is damaged ({first_line(error)}). {_instead(path)}") from error
    if not whole:
        raise CheckpointError(f"{path} has no seal: it is damaged, or train.py did not write it. {_instead(path)}")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} must be a checkpoint that cnnlab wrote; it has no state_dict.")
    written = str(checkpoint.get("pytorch-lightning_version", "0"))
    if release(written) > release(lightning_version):
        raise CheckpointError(
            f"{path} was written by pytorch-lightning {written}, and this is {lightning_version}: install that one."
        )
    return checkpoint


def _instead(path: Path) -> str:
    """Name the next step where a checkpoint cannot be used."""
    beside = (
        other for other in path.parent.glob("*.ckpt") if other != path and os.access(other, os.R_OK) and other.is_file()
    )
    whole = sorted(other.name for other in beside if is_whole(other))
    return f"Put a copy of it back{f', or take {whole[0]} beside it' if whole else ''}."


def release(version: str) -> tuple[int, ...]:
    """Return the numbers that say what a version's checkpoints hold."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message."""
    return next(iter(str(error).splitlines()), "")[:200]


def resumable(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a state saved after this training batch can be gone on from to the same bits.

    Gradients that are still being accumulated are in no checkpoint, and Lightning skips the validation that was due
    after the batch it goes on from.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    batches, every = validation_rhythm(trainer, batch_idx)
    return batches % every != 0


def validation_rhythm(trainer: Trainer, batch_idx: int) -> tuple[int, float]:
    """Return the number of batches that count towards the next validation, and how many of them make one due."""
    batches = batch_idx + 1 if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx + 1
    return batches, (trainer.val_check_batch or math.inf) if trainer.enable_validation else math.inf


def plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as Python numbers."""
    return {name: float(value) for name, value in metrics.items()}


def flush_folder(folder: Path) -> None:
    """Put a folder's entries on the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
