"""Networks of other packages, with the arguments that they call by other names filled in."""

import importlib
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from cnnlab.errors import ConfigError

# What these would read or fetch is a file or an address, and a run's folder may be a stranger's.
REFUSED = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights", "weights_backbone")


class Timm(nn.Module):
    """A network of the package timm.

    Args:
        name: As `timm.create_model` calls it, such as `resnet18`.
        in_channels: Channels of the images.
        num_classes: Number of classes.
        pretrained: Whether to begin with the package's weights, which are fetched; a run that is restored or resumed
            brings its own.
        **options: Further arguments of `timm.create_model`.

    Raises:
        ConfigError: The package is not installed, has no such network, or it does not take these arguments.
    """

    def __init__(self, name: str, in_channels: int, num_classes: int, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        _check(name, options)
        timm = _import("timm")
        try:
            self.network: nn.Module = timm.create_model(
                name, pretrained=pretrained, in_chans=in_channels, num_classes=num_classes, **options
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"model.name={name}: timm says: {error}") from error

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Torchvision(nn.Module):
    """A classification network of the package torchvision; its last linear layer is made for the classes at hand.

    Args:
        name: As `torchvision.models.get_model` calls it, such as `resnet18`.
        in_channels: Channels of the images, which must be 3.
        num_classes: Number of classes.
        pretrained: Whether to begin with the package's best weights, which are fetched; a run that is restored or
            resumed brings its own.
        **options: Further arguments of the network.

    Raises:
        ConfigError: The package is not installed, has no such network, or it does not take these arguments or images.
    """

    def __init__(self, name: str, in_channels: int, num_classes: int, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        _check(name, options)
        if in_channels != 3:
            raise ConfigError(
                f"model=torchvision: its networks take images of 3 channels, these have {in_channels}; model=timm "
                "takes any number."
            )
        models = _import("torchvision").models
        try:
            if pretrained:  # whose weights are for ImageNet's classes
                self.network: nn.Module = models.get_model(name, weights="DEFAULT", **options)
                replace_head(self.network, num_classes)
            else:
                self.network = models.get_model(name, weights=None, num_classes=num_classes, **options)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"model.name={name}: torchvision says: {error}") from error

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Put a new linear layer of `num_classes` in the place of the network's last one.

    Raises:
        ConfigError: The network has no linear layer.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError("model: the network has no linear layer that could be made for these classes.")
    parent, _, child = names[-1].rpartition(".")
    holder = network.get_submodule(parent)
    head = holder.get_submodule(child)
    assert isinstance(head, nn.Linear)
    holder.register_module(child, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))


def _check(name: str, options: dict[str, Any]) -> None:
    if not name.replace("_", "").replace(".", "").isalnum():
        raise ConfigError(f"model.name must be the name of a network in the package, such as resnet18, got {name}.")
    for option in REFUSED:
        if option in options:
            raise ConfigError(f"model.{option} is not supported: give init_from=FILE for weights of your own.")


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    # torchvision raises a RuntimeError where it was built for another torch.
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"model={package} needs {package} and a torchvision built for this torch: pip install {package} "
            f"torchvision ({error})."
        ) from error
