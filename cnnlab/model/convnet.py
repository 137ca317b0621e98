"""A plain convolutional network, of which LeNet is one setting."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from cnnlab.bounds import NonNegativeInt, PositiveInt, ShareBelowOne
from cnnlab.errors import ConfigError

Pool = Literal["max", "avg", "none"]


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
        if not channels or min(channels) < 1:
            raise ConfigError(f"model.channels must list at least one positive number, got {list(channels)}.")
        if any(width < 1 for width in hidden):
            raise ConfigError(f"model.hidden must list positive numbers, got {list(hidden)}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.dropout must be at least 0 and below 1, got {dropout}.")
        count = len(channels)
        kernels: list[int] = _per_stage("kernel_size", kernel_size, count)
        paddings: list[int] = _per_stage("padding", padding, count)
        pools: list[str] = _per_stage("pool", pool, count)
        norms: list[bool] = _per_stage("batch_norm", batch_norm, count)
        if min(kernels) < 1:
            raise ConfigError(f"model.kernel_size must be at least 1, got {kernel_size}.")
        if min(paddings) < 0:
            raise ConfigError(f"model.padding must be at least 0, got {padding}.")
        if not set(pools) <= {"max", "avg", "none"}:
            raise ConfigError(f"model.pool must be max, avg or none, got {pool}.")

        features: OrderedDict[str, nn.Module] = OrderedDict()
        head: OrderedDict[str, nn.Module] = OrderedDict()
        height, width = image_size
        inputs = in_channels
        for i, outputs in enumerate(channels):
            stage = i + 1
            features[f"conv{stage}"] = nn.Conv2d(inputs, outputs, kernels[i], padding=paddings[i])
            activation = nn.ReLU(inplace=True)
            if pools[i] == "max":
                # The largest value stays the largest through a ReLU, which so has a quarter of the work.
                features[f"pool{stage}"] = nn.MaxPool2d(2)
                features[f"relu{stage}"] = activation
            else:
                features[f"relu{stage}"] = activation
                if pools[i] == "avg":
                    features[f"pool{stage}"] = nn.AvgPool2d(2)
            if norms[i]:
                # The last one belongs to the head: see `forward`.
                (head if stage == count else features)[f"norm{stage}"] = nn.BatchNorm2d(outputs)
            before = f"{height}×{width}"
            shrink, halve = 2 * paddings[i] - kernels[i] + 1, 1 if pools[i] == "none" else 2
            height, width = (height + shrink) // halve, (width + shrink) // halve
            if min(height, width) < 1:
                raise ConfigError(
                    f"model: images of {image_size[0]}×{image_size[1]} pixels are {before} at stage {stage}, "
                    f"too small for kernel_size {kernels[i]}, padding {paddings[i]}, pool {pools[i]}; use "
                    "fewer model.channels, a smaller kernel_size or more padding."
                )
            inputs = outputs

        head["flatten"] = nn.Flatten()
        inputs *= height * width
        for layer, outputs in enumerate((*hidden, num_classes), start=1):
            if dropout > 0:
                head[f"dropout{layer}"] = nn.Dropout(dropout)
            head[f"linear{layer}"] = nn.Linear(inputs, outputs)
            if layer <= len(hidden):
                head[f"relu{count + layer}"] = nn.ReLU(inplace=True)
            inputs = outputs

        self.features = nn.Sequential(features)
        self.head = nn.Sequential(head)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Return the logits of normalised images."""
        # Flattening copies channels-last memory to channels-first in any case; done before the last
        # normalisation, the copy spares that layer gradients whose memory order differs from its input's.
        return self.head(self.features(images).contiguous())


def _per_stage(name: str, value: Any, count: int) -> list[Any]:
    """Repeat one value for every stage, or check that there is one for each."""
    # A string is a sequence too, but means one value.
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ConfigError(
            f"model.{name} must be one value or one for each of the {count} model.channels, got {values}."
        )
    return values
