"""How a network's weights begin, where it is not left to the layers.

Each class is called with the network and normalised training images, and changes weights in place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cnnlab.bounds import Bounds, NonNegativeFloat, within_bounds
from cnnlab.errors import ConfigError


@within_bounds("init.whiten")
@dataclass(frozen=True)
class Whiten:
    """Let the first convolution whiten patches: its outputs are uncorrelated, each of variance 1.

    The filters are the principal directions of the training images' patches, each divided by its standard deviation,
    and the same again with the other sign where there are filters left; further ones stay as they are.

    Args:
        count: Images to learn them from, the first of the training set; at most 5000 are passed.
        eps: Added to the variances, so that directions that hardly occur are not blown up.

    Raises:
        ConfigError: The network has no convolution, or too few filters for its patches.

    Source: Jordan 2024, arXiv:2404.00498, section 3.2.
    """

    count: Annotated[int, Bounds(low=2, high=5000)] = 5000
    eps: NonNegativeFloat = 5e-4

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Float[Tensor, "n channel height width"]) -> None:
        """Set the first convolution's filters and bias."""
        conv = next(convolutions(network), None)
        if conv is None:
            raise ConfigError("init=whiten needs a convolution: leave it out, or choose another model.")
        filters = conv.weight.shape[0]
        directions = whitening(patches(images[: self.count], conv), self.eps)
        if filters < len(directions):
            raise ConfigError(
                f"init=whiten needs at least {len(directions)} filters in the first convolution, one for each value of "
                f"its patches; it has {filters}."
            )
        both = torch.cat([directions, -directions])[:filters]
        conv.weight[: len(both)] = both.view(-1, *conv.weight.shape[1:]).to(conv.weight.dtype)
        if conv.bias is not None:
            conv.bias.zero_()


@dataclass(frozen=True)
class Dirac:
    """Let 3×3 convolutions after the first begin as the identity on as many channels as they have inputs.

    Source: Jordan 2024, arXiv:2404.00498, section 3.3.
    """

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Float[Tensor, "n channel height width"]) -> None:
        """Set the filters that pass one input channel on; the rest stay as they are."""
        for conv in list(convolutions(network))[1:]:
            if conv.groups == 1 and all(side % 2 == 1 and side > 1 for side in conv.kernel_size):
                nn.init.dirac_(conv.weight[: conv.weight.shape[1]])


def convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the network's convolutions in its own order."""
    return (module for module in network.modules() if isinstance(module, nn.Conv2d))


def patches(images: Float[Tensor, "n channel height width"], conv: nn.Conv2d) -> Float[Tensor, "patch value"]:
    """Return all patches that a convolution looks at, without those that reach over the border."""
    unfolded = nn.functional.unfold(images, conv.kernel_size, stride=conv.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def whitening(patches: Float[Tensor, "patch value"], eps: float) -> Float[Tensor, "value value"]:
    """Return the matrix W, strongest direction first, for which the covariance of patches·Wᵀ is the identity.

    With the covariance V·diag(s)·Vᵀ that is diag(s + eps)^(-1/2)·Vᵀ, computed in float64.
    """
    variances, directions = torch.linalg.eigh(torch.cov(patches.double().T))
    return (directions / (variances.clamp_min(0) + eps).sqrt()).T.flip(0)
