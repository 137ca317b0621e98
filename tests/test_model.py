"""Networks: the functions they compute, their sizes, and what they refuse."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import ConfigError, DataError
from cnnlab.model import ConvNet, Normalize, ResNet, WideResNet

LENET: dict[str, Any] = {
    "channels": [6, 16],
    "kernel_size": 5,
    "batch_norm": [False, True],
    "hidden": [120, 84],
}
RESNET18: dict[str, Any] = {"blocks": [2] * 4, "channels": [64, 128, 256, 512], "shortcut": "projection"}


class Article(nn.Module):
    """The article's network as the article writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.norm = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(self.norm(x), 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def lenet(**changes: Any) -> ConvNet:
    return ConvNet(3, 10, (32, 32), **(LENET | changes))


def resnet(depth: int, num_classes: int = 10) -> ResNet:
    return ResNet(3, num_classes, blocks=[(depth - 2) // 6] * 3, channels=[16, 32, 64], shortcut="pad")


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def gradients(network: nn.Module, images: Tensor) -> list[Tensor]:
    network.zero_grad()
    F.cross_entropy(network(images), torch.arange(len(images)) % 10).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def images_of(count: int = 8, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator)


def test_lenet_is_the_articles_network_to_the_bit():
    torch.manual_seed(0)
    article = Article()
    torch.manual_seed(0)
    network = lenet()
    images = images_of()
    pairs = zip(network.parameters(), article.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert torch.equal(network(images), article(images))
    for ours, theirs in zip(gradients(network, images), gradients(article, images), strict=True):
        assert torch.equal(ours, theirs)
    assert size(network) == 62_038


def test_pooling_before_relu_is_pooling_after_it_to_the_bit_gradients_too():
    images = images_of(4, 5, 13, 11).requires_grad_()
    weights = images_of(4, 5, 6, 5)
    before = F.relu(F.max_pool2d(images, 2))
    after = F.max_pool2d(F.relu(images), 2)
    assert torch.equal(before, after)
    (gradient_before,) = torch.autograd.grad((before * weights).sum(), images)
    (gradient_after,) = torch.autograd.grad((after * weights).sum(), images)
    assert torch.equal(gradient_before, gradient_after)


def test_average_pooling_comes_after_relu():
    network: Any = ConvNet(
        1, 2, (4, 4), channels=[3], kernel_size=3, padding=1, pool="avg", batch_norm=False, hidden=[]
    )
    images = images_of(2, 1, 4, 4)
    expected = F.avg_pool2d(F.relu(network.features.conv1(images)), 2)
    assert torch.equal(network.features(images), expected)


def test_stages_take_a_scalar_or_one_value_each():
    one = ConvNet(3, 10, (32, 32), channels=[4, 8], kernel_size=3, padding=1, pool="max", batch_norm=True, hidden=[])
    each = ConvNet(
        3, 10, (32, 32), channels=[4, 8], kernel_size=[3, 3], padding=[1, 1], pool=["max", "max"],
        batch_norm=[True, True], hidden=[],
    )  # fmt: skip
    assert str(one) == str(each)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(17, 32), (28, 28), (40, 21)])
@pytest.mark.parametrize("pool", ["max", "avg", "none", ["none", "avg", "max"]])
def test_convnet_takes_any_size_and_depth(channels: int, size: tuple[int, int], pool: Any):
    network = ConvNet(
        channels, 7, size, channels=[4, 6, 8], kernel_size=3, padding=1, pool=pool, batch_norm=[True, False, False],
        hidden=[5], dropout=0.5,
    )  # fmt: skip
    images = images_of(2, channels, *size).contiguous(memory_format=torch.channels_last)
    assert network(images).shape == (2, 7)
    assert network.eval()(images).isfinite().all()


def test_dropout_stands_before_every_linear_layer():
    layers = list(lenet(dropout=0.5).head)
    before = [layers[i - 1] for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    assert len(before) == 3
    assert all(isinstance(layer, nn.Dropout) for layer in before)


def test_image_too_small_for_the_stages_names_stage_and_size():
    with pytest.raises(ConfigError, match=r"10×10 pixels are 3×3 at stage 2.*kernel_size 5"):
        ConvNet(3, 10, (10, 10), **LENET)
    with pytest.raises(ConfigError, match="at stage 3"):
        ConvNet(3, 10, (32, 32), channels=[4, 4, 4], kernel_size=[1, 1, 9], batch_norm=False, hidden=[])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"channels": []}, r"model\.channels"),
        ({"channels": [6, 0]}, r"model\.channels"),
        ({"kernel_size": [5]}, r"model\.kernel_size must be one value or one for each of the 2"),
        ({"kernel_size": 0}, r"model\.kernel_size"),
        ({"padding": -1}, r"model\.padding"),
        ({"pool": "median"}, r"model\.pool must be max, avg or none, got median"),
        ({"hidden": [0]}, r"model\.hidden"),
        ({"dropout": 1.0}, r"model\.dropout"),
    ],
)
def test_convnet_refuses_what_it_cannot_build(changes: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        lenet(**changes)


def test_residual_networks_have_the_papers_sizes():
    with torch.device("meta"):
        sizes = {
            "resnet20": size(resnet(20)),
            "resnet56": size(resnet(56)),
            "resnet18": size(ResNet(3, 10, **RESNET18)),
            "wrn-16-4": size(WideResNet(3, 10, depth=16, width=4)),
            "wrn-28-10": size(WideResNet(3, 10, depth=28, width=10)),
            "wrn-28-10, 100 classes": size(WideResNet(3, 100, depth=28, width=10)),
        }
    assert sizes == {
        "resnet20": 269_722,  # 0.27 million in the paper
        "resnet56": 853_018,  # 0.85
        "resnet18": 11_173_962,
        "wrn-16-4": 2_748_890,  # 2.7
        "wrn-28-10": 36_479_194,  # 36.5
        "wrn-28-10, 100 classes": 36_536_884,
    }


def test_option_a_shortcut_keeps_the_old_channels_and_appends_zeros():
    stages: Any = resnet(20).stages
    block = stages[1][0]
    images = images_of(2, 16, 9, 8)
    shortcut = block.shortcut(images)
    assert torch.equal(shortcut[:, :16], images[:, :, ::2, ::2])
    assert shortcut.shape == (2, 32, 5, 4)
    assert not shortcut[:, 16:].any()
    assert size(block.shortcut) == 0


def test_wide_block_activates_before_it_convolves_and_drops_between_convolutions():
    stages: Any = WideResNet(3, 10, depth=10, width=2, dropout=0.3).stages
    block = stages[0][0].eval()
    images = images_of(2, 16, 8, 8)
    activated = F.relu(block.norm1(images))
    residual = block.conv2(F.relu(block.norm2(block.conv1(activated))))
    torch.testing.assert_close(block(images), residual + block.shortcut(activated))
    assert isinstance(block.dropout, nn.Dropout)


def test_he_initialisation_has_the_variance_of_the_paper():
    torch.manual_seed(0)
    stages: Any = ResNet(3, 10, blocks=[1, 1], channels=[8, 128], shortcut="projection").stages
    weight = stages[1][0].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (128 * 9), rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize(
    "network",
    [
        lenet(),
        resnet(8),
        ResNet(3, 10, blocks=[1, 1], channels=[4, 8], shortcut="projection"),
        WideResNet(3, 10, depth=10, width=1),
    ],
    ids=["lenet", "resnet8", "projection", "wide"],
)
def test_channels_last_changes_nothing_but_rounding(network: Any):
    network.double()
    images = images_of().double()
    expected, expected_gradients = network(images), gradients(network, images)
    network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), expected)
    for ours, theirs in zip(gradients(network, images), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(3, 10, blocks=[1, 1], channels=[4], shortcut="pad"),
        lambda: ResNet(3, 10, blocks=[0], channels=[4], shortcut="pad"),
        lambda: ResNet(3, 10, blocks=[1], channels=[4], shortcut="none"),  # type: ignore[arg-type]
        lambda: ResNet(3, 10, blocks=[1, 1], channels=[8, 4], shortcut="pad"),
        lambda: WideResNet(3, 10, depth=20, width=1),
        lambda: WideResNet(3, 10, depth=16, width=0),
        lambda: WideResNet(3, 10, depth=16, width=1, dropout=-0.1),
    ],
)
def test_residual_networks_refuse_what_they_cannot_build(build: Any):
    with pytest.raises(ConfigError, match=r"model\."):
        build()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize_is_value_minus_mean_over_std(channels: int, memory_format: torch.memory_format):
    mean, std = [0.49, 0.48, 0.45][:channels], [0.25, 0.24, 0.26][:channels]
    images = torch.randint(0, 256, (4, channels, 6, 5), dtype=torch.uint8).contiguous(memory_format=memory_format)
    before = images.clone()
    exact = images.double() / 255
    exact = (exact - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    layer = Normalize(mean, std)
    floats = images.float() / 255
    floats_before = floats.clone()
    for result in (layer(images), layer(floats)):
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(images, before)
    assert torch.equal(floats, floats_before)


def test_checkpoint_carries_the_normalisation():
    def network(mean: list[float], std: list[float]) -> nn.Module:
        return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), body=lenet())).eval()

    trained, fresh = network([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), network([0.0] * 3, [1.0] * 3)
    fresh.load_state_dict(trained.state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(fresh(images), trained(images))


def test_normalize_refuses_a_constant_channel():
    with pytest.raises(DataError, match=r"data\.std must be positive"):
        Normalize([0.5, 0.5], [0.2, 0.0])
    with pytest.raises(DataError, match="equally long, got 2 and 1"):
        Normalize([0.5, 0.5], [0.2])
