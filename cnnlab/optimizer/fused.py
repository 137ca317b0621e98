"""Where torch's fused steps may be taken for the plain ones."""

import torch
from torch import nn

RIGHT = {(device, dtype) for device in ("cpu", "cuda") for dtype in (torch.float32, torch.float64)}
"""Devices and types of weights for which `tests/test_optimizer.py` shows that fused and plain steps agree.

On a CPU, torch 2.13's fused SGD never moves bfloat16 and float16 weights, and reads memory that nobody wrote.
"""


def may_fuse(network: nn.Module) -> bool:
    """Whether all weights of a network are of a kind for which fused steps are right."""
    return {(weight.device.type, weight.dtype) for weight in network.parameters()} <= RIGHT
