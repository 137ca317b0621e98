"""Parameters in groups that an optimizer treats alike."""

from typing import Any

from torch import nn

from cnnlab.errors import ConfigError


def parameter_groups(
    network: nn.Module,
    weight_decay: float,
    decay_bias_and_norm: bool = True,
    lr: float = 0.0,
    norm_bias_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer, in the network's own order.

    Args:
        network: Whose parameters; frozen ones are left out.
        weight_decay: Of weights, as the optimizer understands it.
        decay_bias_and_norm: Whether biases and the parameters of norms decay too. If so there is one group,
            else there are two: what decays, and what does not, which has fewer than two dimensions.
        lr: Learning rate that `norm_bias_factor` is for.
        norm_bias_factor: Factor on the learning rate of the biases of norms, which then are a last group. Their
            weight decay is divided by it, so that they shrink no faster than the rest.

    Raises:
        ConfigError: Nothing in the network can be trained, or it has no norm with a bias.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"model: {type(network).__name__} must have trainable parameters, it has none.")
    apart: list[nn.Parameter] = []
    if norm_bias_factor != 1:
        apart = [parameter for parameter in _norm_biases(network) if parameter.requires_grad]
        if not apart:
            raise ConfigError(
                f"optimizer.norm_bias_factor={norm_bias_factor} is for the biases of norms; the network has none."
            )
    chosen = {id(parameter) for parameter in apart}
    rest = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups: list[dict[str, Any]]
    if decay_bias_and_norm:
        groups = [{"params": rest, "weight_decay": weight_decay}]
    else:
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
    if apart:
        decay = weight_decay / norm_bias_factor if decay_bias_and_norm else 0.0
        groups.append({"params": apart, "lr": lr * norm_bias_factor, "weight_decay": decay})
    return groups


def _norm_biases(network: nn.Module) -> list[nn.Parameter]:
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return [module.bias for module in network.modules() if isinstance(module, norms) and module.bias is not None]
