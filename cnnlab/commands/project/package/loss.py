"""The loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.bounds import NonNegativeFloat


class Loss(nn.Module):
    """Cross-entropy, and a penalty on logits far from zero.

    Args:
        penalty: Factor on the mean square of the logits.
    """

    def __init__(self, penalty: NonNegativeFloat = 0.01) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets) + self.penalty * logits.square().mean()
