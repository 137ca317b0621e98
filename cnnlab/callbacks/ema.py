"""An exponential moving average of the weights."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from typing_extensions import override

from cnnlab.bounds import Share, within_bounds


@within_bounds("callbacks.ema")
class EMA(WeightAveraging):
    """Average the weights exponentially, with a warm-up; validation and test use the average.

    Lightning's EMAWeightAveraging has no warm-up, so that with its decay of 0.999 the first thousand steps are mostly
    the random beginning; and it visits each tensor on its own and reads a counter back from the device in each step.

    After optimizer step t the average moves to the weights by 1 - min(decay, (1 + t) / (10 + t)): at first it follows
    closely, and what it remembers grows with the run. Buffers such as the running statistics of norms are averaged
    alike; those that count are copied.

    Args:
        decay: Share of the average that stays in a step, once warmed up.
        warmup: Whether the share grows to that, or is that from the first step.

    Raises:
        ConfigError: `decay` is out of its range.

    Source: Polyak & Juditsky 1992, doi:10.1137/0330046; the warm-up is that of TensorFlow's
    `ExponentialMovingAverage(num_updates=...)`.
    """

    def __init__(self, decay: Share = 0.999, warmup: bool = True) -> None:
        super().__init__()
        self.decay = decay
        self.warmup = warmup

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step <= self._latest_update_step:
            return  # gradients are still being accumulated
        self._latest_update_step = step
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        assert self._average_model is not None
        averages, counts = split_by_kind(self._average_model.module)
        weights, steps = split_by_kind(pl_module)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        if counts:
            torch._foreach_copy_(counts, steps)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...


def split_by_kind(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and buffers that have fractions, and those that count."""
    tensors = [value.detach() for value in (*module.parameters(), *module.buffers())]
    return [each for each in tensors if each.is_floating_point()], [
        each for each in tensors if not each.is_floating_point()
    ]
