"""The network."""

from collections.abc import Sequence

from torch import Tensor, nn

from cnnlab.bounds import PositiveInt, ShareBelowOne


class Network(nn.Module):
    """Convolutions, each of which halves the image, and a linear layer over the means of the last one's channels.

    The types of the arguments say what the config may hold: `cnnlab train model.dropout=2` is refused at once.

    Args:
        in_channels: Of the images; cnnlab gives it.
        num_classes: Number of classes; likewise.
        channels: Output channels of each convolution.
        dropout: Share of activations dropped before the last layer.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[PositiveInt] = (16, 32),
        dropout: ShareBelowOne = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((in_channels, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))
