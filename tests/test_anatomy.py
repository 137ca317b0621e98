"""Looking into networks."""

import numpy as np
import pytest
import torch
from torch import nn

from cnnlab import anatomy
from cnnlab.errors import ConfigError
from cnnlab.model import ConvNet, ResNet, normalised

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def lenet() -> nn.Module:
    body = ConvNet(
        3, 10, (32, 32), channels=[6, 16], kernel_size=5, batch_norm=[False, True], hidden=[120, 84]
    )  # fmt: skip
    return normalised(body, [0.5] * 3, [0.25] * 3).eval()


def resnet() -> nn.Module:
    return normalised(
        ResNet(3, 10, blocks=[3, 3, 3], channels=[16, 32, 64], shortcut="pad"), [0.5] * 3, [0.25] * 3
    ).eval()


class Slope(nn.Module):
    """Its logit 0 is the mean of the left half, its logit 1 that of the right half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images.float())
        return torch.stack([maps[:, 0, :, :16].mean((1, 2)), maps[:, 1, :, 16:].mean((1, 2))], 1)


def test_layers_of_the_articles_network_have_its_shapes_and_its_work():
    layers = {layer.name: layer for layer in anatomy.list_layers(lenet(), (32, 32, 3))}
    assert layers["features.conv1"].shape == (6, 28, 28)
    # A multiplication and an addition for each weight at each place, by hand.
    assert layers["features.conv1"].flops == 2 * 6 * 28 * 28 * 3 * 5 * 5
    assert layers["features.conv2"].flops == 2 * 16 * 10 * 10 * 6 * 5 * 5
    assert layers["head.linear1"].flops == 2 * 400 * 120
    assert layers["head.norm2"].shape == (16, 5, 5)
    assert sum(layer.parameters for layer in layers.values()) == 62_038


def test_layers_stand_in_the_order_of_computation():
    names = [layer.name for layer in anatomy.list_layers(resnet(), (32, 32, 3))]
    assert names[:3] == ["normalize", "conv", "norm"]
    assert names[-1] == "linear"
    assert names.index("stages.0.0.conv1") < names.index("stages.0.0.conv2") < names.index("stages.2.2.conv2")


class Mixed(nn.Module):
    """Has parameters and does work that none of its layers has."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 1, 1))
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.conv2d(images.float(), self.kernel).mean((2, 3)))


def test_the_layers_add_up_to_the_network_whatever_stands_outside_of_them():
    *_, head, rest = anatomy.list_layers(normalised(Mixed(), [0.5] * 3, [0.25] * 3).eval(), (8, 8, 3))
    assert (head.name, head.parameters, head.flops) == ("head", 10, 2 * 4 * 2)
    assert (rest.parameters, rest.flops) == (4 * 3, 2 * 4 * 3 * 64)


def test_filters_are_the_first_convolutions_or_the_named_ones():
    name, weights = anatomy.read_filters(lenet())
    assert (name, weights.shape) == ("features.conv1", (6, 3, 5, 5))
    assert anatomy.read_filters(lenet(), "features.conv2").values.shape == (16, 6, 5, 5)
    with pytest.raises(ConfigError, match=r"--layer must be one of features.conv1, features.conv2, got conv7"):
        anatomy.read_filters(lenet(), "conv7")
    with pytest.raises(ConfigError, match="no convolution"):
        anatomy.read_filters(nn.Linear(1, 1))


def test_activations_are_what_each_layer_hands_on_though_the_next_works_in_place():
    network = lenet()
    maps = {found.name: found.values for found in anatomy.compute_activations(network, IMAGE)[0]}
    with torch.no_grad():
        images = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
        expected = network.body.features.pool1(network.body.features.conv1(network.normalize(images)))  # type: ignore
    np.testing.assert_allclose(maps["features.pool1"], expected[0].numpy(), atol=1e-6)
    assert maps["features.pool1"].min() < 0 <= maps["features.relu1"].min()


def test_of_a_deep_network_the_blocks_are_shown():
    found, left_out = anatomy.compute_activations(resnet(), IMAGE, most=5)
    assert len(found) == 5
    assert left_out == "5 of 10 blocks, without the layers inside them"
    assert found[-1].name == "stages.2.2"
    assert found[-1].values.min() >= 0, "behind the block's ReLU"


def test_the_focus_is_where_the_class_comes_from():
    image = np.full((32, 32, 3), 100, np.uint8)
    left = anatomy.locate_focus(Slope(), image, 0)
    assert left.layer == "conv"
    # Grad-CAM weighs a whole map: the map of logit 0 counts everywhere, the other one nowhere.
    np.testing.assert_allclose(left.heat, 1, atol=1e-6)
    bright = image.copy()
    bright[:, 16:] = 0
    heat = anatomy.locate_focus(Slope(), bright, 0).heat
    assert heat[:, :12].min() > 0.9
    assert heat[:, 20:].max() < 0.1


@pytest.mark.parametrize("network", [lenet, resnet])
def test_the_focus_explains_the_prediction_and_leaves_the_network_as_it_was(network):
    net = network()
    images = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    before = net(images).detach()
    found = anatomy.locate_focus(net, IMAGE)
    assert found.label == int(before.argmax())
    assert found.probability == pytest.approx(float(before.softmax(1).max()), abs=1e-5)
    assert found.heat.shape == (32, 32)
    assert 0 <= found.heat.min() <= found.heat.max() <= 1
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(net(images).detach(), before)


def test_without_maps_there_is_nowhere_to_look():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 2))
    with pytest.raises(ConfigError, match="nowhere to look"):
        anatomy.locate_focus(flat, IMAGE)
    assert anatomy.compute_activations(nn.Sequential(nn.Flatten()), IMAGE) == ([], "")
