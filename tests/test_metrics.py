"""Metrics: what they give, and what is refused before a run begins."""

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassCohenKappa, MulticlassRecall

from cnnlab.batch import PADDING
from cnnlab.errors import ConfigError
from cnnlab.metrics import DEFAULT, BalancedAccuracy, SplitMetrics


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


def test_values_are_those_of_the_softmax_whatever_range_the_logits_have():
    builders = {**DEFAULT, "auroc": MulticlassAUROC, "balanced_accuracy": BalancedAccuracy}
    logits, targets = answers(60, 3)
    values = []
    for size in (1, 60):  # two images or more seldom have logits of which all lie from 0 to 1
        for scores in (logits.sigmoid(), logits.sigmoid() - 5, torch.zeros(60, 3)):
            metrics = SplitMetrics(3, "", builders)
            for images, labels in zip(scores.split(size), targets.split(size), strict=True):
                metrics.update(images, labels)
            values.append(metrics.compute())
    for name in values[0]:
        torch.testing.assert_close(values[0][name], values[1][name], rtol=0, atol=1e-5)
        torch.testing.assert_close(values[3][name], values[0][name], rtol=0, atol=1e-5)
    for constant in (values[2], values[5]):
        assert float(constant["calibration_error"]) == pytest.approx(0, abs=1e-6), "a third is sure, a third is right"


def test_balanced_accuracy_is_the_mean_over_the_classes_that_are_there():
    metrics = SplitMetrics(4, "", {"balanced_accuracy": BalancedAccuracy})
    predicted = torch.tensor([0, 0, 3, 1, 2])  # two of three and one of two: nothing is known of the others
    metrics.update(torch.eye(4)[predicted] * 9, torch.tensor([0, 0, 0, 1, 1]))
    assert float(metrics.compute()["balanced_accuracy"]) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_loss_that_is_not_finite_is_not_passed_over():
    logits, targets = answers(8, 3)
    logits[5] = torch.nan
    metrics = SplitMetrics(3, "", {})
    metrics.update(logits, targets)
    assert metrics.compute()["loss"].isnan()


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
