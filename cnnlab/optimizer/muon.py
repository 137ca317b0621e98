"""Muon: momentum whose steps for convolution filters are orthogonal matrices.

On a GPU launches cost more than the arithmetic, so layers are stepped together: those of a shape as one batch of
matrices, and everything else by operations on lists of tensors.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from cnnlab.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelowOne, within_bounds
from cnnlab.errors import ConfigError


@within_bounds("optimizer")
class Muon(Optimizer):
    """Step convolution filters along the nearest orthogonal matrix of their momentum; the rest by SGD.

    The groups that are handed in are split by what the parameters are (`kind`): `filter` has more than two
    dimensions, `linear` two, `bias` (parameters of norms included) fewer. Momentum is Nesterov's everywhere.

    Args:
        params: Parameters, or groups of them with `weight_decay`.
        lr: Learning rate of filters. The singular values of a step are all near this, however large the
            gradient is.
        momentum: Of filters.
        linear_lr: Learning rate of the weights of linear layers.
        bias_lr: Learning rate of biases and of the parameters of norms.
        sgd_momentum: Of both of these.
        weight_decay: Share by which weights shrink in a step at the full learning rate, whatever that is:
            torch's weight decay times its learning rate. No effect on normalised filters.
        normalize: Bring each layer's filters to the Frobenius norm √(filters) before its step. Sound where
            normalisation follows the convolution, since their length then says nothing.
        ns_steps: Newton-Schulz iterations.

    Raises:
        ConfigError: An argument is out of its range.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, in the variant of
    airbench94_muon.py. Its own values are lr=0.24, linear_lr=0.67, bias_lr=0.053 and weight_decay=0.004 for
    batches of 2000 images and learning rates that fall to zero in 8 epochs.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: PositiveFloat = 0.02,
        momentum: ShareBelowOne = 0.6,
        *,
        linear_lr: PositiveFloat = 0.02,
        bias_lr: PositiveFloat = 0.01,
        sgd_momentum: ShareBelowOne = 0.85,
        weight_decay: NonNegativeFloat = 0.0,
        normalize: bool = True,
        ns_steps: PositiveInt = 3,
    ) -> None:
        settings = {
            "filter": {"lr": lr, "momentum": momentum},
            "linear": {"lr": linear_lr, "momentum": sgd_momentum},
            "bias": {"lr": bias_lr, "momentum": sgd_momentum},
        }
        groups = []
        for entry in params:
            group: dict[str, Any] = entry if isinstance(entry, dict) else {"params": [entry]}
            decay = group.get("weight_decay", weight_decay)
            if not decay >= 0:
                raise ConfigError(f"optimizer.weight_decay must be at least 0, got {decay}.")
            by_kind: dict[str, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_kind[kind_of(parameter)].append(parameter)
            groups += [
                {"params": by_kind[kind], "kind": kind, **of_kind, "weight_decay": decay / of_kind["lr"]}
                for kind, of_kind in settings.items()
                if by_kind[kind]
            ]
        super().__init__(groups, {"normalize": normalize, "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            if not parameters:
                continue
            if group["kind"] == "filter":
                step_filters(group, parameters, gradients, buffers)
            else:
                sgd(
                    parameters, gradients, buffers, lr=group["lr"], momentum=group["momentum"], nesterov=True,
                    weight_decay=group["weight_decay"], dampening=0.0, maximize=False, foreach=True,
                )  # fmt: skip
        return loss


def kind_of(parameter: Tensor) -> str:
    """Tell filters, matrices of linear layers, and biases (parameters of norms included) apart."""
    return "filter" if parameter.ndim > 2 else "linear" if parameter.ndim == 2 else "bias"


def step_filters(group: dict[str, Any], filters: list[Tensor], gradients: list[Any], buffers: list[Tensor]) -> None:
    """Step each layer's filters in place."""
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_add_(buffers, gradients)
    directions = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
    if group["normalize"]:
        scales = torch._foreach_norm(filters)
        torch._foreach_clamp_min_(scales, 1e-7)
        torch._foreach_reciprocal_(scales)
        torch._foreach_mul_(scales, [len(weight) ** 0.5 for weight in filters])
        torch._foreach_mul_(filters, scales)
    else:
        torch._foreach_mul_(filters, 1 - group["lr"] * group["weight_decay"])

    same_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, direction in enumerate(directions):
        same_shape[direction.shape].append(index)
    updates: list[Tensor] = [*directions]
    for indices in same_shape.values():
        order = memory_order(filters[indices[0]])
        # In the filters' own order, so that lists of filters and of updates are stepped through alike. The order of
        # its columns does not matter to a matrix that is made orthogonal.
        stack = torch.stack([directions[index].permute(order) for index in indices])
        orthogonal = orthogonalize(stack.flatten(2), group["ns_steps"]).view_as(stack)
        back = sorted(range(len(order)), key=order.__getitem__)
        for index, update in zip(indices, orthogonal, strict=True):
            updates[index] = update.permute(back)
    torch._foreach_sub_(filters, updates, alpha=group["lr"])


def memory_order(weight: Tensor) -> list[int]:
    """Return the dimensions of filters as they lie in memory, outermost first; that of the filters stays in front."""
    strides = weight.stride()
    return [0, *sorted(range(1, weight.ndim), key=lambda dim: -strides[dim])]


def orthogonalize(matrices: Float[Tensor, "*batch rows columns"], steps: int) -> Float[Tensor, "*batch rows columns"]:
    """Bring all singular values of each matrix near 1, by a quintic Newton-Schulz iteration.

    With M / |M| = U·diag(s)·Vᵀ the result is U·diag(p(...p(s)))·Vᵀ where p(s) = a·s + b·s³ + c·s⁵. The
    coefficients maximise the slope at 0; singular values that are not tiny end between about 0.7 and 1.2.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # On a GPU bfloat16 products are several times as fast, and the iteration tolerates their rounding.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32).reshape(-1, *matrices.shape[-2:])
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)
