"""Look into a network: its layers, its filters, its activations for an image, and where it looked."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.errors import ConfigError

Picture = UInt8[np.ndarray, "height width channel"]


class Layer(NamedTuple):
    """One layer of a network.

    Attributes:
        name: Its name in the network.
        kind: Its class.
        shape: Shape of its output for an image, without the batch: (channels, height, width) or (features,).
        parameters: Number of its parameters, without those of layers inside it.
        flops: Floating-point operations for an image, a multiplication and an addition counted as two; those of
            convolutions and matrix products only.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


class Maps(NamedTuple):
    """A layer's output for an image."""

    name: str
    values: Float[np.ndarray, "channel height width"]


class Focus(NamedTuple):
    """Where a network looked.

    Attributes:
        layer: The layer whose maps were weighed.
        label: The class that is explained.
        probability: The class's probability.
        heat: How much each pixel spoke for the class, 0 to 1.
    """

    layer: str
    label: int
    probability: float
    heat: Float[np.ndarray, "height width"]


def list_layers(network: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """List a network's layers in the order of computation; last what is in none of them, where there is anything.

    Args:
        network: In evaluation mode; takes images.
        image_shape: (height, width, channels).
    """
    height, width, channels = image_shape
    image = torch.zeros((1, channels, height, width), dtype=torch.uint8)
    seen: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if not any(True for _ in module.children()):
            seen[name] = (module, tuple(output.shape[1:]))

    # No gradients are wanted, but under `inference_mode` the counter sees no operations.
    counter = FlopCounterMode(display=False)
    with _watch(network, note), torch.no_grad(), counter:
        network(image)
    flops = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    layers = [
        Layer(
            _short(name),
            type(module).__name__,
            shape,
            sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            flops.get(name, 0),
        )
        for name, (module, shape) in seen.items()
    ]
    parameters = sum(parameter.numel() for parameter in network.parameters()) - sum(each.parameters for each in layers)
    operations = counter.get_total_flops() - sum(each.flops for each in layers)
    rest = Layer("outside of layers", "", (), parameters, operations)
    return [*layers, rest] if parameters or operations else layers


def read_filters(network: nn.Module, layer: str | None = None) -> Maps:
    """Return the filters of a convolution: each output channel's (input channels, height, width), stacked.

    Args:
        network: The network.
        layer: The convolution's name; by default the first one.

    Raises:
        ConfigError: There is no such convolution.
    """
    convolutions = {_short(name): module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    if not convolutions:
        raise ConfigError("the network has no convolution, and so no filters to show.")
    if layer is not None and layer not in convolutions:
        raise ConfigError(f"--layer must be one of {', '.join(convolutions)}, got {layer}.")
    name = layer or next(iter(convolutions))
    return Maps(name, convolutions[name].weight.detach().float().cpu().numpy())


def compute_activations(network: nn.Module, image: Picture, most: int = 8) -> tuple[list[Maps], str]:
    """Return the layers' outputs for an image, in order, and in words which layers are left out.

    Args:
        network: In evaluation mode; takes images.
        image: The image, of the size that the network was trained on.
        most: How many layers.
    """
    small: dict[str, Tensor] = {}
    blocks: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if _is_map(output) and not isinstance(module, nn.Sequential):
            # A copy: a later layer may write over it.
            (blocks if any(True for _ in module.children()) else small)[name] = output[0].clone()

    with _watch(network, note), torch.no_grad():
        network(_batch(image))
    deep = len(small) > most and bool(blocks)
    if deep:
        # Of a deep network the outputs of its blocks, not all that happens inside them.
        small = dict(list(small.items())[:1]) | blocks
    maps = list(small.items())
    places = sorted({round(place) for place in np.linspace(0, len(maps) - 1, min(most, len(maps)))})
    what = "blocks, without the layers inside them" if deep else "layers"
    left_out = f"{len(places)} of {len(maps)} {what}" if deep or len(places) < len(maps) else ""
    return [Maps(_short(maps[place][0]), maps[place][1].float().numpy()) for place in places], left_out


def locate_focus(network: nn.Module, image: Picture, label: int | None = None) -> Focus:
    """Say which parts of an image spoke for a class.

    The maps of the last layer that still has a height and a width are added up, each weighted by how much the class's
    logit grows with it on average; what speaks against the class is cut off.

    Args:
        network: In evaluation mode; takes images.
        image: The image, of the size that the network was trained on.
        label: The class; by default the one that the network predicts.

    Raises:
        ConfigError: No layer's output has a height and a width.

    Source: Selvaraju et al. 2016, arXiv:1610.02391 (Grad-CAM), equations 1 and 2.
    """
    last: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, output: Tensor) -> Tensor | None:
        if not _is_map(output):
            return None
        last[:] = [(name, output)]
        return output.clone()  # so that a layer that computes in place leaves it as it is

    with _watch(network, note), torch.enable_grad():
        images = _batch(image).float().div(255).requires_grad_()
        logits = network(images)
        if not last:
            raise ConfigError("no layer of the network has maps with a height and a width: there is nowhere to look.")
        label = int(logits[0].argmax()) if label is None else label
        ((name, maps),) = last
        (slopes,) = torch.autograd.grad(logits[0, label], maps)
    weights = slopes.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, image.shape[:2], mode="bilinear", align_corners=False)[0, 0].detach()
    probability = float(logits[0].detach().softmax(0)[label])
    return Focus(_short(name), label, probability, (heat / heat.max().clamp(min=1e-12)).numpy())


@contextmanager
def _watch(network: nn.Module, note: Any) -> Iterator[None]:
    """Call `note(name, module, output)` after each module that returns a tensor."""

    def hook(name: str, module: nn.Module, arguments: Any, output: Any) -> Any:
        return note(name, module, output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_hook(partial(hook, name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_map(output: Tensor) -> bool:
    return output.ndim == 4 and output.shape[2] * output.shape[3] > 1


def _batch(image: Picture) -> UInt8[Tensor, "1 channel height width"]:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def _short(name: str) -> str:
    """Return a layer's name in the network that its author wrote, without the prefix of the normalisation around it."""
    return name.removeprefix("body.") or name
