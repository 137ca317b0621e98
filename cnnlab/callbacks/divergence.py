"""Stop when the loss or the weights are not finite, before such a state can be saved."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cnnlab.batch import Batch
from cnnlab.classifier import first_group
from cnnlab.data import DataModule
from cnnlab.errors import DivergedError

log = logging.getLogger(__name__)

CHECK_EVERY = 50  # steps


class Divergence(Callback):
    """Check that losses and weights are finite: every so many steps, before a validation and a save, after an epoch.

    A step only leaves its loss on the device; a gradient that is not finite shows in the weights, which are looked at
    with the losses. Since every save comes after a check, no checkpoint holds such a state.

    Args:
        rollbacks: How often the learning rate is halved, including those in the checkpoint that is resumed from.

    Raises:
        DivergedError: Something is not finite.
    """

    def __init__(self, rollbacks: int = 0) -> None:
        self.rollbacks = rollbacks
        self._rollbacks_before = 0
        self._pending: list[tuple[int, Tensor | None, float, Tensor]] = []  # step, loss, lr, the batch's indices

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ratio = 0.5 ** (self.rollbacks - self._rollbacks_before)
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):  # the last two are OneCycleLR's
                if name in group:
                    group[name] *= ratio
        for config in trainer.lr_scheduler_configs:
            scale_rates(config.scheduler, ratio)
        self._rollbacks_before = self.rollbacks
        self._group = first_group(trainer)
        self._lr = self._group["lr"]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._pending.append((trainer.fit_loop.total_batch_idx, outputs.get("loss"), self._lr, batch.indices))
        # The schedule has moved on already: what stands in the optimizer is the next step's.
        self._lr = self._group["lr"]
        if len(self._pending) >= CHECK_EVERY:
            self._check(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rollbacks_before = state_dict["rollbacks"]
        self.rollbacks = max(self.rollbacks, self._rollbacks_before)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._pending:
            return
        steps, losses, lrs, indices = zip(*self._pending, strict=True)
        self._pending.clear()
        values = read_back(losses)
        at = next((at for at, value in enumerate(values) if value is not None and not math.isfinite(value)), None)
        reason = f"the loss of step {steps[at]} is {values[at]}" if at is not None else ""
        if at is None and not is_finite(pl_module):
            # Had an earlier step's gradient done it, the next step's loss would say so.
            at = len(steps) - 1
            reason = f"the gradient of step {steps[at]} is not finite"
        diverged = at is not None
        if trainer.world_size > 1:  # stop together, or one process would wait for the other
            flag = torch.tensor(int(diverged), device=trainer.strategy.root_device)
            diverged = bool(trainer.strategy.reduce(flag, reduce_op="max"))
            reason = reason or f"another process' loss or gradient, by step {steps[-1]}, is not finite"
        if not diverged:
            return
        at = len(steps) - 1 if at is None else at
        images = rows(trainer, indices[at])
        log.info(f"the images of step {steps[at]}, as rows of the training set: {images}")
        some = ", ".join(map(str, images[:5])) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
        raise DivergedError(
            f"training diverged: {reason}, at optimizer.lr={lrs[at]:.3g}, with training images {some}. Try a lower "
            "optimizer.lr, a warm-up (schedule=cosine), trainer.gradient_clip_val=1, or on_divergence=rollback."
        )


def read_back(losses: Sequence[Tensor | None], factor: int = 1) -> list[float | None]:
    """Return losses, times a factor, as numbers in float32, in one go; None where a step of the user's own has none."""
    measured = [loss for loss in losses if loss is not None]
    values = iter((torch.stack(measured).float() * factor).tolist() if measured else [])
    return [None if loss is None else next(values) for loss in losses]


def scale_rates(scheduler: Any, ratio: float) -> None:
    """Multiply the learning rates that a scheduler of torch's keeps, and those of the schedulers that it is made of.

    Where it keeps none, as ReduceLROnPlateau, it takes the optimizer's.
    """
    for name in ("base_lrs", "max_lrs"):  # the latter are CyclicLR's
        if hasattr(scheduler, name):
            setattr(scheduler, name, [lr * ratio for lr in getattr(scheduler, name)])
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        scale_rates(inner, ratio)


def is_finite(module: torch.nn.Module) -> bool:
    """Whether all weights of a module are finite."""
    # The largest absolute value, in one operation for all of them: it is NaN where any value is.
    largest = torch._foreach_norm([parameter.detach() for parameter in module.parameters()], torch.inf)
    return all(math.isfinite(value) for value in torch.stack([value.float() for value in largest]).tolist())


def rows(trainer: Trainer, indices: Tensor) -> list[int]:
    """Return the places of a batch's images in the training set as the data's file has it."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    positions = indices.cpu()
    return (data.rows("train")[positions] if isinstance(data, DataModule) else positions).tolist()
