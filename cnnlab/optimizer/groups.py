"""Parameters in groups that an optimizer treats alike."""

from typing import Any

from torch import nn

from cnnlab.errors import ConfigError

NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


def parameter_groups(
    network: nn.Module,
    weight_decay: float | None,
    decay_bias_and_norm: bool = True,
    lr: float | None = None,
    norm_bias_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer, in the network's own order.

    Args:
        network: Whose parameters; frozen ones are left out.
        weight_decay: Of weights, as the optimizer understands it; None for an optimizer that has none.
        decay_bias_and_norm: Whether biases and the parameters of norms decay too. If so there is one group,
            else there are two: what decays, and what does not, which has fewer than two dimensions.
        lr: Learning rate that `norm_bias_factor` is for.
        norm_bias_factor: Factor on the learning rate of the biases of norms, which then are a last group. Their
            weight decay is divided by it, so that they shrink no faster than the rest.

    Raises:
        ConfigError: Nothing in the network can be trained, it has no norm with a bias, or the optimizer lacks the
            weight decay or the learning rate that the groups would differ in.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"model: {type(network).__name__} must have trainable parameters, it has none.")
    if weight_decay is None and not decay_bias_and_norm:
        raise ConfigError("optimizer.decay_bias_and_norm=false is for optimizers with weight_decay; this one has none.")
    norm_biases: list[nn.Parameter] = []
    if norm_bias_factor != 1:
        norm_biases = [parameter for parameter in _norm_biases(network) if parameter.requires_grad]
        if not norm_biases or lr is None:
            missing = "the network has none" if lr is not None else "it is a factor on optimizer.lr, which is missing"
            raise ConfigError(f"optimizer.norm_bias_factor={norm_bias_factor} is for the biases of norms; {missing}.")
    chosen = {id(parameter) for parameter in norm_biases}
    rest = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups: list[dict[str, Any]]
    if weight_decay is None:
        groups = [{"params": rest}]
    elif decay_bias_and_norm:
        groups = [{"params": rest, "weight_decay": weight_decay}]
    else:
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
    if norm_biases:
        assert lr is not None
        group: dict[str, Any] = {"params": norm_biases, "lr": lr * norm_bias_factor}
        if weight_decay is not None:
            group["weight_decay"] = weight_decay / norm_bias_factor if decay_bias_and_norm else 0.0
        groups.append(group)
    return groups


def _norm_biases(network: nn.Module) -> list[nn.Parameter]:
    return [module.bias for module in network.modules() if isinstance(module, NORMS) and module.bias is not None]
