"""A plain convolutional network, of which LeNet is one setting."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from cnnlab.bounds import NonNegativeInt, PositiveInt, ShareBelowOne, within_bounds
from cnnlab.errors import ConfigError

Pool = Literal["max", "avg", "none"]


@within_bounds("model")
class ConvNet(nn.Module):
    """Stages of convolution, activation, pooling and normalisation, then linear layers.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Height and width of the images in pixels.
        channels: Output channels of each stage; its length is the number of stages.
        kernel_size: Side of the filters; one for all stages, or one for each.
        padding: Rows of zeros around the input of a convolution; likewise.
        pool: What halves the image after the convolution, `max`, `avg` or `none`; likewise.
        batch_norm: Whether batch normalisation ends the stage; likewise.
        hidden: Widths of the linear layers before the last.
        dropout: Share of activations dropped in front of every linear layer.

    Raises:
        ConfigError: An argument is out of its range, or the image is too small for the stages.

    Source: LeCun et al. 1998, doi:10.1109/5.726791, with today's activation and pooling.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        *,
        channels: Sequence[PositiveInt],
        kernel_size: PositiveInt | Sequence[PositiveInt],
        padding: NonNegativeInt | Sequence[NonNegativeInt] = 0,
        pool: Pool | Sequence[Pool] = "max",
        batch_norm: bool | Sequence[bool],
        hidden: Sequence[PositiveInt],
        dropout: ShareBelowOne = 0.0,
    ) -> None:
        super().__init__()
        if not channels:
            raise ConfigError("model.channels must list at least one positive number, got [].")
        options = {"kernel_size": kernel_size, "padding": padding, "pool": pool, "batch_norm": batch_norm}
        per_stage = [_per_stage(name, value, len(channels)) for name, value in options.items()]
        features: OrderedDict[str, nn.Module] = OrderedDict()
        inputs, size = in_channels, image_size
        stages = zip(channels, *per_stage, strict=True)
        for number, (outputs, kernel, border, pooling, normalised) in enumerate(stages, start=1):
            features |= _stage(number, inputs, outputs, kernel, border, pooling, normalised)
            size = _pooled(image_size, size, number, kernel, border, pooling)
            inputs = outputs
        last_norm = f"norm{len(channels)}"
        # The last normalisation belongs to the head: see `forward`.
        norm = {last_norm: features.pop(last_norm)} if last_norm in features else {}
        self.features = nn.Sequential(features)
        self.head = nn.Sequential(
            OrderedDict(norm)
            | _linear_layers(inputs * size[0] * size[1], [*hidden, num_classes], dropout, len(channels))
        )

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Return the logits of normalised images."""
        # Flattening copies channels-last memory to channels-first in any case; done before the last
        # normalisation, the copy spares that layer gradients whose memory order differs from its input's.
        return self.head(self.features(images).contiguous())


def _stage(
    number: int, inputs: int, outputs: int, kernel: int, padding: int, pool: str, batch_norm: bool
) -> OrderedDict[str, nn.Module]:
    """Return the layers of a stage, counted from 1."""
    if pool not in ("max", "avg", "none"):
        raise ConfigError(f"model.pool must be max, avg or none, got {pool}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, padding=padding)
    if pool == "max":
        # Before the ReLU, which so has a quarter of the work: the largest value stays the largest through it.
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers[f"relu{number}"] = nn.ReLU(inplace=True)
    if pool == "avg":
        layers[f"pool{number}"] = nn.AvgPool2d(2)
    if batch_norm:
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
    return layers


def _pooled(
    image_size: tuple[int, int], size: tuple[int, int], number: int, kernel: int, padding: int, pool: str
) -> tuple[int, int]:
    """Return height and width after a stage."""
    shrink, halve = 2 * padding - kernel + 1, 1 if pool == "none" else 2
    height, width = ((side + shrink) // halve for side in size)
    if min(height, width) < 1:
        raise ConfigError(
            f"model: images of {image_size[0]}×{image_size[1]} pixels are {size[0]}×{size[1]} at stage {number}, "
            f"too small for kernel_size {kernel}, padding {padding}, pool {pool}; use "
            "fewer model.channels, a smaller kernel_size or more padding."
        )
    return height, width


def _linear_layers(inputs: int, widths: Sequence[int], dropout: float, stages: int) -> OrderedDict[str, nn.Module]:
    """Return the layers from the last image to the logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, outputs in enumerate(widths, start=1):
        if dropout > 0:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers[f"linear{number}"] = nn.Linear(inputs, outputs)
        if number < len(widths):
            layers[f"relu{stages + number}"] = nn.ReLU(inplace=True)
        inputs = outputs
    return layers


def _per_stage(name: str, value: Any, count: int) -> list[Any]:
    """Repeat one value for every stage, or check that there is one for each."""
    # A string is a sequence too, but means one value.
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ConfigError(
            f"model.{name} must be one value or one for each of the {count} model.channels, got {values}."
        )
    return values
