"""Metrics: what they give, and what is refused before a run begins."""

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassCohenKappa, MulticlassRecall

from cnnlab.batch import PADDING
from cnnlab.errors import ConfigError
from cnnlab.metrics import SplitMetrics


def answers(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, classes, generator=generator), torch.arange(count) % classes


class Sureness(Metric):
    """Mean probability of the likeliest class; knows nothing of padding."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    total: torch.Tensor
    count: torch.Tensor

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.total += logits.softmax(1).amax(1).sum()
        self.count += len(targets)

    def compute(self) -> torch.Tensor:
        return self.total / self.count


BUILDERS = {"kappa": MulticlassCohenKappa, "auroc": MulticlassAUROC, "sureness": Sureness}


def test_padding_counts_nowhere():
    logits, targets = answers(30, 3)
    whole, padded = SplitMetrics(3, "val/", BUILDERS), SplitMetrics(3, "val/", BUILDERS)
    whole.update(logits, targets)
    padded.update(torch.cat([logits, logits[:5]]), torch.cat([targets, torch.full((5,), PADDING)]))
    for name, value in whole.compute().items():
        torch.testing.assert_close(padded.compute()[name], value)


def test_accuracy_and_loss_equal_their_definitions():
    logits, targets = answers(100, 4)
    metrics = SplitMetrics(4, "test/")
    for part in range(0, 100, 30):
        metrics.update(logits[part : part + 30], targets[part : part + 30])
    values = metrics.compute()
    assert float(values["test/accuracy"]) == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    expected = -logits.log_softmax(1)[torch.arange(100), targets].mean()
    torch.testing.assert_close(values["test/loss"], expected)


@pytest.mark.parametrize(("classes", "measured"), [(10, False), (11, True)])
def test_top_five_is_measured_where_there_are_more_than_ten_classes(classes: int, measured: bool):
    assert ("top5_accuracy" in SplitMetrics(classes)) is measured


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda: MulticlassRecall(3, average="none"), "one number"),
        (lambda: MulticlassRecall(-1), "cannot be used"),
        (lambda: torch.nn.Linear(1, 1), "cannot be used"),
    ],
)
def test_what_is_no_metric_of_a_classification_is_refused(builder, message: str):
    with pytest.raises(ConfigError, match=f"metrics.mine .*{message}"):
        SplitMetrics(3, "val/", {"mine": builder})
