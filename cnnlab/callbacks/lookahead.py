"""Slow weights that follow the fast weights."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cnnlab.bounds import PositiveInt, ShareBelowOne, within_bounds
from cnnlab.callbacks.ema import split_by_kind
from cnnlab.classifier import step_counter


@within_bounds("callbacks.lookahead")
class Lookahead(Callback):
    """Pull the weights back to their slow average every few steps, and once more at the run's last step.

    A run that is ended before its last step, as early stopping and `max_time` do, ends up to `every_n_steps` - 1 steps
    ahead of its average.

    Every `every_n_steps` optimizer steps the slow weights move to the fast ones by 1 - momentum^every·(t/T)³, where
    t/T is the share of the run that is over, and the fast weights are set to them: hardly any pull in the beginning, a
    strong pull at the end. Buffers such as the running statistics of norms are averaged alike.

    Args:
        every_n_steps: Optimizer steps between two pulls.
        momentum: Of a single step, at the end of the run.

    Raises:
        ConfigError: An argument is out of its range.

    Source: Zhang et al. 2019, arXiv:1907.08610, with the rising momentum of Jordan 2024, arXiv:2404.00498, section 3.4.
    """

    def __init__(self, every_n_steps: PositiveInt = 5, momentum: ShareBelowOne = 0.95) -> None:
        self.every_n_steps = every_n_steps
        self.momentum = momentum
        self.slow: list[Tensor] | None = None
        self._stepped = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fast, _ = split_by_kind(pl_module)
        if self.slow is None:
            self.slow = [value.clone() for value in fast]
        self.slow = [slow.to(value.device) for slow, value in zip(self.slow, fast, strict=True)]
        self._stepped = trainer.global_step
        self._place = step_counter(trainer, "callbacks.lookahead")

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._stepped:
            return  # gradients are still being accumulated
        self._stepped = step
        reached, total_steps = self._place(step)
        at_end = reached >= total_steps
        if step % self.every_n_steps and not at_end:
            return
        assert self.slow is not None
        fast, _ = split_by_kind(pl_module)
        if not at_end:
            share = 1 - self.momentum**self.every_n_steps * (reached / total_steps) ** 3
            torch._foreach_lerp_(self.slow, fast, share)
        torch._foreach_copy_(fast, self.slow)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.slow is None else {"slow": self.slow}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.slow = state_dict.get("slow")
