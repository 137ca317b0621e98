"""Losses: from logits and targets to the number that training lowers.

A loss of a user's own is any `torch.nn.Module` or callable of (logits, targets). Its constructor is offered
`num_classes` and `class_counts` (training images of each class) where it names them. Targets are class indices, or a
distribution over the classes where the augmentation mixes images.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cnnlab.bounds import NonNegativeFloat, Share, within_bounds
from cnnlab.errors import ConfigError

ClassWeights = Literal["balanced"] | Sequence[NonNegativeFloat] | None


@within_bounds("loss")
class CrossEntropy(nn.Module):
    """Cross-entropy between the softmax of the logits and the targets.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, 0 to 1.
        class_weights: Weight of each class in the loss; `balanced` weighs each by the inverse of its count, so that
            all classes together count the same; None weighs every image the same.
        num_classes: Number of classes.
        class_counts: Training images of each class, for `balanced`.

    Raises:
        ConfigError: `label_smoothing` is out of its range, or the weights are not one for each class.
    """

    def __init__(
        self,
        label_smoothing: Share = 0.0,
        class_weights: ClassWeights = None,
        *,
        num_classes: int | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        # Not persistent: the weights follow from the config and the data, and a checkpoint need not hold them.
        self.register_buffer("weight", weigh_classes(class_weights, num_classes, class_counts), persistent=False)
        self.weight: Tensor | None

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Int64[Tensor, "batch"] | Float[Tensor, "batch classes"],
    ) -> Float[Tensor, ""]:
        """Return the mean over the batch."""
        if self.weight is not None or not self.label_smoothing or targets.is_floating_point():
            return F.cross_entropy(logits, targets, weight=self.weight, label_smoothing=self.label_smoothing)
        # torch's own does the same in 22 operations, its gradient included, this in 12: each is a launch on a GPU.
        log_shares = F.log_softmax(logits, dim=1)
        nll = F.nll_loss(log_shares, targets)
        return torch.sub((1 - self.label_smoothing) * nll, log_shares.mean(), alpha=self.label_smoothing)


@within_bounds("loss")
class Focal(nn.Module):
    """Cross-entropy that counts an image the less, the surer the network already is of its class.

    Args:
        gamma: How much less; 0 is cross-entropy, the paper's is 2.
        class_weights: As for `CrossEntropy`; the paper's alpha.
        num_classes: Number of classes.
        class_counts: Training images of each class, for `balanced`.

    Raises:
        ConfigError: `gamma` is negative, or the weights are not one for each class.

    Source: Lin et al. 2017, arXiv:1708.02002, equation 5, with the softmax over all classes in place of the sigmoid.
    """

    def __init__(
        self,
        gamma: NonNegativeFloat = 2.0,
        class_weights: ClassWeights = None,
        *,
        num_classes: int | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weigh_classes(class_weights, num_classes, class_counts), persistent=False)
        self.weight: Tensor | None

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Int64[Tensor, "batch"] | Float[Tensor, "batch classes"],
    ) -> Float[Tensor, ""]:
        """Return the mean over the batch."""
        log_probabilities = F.log_softmax(logits, dim=1)
        losses = (1 - log_probabilities.exp()) ** self.gamma * -log_probabilities
        if self.weight is not None:
            losses = losses * self.weight.to(losses.dtype)
        if targets.is_floating_point():
            return (targets * losses).sum(1).mean()
        return losses.gather(1, targets[:, None]).mean()


def weigh_classes(
    class_weights: ClassWeights, num_classes: int | None, class_counts: Sequence[int] | None
) -> Float[Tensor, "classes"] | None:
    """Return the weight of each class, or None where all weigh the same.

    A class without a training image has the weight 0 under `balanced`.

    Raises:
        ConfigError: The weights are not one number of at least 0 for each class, or the counts are not known.
    """
    if class_weights is None:
        return None
    if class_weights == "balanced":
        if class_counts is None:
            raise ConfigError("loss.class_weights=balanced needs the number of training images of each class.")
        counts = torch.tensor(class_counts, dtype=torch.float32)
        present = counts > 0
        return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    if isinstance(class_weights, str):
        raise ConfigError(
            f"loss.class_weights must be null, balanced, or a number for each class, got {class_weights}."
        )
    weights = torch.tensor([float(weight) for weight in class_weights])
    if (num_classes is not None and len(weights) != num_classes) or bool((weights < 0).any()) or not weights.sum() > 0:
        raise ConfigError(
            f"loss.class_weights must be a number of at least 0 for each of the {num_classes} classes, got "
            f"{list(class_weights)}."
        )
    return weights
