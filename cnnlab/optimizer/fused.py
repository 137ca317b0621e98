"""Where torch's fused steps may be taken for the plain ones, and how SGD's takes less of the host's time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from typing_extensions import override

RIGHT = {(device, dtype) for device in ("cpu", "cuda") for dtype in (torch.float32, torch.float64)}
"""Devices and types of weights for which `tests/test_optimizer.py` shows that fused and plain steps agree.

On a CPU, torch 2.13's fused SGD never moves bfloat16 and float16 weights, and reads memory that nobody wrote.
"""


def may_fuse(network: nn.Module) -> bool:
    """Whether all weights of a network are of a kind for which fused steps are right."""
    return {(weight.device.type, weight.dtype) for weight in network.parameters()} <= RIGHT


class FusedSGD(SGD):
    """torch's SGD, whose fused step looks up anew what has not changed since the last one. torch 2.13.

    On the host that takes several times as long as the launch of its one kernel. The first step of a momentum, and one
    that is scaled, are torch's.
    """

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        kinds = {(weight.device, weight.dtype) for group in self.param_groups for weight in group["params"]}
        self._is_ordinary = len(kinds) == 1 and all(group["fused"] for group in self.param_groups)

    @override
    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], momentum_buffer_list: list[Any]
    ) -> bool:
        # Where torch gathers what to step, this steps, and leaves it nothing.
        weights = [weight for weight in group["params"] if weight.grad is not None]
        buffers: list[Any] = [self.state[each].get("momentum_buffer") for each in weights] if group["momentum"] else []
        is_special = not self._is_ordinary or hasattr(self, "grad_scale") or any(buffer is None for buffer in buffers)
        if is_special or not weights:  # frozen ones
            return super()._init_group(group, params, grads, momentum_buffer_list)
        gradients: list[Any] = [weight.grad for weight in weights]
        options = {name: group[name] for name in ("weight_decay", "momentum", "lr", "dampening")}
        flags = {name: group[name] for name in ("nesterov", "maximize")}
        torch._fused_sgd_(weights, gradients, buffers, **options, **flags, is_first_step=False)
        return False
