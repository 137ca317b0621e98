"""Which metrics a run will measure, and of which more is better: known from its config, before anything is imported."""

from collections.abc import Mapping
from typing import Any, Literal

from cnnlab.source import class_attribute

Direction = Literal["max", "min"]

KNOWN: dict[str, Direction] = {"loss": "min", "accuracy": "max"}
TRAINING = ("train/loss", "train/accuracy")
OUR_CLASSIFIERS = ("cnnlab.classifier.Classifier", "cnnlab.distillation.Distillation")


def objective_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's `objective` with its mode `max` or `min`; `max` where nothing says.

    Args:
        config: Plain containers.
    """
    objective = config.get("objective")
    content = dict(objective) if isinstance(objective, Mapping) else {}
    return {**content, "mode": direction(content.get("metric"), config) or "max"}


def direction(metric: Any, config: Mapping[str, Any]) -> Direction | None:
    """Return whether more or less of a metric is better: as the objective says, or the metric itself.

    Returns:
        None where neither says.
    """
    objective = config.get("objective")
    if isinstance(objective, Mapping) and objective.get("metric") == metric:
        match objective.get("mode"):
            case "max":
                return "max"
            case "min":
                return "min"
    return own_direction(metric, config)


def own_direction(metric: Any, config: Mapping[str, Any]) -> Direction | None:
    """Return whether more or less of a metric is better, as its class says; None where it does not."""
    name = str(metric).rpartition("/")[2]
    metrics = config.get("metrics")
    node = metrics.get(name) if isinstance(metrics, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if target in (None, "torchmetrics.classification.MulticlassAccuracy"):
        return "max" if target else KNOWN.get(name)
    match class_attribute(target, "higher_is_better") if isinstance(target, str) else None:
        case True:
            return "max"
        case False:
            return "min"
    return None


def measured(config: Mapping[str, Any]) -> list[str] | None:
    """List the metrics that a run will measure; None where only its classifier knows."""
    classifier, metrics = config.get("classifier"), config.get("metrics")
    target = classifier.get("_target_") if isinstance(classifier, Mapping) else OUR_CLASSIFIERS[0]
    if target not in OUR_CLASSIFIERS:
        return None
    names = ["loss", *(str(name) for name, node in (metrics or {}).items() if node is not None)]
    return [*(f"{split}/{name}" for split in ("val", "test") for name in names), *TRAINING]
