"""A batch put through a network before the run begins, so that a wrong network is told at once."""

import copy
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from cnnlab.errors import CnnlabError, ConfigError, first_line


def probe(
    network: nn.Module, images: Shaped[Tensor, "two channel height width"], num_classes: int, *, last_batch: int
) -> None:
    """Check that a network takes its images and answers with logits, in evaluation and in training.

    The network, and torch's random numbers, are left as they are; layers that wait for their first input get it.

    Args:
        network: With its normalisation in front; weights and images on the CPU.
        images: Two of the training images.
        num_classes: Number of classes.
        last_batch: Images in the last batch of a training epoch.

    Raises:
        ConfigError: It does not.
    """
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _check_answer(network.eval(), images, num_classes)
        for module, mode in modes.items():  # a layer that its network froze stays so
            module.training = mode
        trained = copy.deepcopy(network).train()
        _check_answer(trained, images, num_classes)
        if last_batch == 1:
            try:
                trained.forward(images[:1])
            except ValueError as error:  # batch norm
                raise ConfigError(
                    "data.batch_size leaves a last batch of one image, which the network cannot train on "
                    f"({first_line(error)}): give data.drop_last=true, or another data.batch_size."
                ) from error


def _check_answer(network: nn.Module, images: Tensor, num_classes: int) -> None:
    name = type(network[-1] if isinstance(network, nn.Sequential) else network).__name__
    try:
        logits: Any = network.forward(images)  # not by a call, which would compile it for two images
    except CnnlabError:
        raise
    except Exception as error:
        channels, height, width = images.shape[1:]
        raise ConfigError(
            f"model: {name} does not take images of {height} × {width} × {channels}: {type(error).__name__}: "
            f"{first_line(error)}. Its constructor is offered in_channels, image_size and num_classes."
        ) from error
    expected = (len(images), num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected or not logits.is_floating_point():
        answer = (
            f"{tuple(logits.shape)}, {logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        )
        raise ConfigError(
            f"model: {name} must return logits, a tensor of shape {expected} for {len(images)} images of {num_classes} "
            f"classes; it returns {answer}. Its constructor is offered num_classes."
        )
