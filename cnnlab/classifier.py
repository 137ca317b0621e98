"""The LightningModule: what a step computes, and which metrics are kept."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score
from typing_extensions import override

from cnnlab.batch import PADDING, Batch, mix_seed
from cnnlab.patches import QuickHookNames
from cnnlab.schedule import Constant
from cnnlab.tta import TTA, average_views


class Classifier(QuickHookNames):
    """Train a network to tell classes apart.

    Args:
        network: Takes images (uint8, or float from 0 to 1), returns logits.
        num_classes: Number of classes.
        optimizer: Builds the optimizer from the network.
        schedule: Learning rate's factor at (step, total_steps); None keeps the learning rate.
        label_smoothing: Share of the target that is spread evenly over all classes, 0 to 1.
        seed: Decides dropout, together with the step.
        tta: Test-time augmentation, see `tta.average_views`; validation has none.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int, int], float] | None = None,
        label_smoothing: float = 0.0,
        seed: int = 0,
        tta: TTA = "none",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}.")
        self.network = network
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.tta = tta
        self.val_metrics = evaluation_metrics(num_classes, "val/")
        self.test_metrics = evaluation_metrics(num_classes, "test/", full=True)
        self.test_outputs: list[tuple[Tensor, ...]] = []

    @override
    def forward(self, images: Tensor) -> Float[Tensor, "batch classes"]:
        return self.network(images)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        # Dropout's randomness is a function of (seed, step, rank): a resumed run draws what it would have drawn.
        reseed(self.device, mix_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank))
        logits = self.network(batch.images)
        loss = cross_entropy(logits, batch.targets, self.label_smoothing)
        return {"loss": loss, "logits": logits.detach()}

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # torch would launch an operation for this one in every step.
        loss.backward(ones_for(loss.dtype, loss.device), *args, **kwargs)

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
        optimizer = self.optimizer(self.network)
        if self.schedule is None or isinstance(self.schedule, Constant):
            return optimizer  # nothing to do in each step
        schedule, total_steps = self.schedule, int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: schedule(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, network: Callable[[Tensor], Tensor], batch: Batch, metrics: MetricCollection) -> Tensor:
        logits = network(batch.images).float()
        update(metrics, logits, batch.targets)
        return logits

    def _log(self, metrics: MetricCollection) -> None:
        # Not to the loggers: History gives them the epoch's values together, on an epoch axis.
        self.log_dict(metrics.compute(), logger=False)
        metrics.reset()


def cross_entropy(
    logits: Float[Tensor, "batch classes"],
    targets: Int64[Tensor, "batch"] | Float[Tensor, "batch classes"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the cross-entropy to targets of which a share is spread evenly over all classes.

    torch's own does the same in 22 operations, its gradient included, this one in 12: each is a launch on a GPU.
    """
    if not label_smoothing or targets.is_floating_point():
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    log_shares = F.log_softmax(logits, dim=1)
    nll = F.nll_loss(log_shares, targets)
    return torch.sub((1 - label_smoothing) * nll, log_shares.mean(), alpha=label_smoothing)


def evaluation_metrics(num_classes: int, prefix: str, *, full: bool = False) -> MetricCollection:
    """Return the metrics of a split: accuracy and loss; `full` adds macro F1, calibration error and top 5.

    Top 5 needs more than ten classes to say anything. Loss is the plain cross-entropy, without label smoothing.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING, validate_args=False),
        "loss": MeanMetric(),
    }
    if num_classes > 10:
        metrics["top5_accuracy"] = MulticlassAccuracy(
            num_classes, top_k=5, average="micro", ignore_index=PADDING, validate_args=False
        )
    if full:
        metrics["macro_f1"] = MulticlassF1Score(num_classes, ignore_index=PADDING, validate_args=False)
        metrics["calibration_error"] = MulticlassCalibrationError(
            num_classes, ignore_index=PADDING, validate_args=False
        )
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def update(metrics: MetricCollection, logits: Float[Tensor, "batch classes"], targets: Int64[Tensor, "batch"]) -> None:
    """Let the metrics of a split see a batch."""
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=PADDING)
    metrics["loss"].update(losses, targets != PADDING)
    for name, metric in metrics.items(keep_base=True):
        if name != "loss":
            metric.update(logits, targets)


@cache
def ones_for(dtype: torch.dtype, device: torch.device) -> Float[Tensor, ""]:
    """Return the gradient of a loss with respect to itself."""
    return torch.ones((), dtype=dtype, device=device)


def reseed(device: torch.device, seed: int) -> None:
    """Restart PyTorch's own random numbers on a device.

    `torch.manual_seed` does it for every kind of device and takes 0.2 ms, a twentieth of a small network's step.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
