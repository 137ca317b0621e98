"""Networks of other packages, against stand-ins with those packages' signatures."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.errors import ConfigError
from cnnlab.model import Timm, Torchvision


class Net(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put stand-ins for timm and torchvision in place; return what they were called with."""
    calls: list[dict[str, Any]] = []

    # The signatures of timm 1.0's `create_model` and torchvision 0.20's `get_model`.
    def create_model(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        calls.append({"name": model_name, "pretrained": pretrained, **kwargs})
        if model_name != "resnet18":
            raise RuntimeError(f"Unknown model ({model_name})")
        return Net(kwargs.pop("in_chans", 3), kwargs.pop("num_classes", 1000))

    def get_model(name: str, **config: Any) -> nn.Module:
        calls.append({"name": name, **config})
        if name != "resnet18":
            raise ValueError(f"Unknown model {name}")
        return Net(3, config.get("num_classes", 1000))

    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")
    timm.create_model = create_model  # type: ignore[attr-defined]
    models.get_model = get_model  # type: ignore[attr-defined]
    torchvision.models = models  # type: ignore[attr-defined]
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("network", [Timm, Torchvision])
def test_networks_have_as_many_logits_as_there_are_classes(packages, network, pretrained: bool):
    built = network("resnet18", in_channels=3, num_classes=7, pretrained=pretrained)
    assert built(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert len(packages) == 1


def test_timm_gets_the_channels_of_the_images(packages):
    assert Timm("resnet18", in_channels=13, num_classes=2)(torch.zeros(1, 13, 8, 8)).shape == (1, 2)


def test_torchvision_refuses_other_than_three_channels(packages):
    with pytest.raises(ConfigError, match="3 channels, these have 1"):
        Torchvision("resnet18", in_channels=1, num_classes=2)


@pytest.mark.parametrize("network", [Timm, Torchvision])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "Unknown model"),
        ("hf-hub:somebody/network", {}, "must be the name of a network"),
        ("../weights", {}, "must be the name of a network"),
        ("resnet18", {"checkpoint_path": "weights.pth"}, "init_from"),
        ("resnet18", {"weights": "DEFAULT"}, "init_from"),
    ],
)
def test_what_is_no_network_is_refused(packages, network, name: str, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        network(name, in_channels=3, num_classes=2, **options)


@pytest.mark.parametrize(("network", "package"), [(Timm, "timm"), (Torchvision, "torchvision")])
def test_a_missing_package_is_named(network, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        network("resnet18", in_channels=3, num_classes=2)
