"""Parameters in groups that an optimizer treats alike."""

from typing import Any

from torch import nn

from cnnlab.errors import ConfigError


def parameter_groups(network: nn.Module, weight_decay: float, decay_bias_and_norm: bool = True) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer, in the network's own order.

    Args:
        network: Whose parameters; frozen ones are left out.
        weight_decay: Of weights, as the optimizer understands it.
        decay_bias_and_norm: Whether biases and the parameters of norms decay too. If so there is one group,
            else there are two: what decays, and what does not, which has fewer than two dimensions.

    Raises:
        ConfigError: Nothing in the network can be trained.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"model: {type(network).__name__} must have trainable parameters, it has none.")
    if decay_bias_and_norm:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
