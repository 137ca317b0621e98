"""The network of the CIFAR-10 speed records, in any width."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cnnlab.bounds import PositiveFloat, PositiveInt, PositiveShare, within_bounds
from cnnlab.errors import ConfigError


@within_bounds("model")
class SpeedNet(nn.Module):
    """Small patches whitened, then groups of 3×3 convolutions that pool early, and one linear layer.

    Made for few epochs: the scale of its norms is fixed at 1, their statistics follow the last batches, the whitening
    filters are not trained (`init=whiten` sets them), and the logits start small.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Height and width of the images in pixels.
        channels: Output channels of each group, which halves the image.
        convs: Convolutions in each group.
        residual: Whether a group's last convolutions are added to what its first one gave.
        whiten_kernel: Side of the patches that are whitened; each of their values has two filters, of either sign.
        norm_momentum: Share of a batch in the norms' running statistics.
        logit_scale: Factor on the logits.

    Raises:
        ConfigError: An argument is out of its range, or the image is too small.

    Source: Jordan 2024, arXiv:2404.00498, section 3.1 and appendix A.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        *,
        channels: Sequence[PositiveInt] = (64, 256, 256),
        convs: PositiveInt = 2,
        residual: bool = False,
        whiten_kernel: PositiveInt = 2,
        norm_momentum: PositiveShare = 0.4,
        logit_scale: PositiveFloat = 1 / 9,
    ) -> None:
        super().__init__()
        if not channels:
            raise ConfigError("model.channels must list at least one positive number, got [].")
        side = min(image_size) - whiten_kernel + 1
        if side >> len(channels) < 1:
            raise ConfigError(
                f"model: images of {image_size[0]}×{image_size[1]} pixels are too small for {len(channels)} groups "
                f"behind patches of {whiten_kernel}; use fewer model.channels."
            )
        filters = 2 * in_channels * whiten_kernel**2
        self.whiten = nn.Conv2d(in_channels, filters, whiten_kernel)
        self.whiten.weight.requires_grad = False
        widths = [filters, *channels]
        self.groups = nn.Sequential(
            *(_Group(inputs, outputs, convs, residual, norm_momentum) for inputs, outputs in pairwise(widths))
        )
        self.linear = nn.Linear(channels[-1], num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Return the logits of normalised images."""
        features = self.groups(F.gelu(self.whiten(images)))
        # amax would do, but its gradient looks for the value again, which a compiled bfloat16 network has rounded
        # otherwise by then: no match, and NaN.
        return self.linear(F.max_pool2d(features, features.shape[2:]).flatten(1)) * self.logit_scale


class _Group(nn.Module):
    """Convolve and halve, then convolve on; norm and GELU behind each."""

    def __init__(self, inputs: int, outputs: int, convs: int, residual: bool, norm_momentum: float) -> None:
        super().__init__()
        self.residual = residual
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, padding=1, bias=False) for index in range(convs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, eps=1e-12, momentum=norm_momentum) for _ in range(convs))
        for norm in self.norms:
            norm.weight.requires_grad = False

    def forward(self, features: Tensor) -> Tensor:
        first = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](features), 2)))
        features = first
        for index in range(1, len(self.convs)):
            features = self.norms[index](self.convs[index](features))
            if self.residual and index == len(self.convs) - 1:
                features = features + first
            features = F.gelu(features)
        return features
