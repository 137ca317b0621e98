"""The LightningModule: what a step computes, and which metrics are kept."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from cnnlab.batch import Batch, mix_seed
from cnnlab.errors import ConfigError
from cnnlab.loss import CrossEntropy
from cnnlab.metrics import MetricBuilder, SplitMetrics
from cnnlab.patches import QuickModule, run_backward
from cnnlab.schedule import Constant, Pace, Scheduler
from cnnlab.tta import TTA, average_views

Kind = TypeVar("Kind", bound=Callback)


class Classifier(QuickModule):
    """Train a network to tell classes apart.

    Args:
        network: Takes images (uint8, or float from 0 to 1), returns logits.
        num_classes: Number of classes.
        optimizer: Builds the optimizer from the network.
        schedule: Learning rate's factor at (step, total_steps), or a scheduler of torch's; None keeps the rate.
        loss: Loss of (logits, targets); cross-entropy if None.
        metrics: What validation and test measure beside the loss, by name; `metrics.DEFAULT` if None.
        seed: Decides dropout, together with the step.
        tta: Test-time augmentation, see `tta.average_views`; validation has none.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int, int], float] | Scheduler | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metrics: Mapping[str, MetricBuilder] | None = None,
        seed: int = 0,
        tta: TTA = "none",
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.schedule = schedule
        self.loss = CrossEntropy() if loss is None else loss
        self.seed = seed
        self.tta = tta
        self.val_metrics = SplitMetrics(num_classes, "val/", metrics)
        self.test_metrics = SplitMetrics(num_classes, "test/", metrics)
        self.test_outputs: list[tuple[Tensor, ...]] = []

    @override
    def forward(self, images: Tensor) -> Float[Tensor, "batch classes"]:
        return self.network(images)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        self.reseed()
        logits = self.network(batch.images)
        loss = self.loss(logits, batch.targets)
        return {"loss": loss, "logits": logits.detach()}

    def reseed(self) -> None:
        """Restart torch's random numbers, dropout's among them, from (seed, step, rank).

        A training step begins with it, so that a resumed run draws what it would have drawn.
        """
        seed = mix_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        manual_seed(self.device, seed)

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # torch would launch an operation for this one in every step.
        ones = ones_for(loss.dtype, loss.device)
        if args or kwargs:
            loss.backward(ones, *args, **kwargs)
        else:
            run_backward(loss, ones)

    @override
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        # What `optimizer.zero_grad()` does, without its profiling and its search for foreach groups.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(self.network, batch, self.val_metrics)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log(self.val_metrics)

    @override
    def on_test_start(self) -> None:
        self.test_outputs.clear()

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._evaluate(average_views(self.network, self.tta), batch, self.test_metrics)
        self.test_outputs.append((logits, batch.targets, batch.indices))

    @override
    def on_test_epoch_end(self) -> None:
        self._log(self.test_metrics)

    @override
    def configure_optimizers(self) -> Any:
        # A loss may have parameters of its own, which are trained with the network's.
        trained: nn.Module = self.network
        if isinstance(self.loss, nn.Module) and list(self.loss.parameters()):
            trained = nn.ModuleDict({"network": self.network, "loss": self.loss})
        optimizer = self.optimizer(trained)
        if self.schedule is None or isinstance(self.schedule, Constant):
            return optimizer  # nothing to do in each step
        if isinstance(self.schedule, Scheduler):
            return {"optimizer": optimizer, "lr_scheduler": self.schedule.configure(optimizer)}
        schedule, place = self.schedule, step_counter(self.trainer, "schedule")
        scheduler = LambdaLR(optimizer, lambda step: schedule(*place(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, network: Callable[[Tensor], Tensor], batch: Batch, metrics: SplitMetrics) -> Tensor:
        logits = network(batch.images).float()
        metrics.update(logits, batch.targets)
        return logits

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "batch classes"]:
        return average_views(self.network, self.tta)(batch.images)

    def _log(self, metrics: SplitMetrics) -> None:
        # Where a callback records the history, it gives the loggers the epoch's values together, on an epoch axis.
        recorded = any(getattr(callback, "logs_epochs", False) for callback in callbacks_of(self.trainer, Callback))
        self.log_dict(metrics.compute(), logger=not recorded)
        metrics.reset()


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> Iterator[Kind]:
    """Yield the trainer's callbacks of a kind, wherever they stand among others."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in callbacks if isinstance(callback, kind))


def first_group(trainer: Trainer) -> dict[str, Any]:
    """Return the group of parameters whose `lr` stands for the run's; it is NaN where a module has no optimizer."""
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return next(groups, {"lr": math.nan})


def find_pace(trainer: Trainer) -> Pace | None:
    """Return how far the run is at each step, where it has a budget of time."""
    paces = (getattr(callback, "pace", None) for callback in callbacks_of(trainer, Callback))
    return next((pace for pace in paces if isinstance(pace, Pace)), None)


def step_counter(trainer: Trainer, purpose: str) -> Callable[[int], tuple[int, int]]:
    """Return what says which of how many optimizer steps a step is.

    Args:
        trainer: Knows the limits.
        purpose: What needs their number, for the message.

    Raises:
        ConfigError: The run's length is not known beforehand.
    """
    if pace := find_pace(trainer):
        return pace.place
    steps = trainer.estimated_stepping_batches
    if not 0 <= steps < math.inf:
        raise ConfigError(
            f"{purpose} follows the share of the run that is over, but this run's length is not known beforehand: give "
            f"trainer.max_epochs, trainer.max_steps or a budget, or leave {purpose} out."
        )
    total_steps = int(steps)
    return lambda step: (step, total_steps)


def require_parts(module: LightningModule, purpose: str) -> Classifier:
    """Return a LightningModule as one that has a Classifier's `network`, `loss` and `optimizer`.

    Args:
        module: It may be a user's own.
        purpose: What needs them, for the message.

    Raises:
        ConfigError: It lacks one.
    """
    missing = [name for name in ("network", "loss", "optimizer") if not callable(getattr(module, name, None))]
    if missing:
        raise ConfigError(
            f"{purpose} needs {' and '.join(f'self.{name}' for name in missing)}, which {type(module).__name__} has "
            "not: set it in the constructor as cnnlab.Classifier does."
        )
    return cast(Classifier, module)


@cache
def ones_for(dtype: torch.dtype, device: torch.device) -> Float[Tensor, ""]:
    """Return the gradient of a loss with respect to itself."""
    return torch.ones((), dtype=dtype, device=device)


def manual_seed(device: torch.device, seed: int) -> None:
    """Restart PyTorch's own random numbers on a device.

    `torch.manual_seed` does it for every kind of device and takes 0.2 ms, a twentieth of a small network's step.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
