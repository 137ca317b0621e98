"""What is measured on validation and test: metrics of torchmetrics' by name, beside the loss.

`loss` is the plain cross-entropy whatever the training lowers, so that runs with other losses can be compared.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)  # fmt: skip
from typing_extensions import override

from cnnlab.batch import PADDING
from cnnlab.errors import ConfigError

LOSS = "loss"

MetricBuilder = Callable[..., Metric]
"""Builds a metric; offered `num_classes`, `ignore_index` and `validate_args` where it names them."""

DEFAULT: Mapping[str, MetricBuilder] = {
    "accuracy": lambda **offered: MulticlassAccuracy(average="micro", **offered),
    "macro_f1": MulticlassF1Score,
    "calibration_error": MulticlassCalibrationError,
    "top5_accuracy": lambda **offered: MulticlassAccuracy(average="micro", top_k=5, **offered),
}
"""What conf/metrics/default.yaml says, for use without a config."""


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean over the classes of the share of their images that is right; torchmetrics' has a 0 for absent classes."""

    higher_is_better = True

    @override
    def compute(self) -> Tensor:
        matrix = super().compute()
        images = matrix.sum(1)
        return (matrix.diag() / images)[images > 0].mean()


class SplitMetrics(MetricCollection):
    """The loss and the metrics of one split, under names such as `val/accuracy`.

    They are computed in float32 whatever the network's precision is: two ways to the same logits give the same values.

    Args:
        num_classes: Number of classes.
        prefix: The split and a slash, or nothing.
        builders: The metrics by name; `DEFAULT` if None. One of the k likeliest classes is left out where there are
            no more than 2k classes, where it says little.

    Raises:
        ConfigError: A metric is none of a classification's, or gives more than one number.
    """

    def __init__(self, num_classes: int, prefix: str = "", builders: Mapping[str, MetricBuilder] | None = None) -> None:
        metrics: dict[str, Metric | MetricCollection] = {LOSS: MeanMetric(nan_strategy=math.nan)}
        for name, build in (DEFAULT if builders is None else builders).items():
            if (metric := build_metric(name, build, num_classes)) is not None:
                metrics[name] = metric
        # Each keeps a state of its own: groups are found out by comparing states, which waits for the device.
        super().__init__(metrics, prefix=prefix, compute_groups=False)

    def update(self, logits: Float[Tensor, "batch classes"], targets: Int64[Tensor, "batch"]) -> None:  # type: ignore[override]
        """See a batch; targets that are `PADDING` count nowhere."""
        with default_float32():
            losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=PADDING)
            # torchmetrics takes numbers that all lie from 0 to 1 for probabilities: they become logits of the same
            # softmax and order below 0.
            is_unclear = ((logits >= 0) & (logits <= 1)).all()
            scores = torch.where(is_unclear, logits - logits.amax(1, keepdim=True) - 1e-30, logits)
            for name, metric in self.items(keep_base=True):
                if name == LOSS:
                    metric.update(losses, targets != PADDING)
                elif getattr(metric, "ignore_index", None) == PADDING:
                    metric.update(scores, targets)
                else:
                    is_image = targets != PADDING
                    metric.update(logits[is_image], targets[is_image])

    @override
    def compute(self) -> dict[str, Any]:
        with default_float32():
            return super().compute()

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # With the network, Lightning converts what belongs to its module; torchmetrics lets only some spellings pass.
        super()._apply(*args, **kwargs)
        self.set_dtype(torch.float32)
        return self


def begun_states(module: nn.Module) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return updates and state of each of a module's metrics that has seen something since it was reset, by its name.

    torchmetrics keeps them out of a module's state.
    """
    return {
        name: (metric.update_count, dict(metric.metric_state))
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric.update_called
    }


def set_begun_states(module: nn.Module, states: Mapping[str, tuple[int, Mapping[str, Any]]]) -> None:
    """Give a module's metrics, on their device, the states that `begun_states` returned."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in states:
            count, state = states[name]
            for key in metric.metric_state.keys() & state.keys():
                setattr(metric, key, move_data_to_device(state[key], metric.device))
            metric._update_count = count


@contextmanager
def default_float32() -> Iterator[None]:
    """Let new tensors be float32, where Lightning's half and double precision have made them others."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_metric(name: str, build: MetricBuilder, num_classes: int) -> Metric | None:
    """Build a metric, and try it on a few answers; None where there are too few classes for its `top_k`.

    Raises:
        ConfigError: It cannot be built or used on logits and classes, or gives more than one number.
    """
    parameters = inspect.signature(build).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    offered = {"num_classes": num_classes, "ignore_index": PADDING, "validate_args": False}
    try:
        metric = build(**{key: value for key, value in offered.items() if takes_any or key in parameters})
        if 2 * getattr(metric, "top_k", 0) >= num_classes and getattr(metric, "top_k", 1) > 1:
            return None
        with warnings.catch_warnings():  # about answers that are made up
            warnings.simplefilter("ignore")
            targets = torch.arange(2 * num_classes) % num_classes
            metric.update(F.one_hot(targets, num_classes).float() + 0.1, targets)
            value = metric.compute()
        metric.reset()
    except Exception as error:
        raise ConfigError(f"metrics.{name} cannot be used on logits and classes: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigError(f"metrics.{name} must give one number, it gave {value}; torchmetrics has average=macro.")
    return metric
