"""Residual networks in the variants for small images, and wide ones."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cnnlab.bounds import Bounds, PositiveInt, ShareBelowOne, within_bounds
from cnnlab.errors import ConfigError
from cnnlab.model.layers import initialise_he

Shortcut = Literal["pad", "projection"]
Depth = Annotated[int, Bounds(low=10)]


@within_bounds("model")
class ResNet(nn.Module):
    """A residual network with a 3×3 stem and without pooling before the blocks.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        blocks: Blocks of two convolutions in each stage; the first block of every stage but the first one
            halves the image.
        channels: Channels of each stage.
        shortcut: How a shortcut gains channels: zeros (`pad`, the paper's option A, no parameters) or a 1×1
            convolution (`projection`, option B).

    Raises:
        ConfigError: `blocks` and `channels` differ in length, or an argument is out of its range.

    Source: He et al. 2015, arXiv:1512.03385; section 4.2 for the networks of 20 and 56 layers. The one of 18
    layers has the blocks of table 1 behind the stem of section 4.2.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        blocks: Sequence[PositiveInt],
        channels: Sequence[PositiveInt],
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        if not blocks or len(blocks) != len(channels):
            raise ConfigError(
                "model.blocks and model.channels must be equally long lists of positive numbers, "
                f"got {list(blocks)} and {list(channels)}."
            )
        if shortcut not in ("pad", "projection"):
            raise ConfigError(f"model.shortcut must be pad or projection, got {shortcut}.")
        self.conv = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        self.stages = _stages(partial(BasicBlock, shortcut=shortcut), channels[0], blocks, channels)
        self.linear = nn.Linear(channels[-1], num_classes)
        initialise_he(self)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Return the logits of normalised images."""
        features = self.stages(F.relu(self.norm(self.conv(images)), inplace=True))
        return self.linear(features.mean((2, 3)))


def _stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, blocks: Sequence[int], channels: Sequence[int]
) -> nn.Sequential:
    """Return stages of blocks; the first block of every stage but the first one halves the image."""
    stages = nn.Sequential()
    for stage, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
        group = nn.Sequential()
        for stride in [1 if stage == 0 else 2, *[1] * (count - 1)]:
            group.append(block(inputs, outputs, stride))
            inputs = outputs
        stages.append(group)
    return stages


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them (arXiv:1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(out_channels - in_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        """Add the residual to the shortcut."""
        residual = F.relu(self.norm1(self.conv1(x)), inplace=True)
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x), inplace=True)


class PadShortcut(nn.Module):
    """Take every `stride`-th pixel and append channels of zeros (arXiv:1512.03385, section 3.3, option A)."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        if extra_channels < 0:
            raise ConfigError("model.channels must not shrink from stage to stage with model.shortcut=pad.")
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        """Return the shortcut's part of the sum."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))


@within_bounds("model")
class WideResNet(nn.Module):
    """A residual network with few blocks of many channels, normalised and activated before each convolution.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        depth: Number of convolutions, 6n + 4.
        width: Factor on the channels 16, 32, 64 of the three stages.
        dropout: Share of activations dropped between the two convolutions of a block.

    Raises:
        ConfigError: An argument is out of its range.

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146, table 1 and section 2.4.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, depth: Depth, width: PositiveInt, dropout: ShareBelowOne = 0.0
    ) -> None:
        super().__init__()
        if depth % 6 != 4:
            raise ConfigError(f"model.depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth}.")
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = [16 * width, 32 * width, 64 * width]
        self.stages = _stages(partial(WideBlock, dropout=dropout), 16, 3 * [(depth - 4) // 6], channels)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.linear = nn.Linear(channels[-1], num_classes)
        initialise_he(self)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Return the logits of normalised images."""
        features = F.relu(self.norm(self.stages(self.conv(images))), inplace=True)
        return self.linear(features.mean((2, 3)))


class WideBlock(nn.Module):
    """The basic-wide block with dropout (arXiv:1605.07146, figure 1, c and d)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        """Add the residual to the shortcut; a shortcut that projects starts behind the first activation."""
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual = F.relu(self.norm2(self.conv1(activated)), inplace=True)
        return self.conv2(self.dropout(residual)) + shortcut
