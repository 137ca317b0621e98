"""Weights that a network begins with: another run's, or those of a file of plain tensors."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cnnlab.checkpoint import has_seal, load_plain, network_weights, read_checkpoint
from cnnlab.errors import CheckpointError, ConfigError, first_line
from cnnlab.record import find_run

log = logging.getLogger(__name__)

STATISTICS = "normalize."
"""Mean and standard deviation of the images, which are no weights."""


def begin_with(network: nn.Sequential, name: str, classes: list[str]) -> None:
    """Load the weights that `init_from` names into a network, wherever name and shape fit, and log what fitted.

    Another run's last layer is left out where its classes are others, even if there are as many of them.

    Args:
        network: The normalisation, and the network that was configured, as `body`.
        name: A run, as `record.find_run` takes it, or a file of plain tensors (`.pth`, `.pt`, `.safetensors`), whose
            names may have a prefix that those of the network lack, or the other way round.
        classes: Those of the images at hand.

    Raises:
        ConfigError: There is no such run or file.
        CheckpointError: The file is damaged, or none of its weights has a name and shape of the network's.
        UnsafeError: The file holds more than tensors.
    """
    path = find_run(name).checkpoint
    expected = {key: value for key, value in network.state_dict().items() if not key.startswith(STATISTICS)}
    if path.suffix == ".ckpt" or has_seal(path):
        content = read_checkpoint(path)
        weights = network_weights(content)
        hyper = content.get("hyper_parameters")
        if not isinstance(hyper, dict) or hyper.get("classes") != classes:
            head = f"{[*dict(network.named_parameters())][-1].rpartition('.')[0]}."
            weights = {key: value for key, value in weights.items() if not key.startswith(head)}
    else:
        weights = align(read_tensors(path), expected)
    fitting = {key: value for key, value in weights.items() if key in expected and value.shape == expected[key].shape}
    if not fitting:
        raise CheckpointError(f"init_from={name}: {path} is another network's: no weight fits.")
    network.load_state_dict(fitting, strict=False)
    new = [key for key in expected if key not in fitting]
    unused = len(weights) - len(fitting)
    log.info(
        f"init_from: {len(fitting)} tensors from {path}"
        + (f"; new: {', '.join(new)}" if new else "")
        + (f"; {unused} of the file's fit nowhere" if unused else "")
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of plain tensors by name; nothing in it is executed.

    A mapping that holds them under `state_dict`, `model` or `model_state_dict`, as training scripts save, is opened.

    Raises:
        ConfigError: The package that reads the file is missing.
        CheckpointError: The file is damaged, or holds something else.
        UnsafeError: It asks for code to be run.
    """
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else load_plain(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {}
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} must hold tensors by name, it holds {type(content).__name__}.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(f"init_from={path} needs the package safetensors: pip install 'cnnlab[export]'.") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as tensors: {first_line(error)}") from error


def align(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a file's tensors, so that as many as possible have a name and shape of the network's.

    A common first part of the names, such as `module.` or `network.`, is taken away, and `body.` set before them.
    """
    first_parts = {name.partition(".")[0] for name in weights}
    starts = ["", f"{first_parts.pop()}."] if len(first_parts) == 1 else [""]
    candidates = [
        {f"{prefix}{name.removeprefix(start)}": value for name, value in weights.items()}
        for start in starts
        for prefix in ("", "body.", "body.network.")
    ]
    return max(
        candidates, key=lambda names: sum(key in expected and names[key].shape == expected[key].shape for key in names)
    )
