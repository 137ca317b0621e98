"""Losses: equal to their definitions, weights by class, soft targets."""

import math

import pytest
import torch
import torch.nn.functional as F

from cnnlab.errors import ConfigError
from cnnlab.loss import CrossEntropy, Focal, weigh_classes


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 5, generator=generator, dtype=torch.float64), torch.arange(16) % 5


def test_cross_entropy_equals_its_definition(answers):
    logits, targets = answers
    expected = sum(
        math.log(sum(math.exp(value) for value in row)) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ) / len(targets)
    assert float(CrossEntropy()(logits, targets)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_its_definition(answers, gamma: float):
    logits, targets = answers
    probability = logits.softmax(1).gather(1, targets[:, None]).squeeze(1)
    expected = ((1 - probability) ** gamma * -probability.log()).mean()
    torch.testing.assert_close(Focal(gamma)(logits, targets), expected)


@pytest.mark.parametrize("loss", [CrossEntropy(), Focal(2.0)], ids=["cross_entropy", "focal"])
def test_classes_and_their_distributions_give_the_same_loss(answers, loss):
    logits, targets = answers
    torch.testing.assert_close(loss(logits, F.one_hot(targets, 5).double()), loss(logits, targets))


@pytest.mark.parametrize("loss", [CrossEntropy, Focal])
def test_balanced_weights_make_each_class_count_the_same(loss):
    counts = [30, 10, 1]
    weights = weigh_classes("balanced", 3, counts)
    assert weights is not None
    shares = [float(weight) * count for weight, count in zip(weights, counts, strict=True)]
    assert shares == pytest.approx([shares[0]] * 3)
    # A network that knows nothing has the loss of an unweighted one, per image, when the batch is the training set.
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    logits = torch.zeros(len(targets), 3)
    plain = loss(num_classes=3)(logits, targets)
    torch.testing.assert_close(
        loss(class_weights="balanced", num_classes=3, class_counts=counts)(logits, targets), plain
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1, 2]}, "for each of the 3 classes"),
        ({"class_weights": [1, -1, 2]}, "at least 0"),
        ({"class_weights": [0, 0, 0]}, "at least 0"),
        ({"class_weights": "equal"}, "null, balanced, or a number for each class"),
        ({"class_weights": "balanced"}, "needs the number of training images"),
    ],
)
def test_weights_that_are_none_are_refused(options, message: str):
    with pytest.raises(ConfigError, match=message):
        CrossEntropy(num_classes=3, **options)


@pytest.mark.parametrize("make", [lambda: CrossEntropy(label_smoothing=1.1), lambda: Focal(gamma=-1.0)])
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match="must be"):
        make()


def test_weights_are_in_no_checkpoint():
    assert CrossEntropy(class_weights=[1.0, 2.0], num_classes=2).state_dict() == {}
