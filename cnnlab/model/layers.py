"""Layers that more than one network uses."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from typing_extensions import override

from cnnlab.errors import DataError


class Normalize(nn.Module):
    """Turn images into normalised floats: (value - mean) / std for each channel.

    As the first layer of a network it takes the statistics along into every checkpoint and export.

    Args:
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, likewise.
        channels_last: Whether images keep the channels-last memory that batches come in; otherwise they are copied
            into channels-first memory.
        size: Side that images of another size are brought to, bilinearly; None leaves all as they are.

    Raises:
        DataError: The two differ in length, or a standard deviation is not positive.
    """

    mean: Float[Tensor, "channel"]
    std: Float[Tensor, "channel"]
    scale: Float[Tensor, "1 channel 1 1"]
    shift: Float[Tensor, "1 channel 1 1"]
    byte_scale: Float[Tensor, "1 channel 1 1"]

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channels_last: bool = True, size: int | None = None
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise DataError(f"data.mean and data.std must be equally long, got {len(mean)} and {len(std)}.")
        if not all(value > 0 for value in std):
            raise DataError(
                f"data.std must be positive in every channel, got {list(std)}; for a channel that "
                "never changes, give data.mean and data.std."
            )
        self.channels_last = channels_last
        self.size = size
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))
        for name in ("scale", "shift", "byte_scale"):
            self.register_buffer(name, torch.empty(1, len(std), 1, 1), persistent=False)
        self._derive()

    def forward(
        self,
        images: UInt8[Tensor, "batch channel height width"] | Float[Tensor, "batch channel height width"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Normalise images given as uint8 from 0 to 255 or as floats from 0 to 1."""
        if not self.channels_last:
            images = images.contiguous()
        scale = self.byte_scale if images.dtype == torch.uint8 else self.scale
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = F.interpolate(
                images.to(scale.dtype), (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        # One operation, the conversion to floats included.
        return torch.addcmul(_rows(self.shift, images), images, _rows(scale, images))

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._derive()

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # In another precision they are what a network that is built in it, and then loaded, derives.
        super()._apply(*args, **kwargs)
        self._derive()
        return self

    def _derive(self) -> None:
        """Compute what a step needs of mean and standard deviation."""
        scale = self.std.reciprocal()
        for buffer, values in (
            (self.scale, scale), (self.shift, -self.mean * scale), (self.byte_scale, scale / 255)
        ):  # fmt: skip
            buffer.copy_(values.view_as(buffer))


def normalised(
    body: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = True,
    size: int | None = None,
) -> nn.Sequential:
    """Put the normalisation in front of a network, which then takes images as they are.

    Args:
        body: Takes normalised images, returns logits.
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, likewise.
        channels_last: Whether images and filters keep each pixel's channels side by side in memory: on most devices
            that is faster.
        size: Side that images of another size are brought to.
    """
    network = nn.Sequential(OrderedDict(normalize=Normalize(mean, std, channels_last, size), body=body))
    return network.to(memory_format=torch.channels_last) if channels_last else network  # type: ignore[call-overload]


def _rows(values: Float[Tensor, "1 channel 1 1"], images: Tensor) -> Float[Tensor, "1 channel 1 width_or_1"]:
    """Shape a value for each channel so that it is broadcast fast over the images.

    In channels-last memory the CPU's innermost loop would run over the 3 channels of a pixel; over a repeated row
    of pixels it is long enough for vector instructions.
    """
    if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
        row = values.expand(-1, -1, -1, images.shape[3])
        return row.contiguous(memory_format=torch.channels_last)
    return values


def initialise_he(network: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan-out) and set the biases of linear layers to zero.

    Source: He et al. 2015, arXiv:1502.01852, equation 14; fan-out as in the published code of ResNet
    (facebookarchive/fb.resnet.torch) and wide ResNet (szagoruyko/wide-residual-networks).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
