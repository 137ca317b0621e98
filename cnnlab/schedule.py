"""The learning rate over a run: a factor on every group's rate, as a function of (step, total_steps).

Steps count from 0. All lengths are fractions of the run, so that a schedule keeps its shape when the run gets
longer. From the end of the run on the factor no longer changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cnnlab.bounds import Bounds, NonNegativeFloat, PositiveShare, ShareBelowOne, within_bounds
from cnnlab.errors import ConfigError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Constant:
    """Keep the learning rate."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        return 1.0


@within_bounds("schedule")
@dataclass(frozen=True)
class Step:
    """Multiply the learning rate by a factor at regular intervals.

    Args:
        every: Length of an interval, as a fraction of the run.
        gamma: The factor.

    Raises:
        ConfigError: An argument is out of its range.
    """

    every: PositiveShare
    gamma: NonNegativeFloat = 0.1

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        # Without the margin a step on a boundary could fall before it: 0.3 / 0.1 is 2.9999999999999996.
        intervals = math.floor(_progress(step, total_steps) / self.every + 1e-9)
        return self.gamma ** min(intervals, math.ceil(1 / self.every - 1e-9) - 1)


@within_bounds("schedule")
@dataclass(frozen=True)
class MultiStep:
    """Multiply the learning rate by a factor at each milestone.

    Args:
        milestones: Where, as fractions of the run, in rising order.
        gamma: The factor.

    Raises:
        ConfigError: An argument is out of its range.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2: a tenth at 32,000 and 48,000 of 64,000 steps.
    """

    milestones: Sequence[Annotated[float, Bounds(above=0, below=1)]]
    gamma: NonNegativeFloat = 0.1

    def __post_init__(self) -> None:
        milestones = list(self.milestones)
        if milestones != sorted(set(milestones)):
            raise ConfigError(f"schedule.milestones must be rising numbers between 0 and 1, got {milestones}.")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        progress = _progress(step, total_steps)
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)


@within_bounds("schedule")
@dataclass(frozen=True)
class Linear:
    """Change the learning rate linearly over the whole run.

    Args:
        start_factor: Factor at the first step.
        end_factor: Factor at the end of the run; the last step comes just before it.

    Raises:
        ConfigError: An argument is negative.
    """

    start_factor: NonNegativeFloat = 1.0
    end_factor: NonNegativeFloat = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        return _linear(self.start_factor, self.end_factor, _progress(step, total_steps))


@within_bounds("schedule")
@dataclass(frozen=True)
class Cosine:
    """Warm up linearly, then follow half a cosine down.

    Args:
        warmup: Length of the warm-up, as a fraction of the run; 0 for none.
        start_factor: Factor at the first step of a warm-up.
        end_factor: Factor at the end of the run; the last step comes just before it.

    Raises:
        ConfigError: An argument is out of its range.

    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5, without restarts; the warm-up of
    Goyal et al. 2017, arXiv:1706.02677, section 2.2.
    """

    warmup: ShareBelowOne = 0.0
    start_factor: NonNegativeFloat = 0.01
    end_factor: NonNegativeFloat = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        progress = _progress(step, total_steps)
        if progress < self.warmup:
            return _linear(self.start_factor, 1.0, progress / self.warmup)
        return _cosine(1.0, self.end_factor, (progress - self.warmup) / (1 - self.warmup))


@within_bounds("schedule")
@dataclass(frozen=True)
class OneCycle:
    """Raise the learning rate to its peak, then let it fall.

    Args:
        warmup: Where the peak is, as a fraction of the run.
        start_factor: Factor at the first step.
        end_factor: Factor at the end of the run; the last step comes just before it.
        anneal: Shape of the rise and the fall.

    Raises:
        ConfigError: An argument is out of its range.

    Source: Smith & Topin 2017, arXiv:1708.07120. The linear one with warmup=0.23, start_factor=0.2 and
    end_factor=0.07 is airbench94's (Jordan 2024, arXiv:2404.00498).
    """

    warmup: ShareBelowOne = 0.3
    start_factor: NonNegativeFloat = 0.04
    end_factor: NonNegativeFloat = 0.0
    anneal: Literal["linear", "cosine"] = "cosine"

    def __post_init__(self) -> None:
        if self.anneal not in ("linear", "cosine"):
            raise ConfigError(f"schedule.anneal must be linear or cosine, got {self.anneal}.")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the factor at a step."""
        curve = _linear if self.anneal == "linear" else _cosine
        progress = _progress(step, total_steps)
        if progress < self.warmup:
            return curve(self.start_factor, 1.0, progress / self.warmup)
        return curve(1.0, self.end_factor, (progress - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Scheduler:
    """One of torch's learning rate schedulers, or a class like them, which steps after every epoch or every step.

    Args:
        build: Makes it from the optimizer.
        interval: When it steps.
        monitor: The metric that it looks at after an epoch, as `ReduceLROnPlateau` does.
    """

    build: "Callable[[Optimizer], LRScheduler]"
    interval: Literal["epoch", "step"] = "epoch"
    monitor: str | None = None

    def configure(self, optimizer: "Optimizer") -> dict[str, Any]:
        """Return the scheduler as Lightning wants to be told of it."""
        watched = {} if self.monitor is None else {"monitor": self.monitor, "reduce_on_plateau": True}
        return {"scheduler": self.build(optimizer), "interval": self.interval, **watched}


@dataclass
class Pace:
    """How far a run is at each of its steps, where the clock decides that and not the number of steps.

    Attributes:
        shares: Of the run that lie before each step, from 0; it ends when the last one is 1.
    """

    STEPS = 1_000_000
    """Steps of a run, as a schedule sees it."""

    shares: list[float] = field(default_factory=lambda: [0.0])

    @property
    def is_over(self) -> bool:
        """Whether the run's last step is made, or is the one under way."""
        return self.shares[-1] >= 1

    def advance(self, steps_left: float) -> None:
        """Take the step under way for the first of so many, and go as far as each of the others will have to.

        What the run stood still before, while nothing was known of it, is caught up with.
        """
        step = len(self.shares) - 1
        share = self.shares[-1] or step / (step + steps_left)
        self.shares.append(share + (1 - share) / steps_left if steps_left >= 1.5 else 1.0)

    def place(self, step: int) -> tuple[int, int]:
        """Return which step of how many a step is to a schedule."""
        return round(self.shares[min(step, len(self.shares) - 1)] * self.STEPS), self.STEPS


class LearningRates(NamedTuple):
    """The learning rate over a run.

    Attributes:
        epochs: Places, in epochs from the beginning; the last one is the run's end.
        lrs: The learning rate of the step that begins there.
        steps: Optimizer steps of the whole run.
    """

    epochs: list[float]
    lrs: list[float]
    steps: int


def plan_learning_rate(
    schedule: Callable[[int, int], float],
    lr: float,
    batches: int,
    *,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    limit_train_batches: float | int | None = None,
    accumulate_grad_batches: int = 1,
    places: int = 2000,
) -> LearningRates:
    """Compute the learning rate over a run, without the run.

    Args:
        schedule: Factor on the learning rate at (step, total_steps).
        lr: The learning rate.
        batches: Of an epoch, over all training images.
        max_epochs: As the Trainer takes it, and so are the other limits; None or -1 for none.
        max_steps: Likewise.
        limit_train_batches: Likewise, a number of batches or a share of them.
        accumulate_grad_batches: Batches of one optimizer step.
        places: Number of steps, at most, at which it is computed.

    Raises:
        ConfigError: The run's length is not known beforehand.
    """
    limit = limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
    per_epoch = math.ceil(batches / accumulate_grad_batches)
    bounds = [max_steps] if max_steps not in (None, -1) else []
    bounds += [max_epochs * per_epoch] if max_epochs not in (None, -1) else []
    if not bounds or min(bounds) < 1:
        raise ConfigError(
            "a schedule has a shape only where the run has a length: give trainer.max_epochs or max_steps."
        )
    steps = min(bounds)
    at = sorted({steps * place // (places - 1) for place in range(places)})
    # No step begins at the run's end; what the last one had is drawn to there.
    lrs = [lr * schedule(min(step, steps - 1), steps) for step in at]
    return LearningRates([step / per_epoch for step in at], lrs, steps)


def _progress(step: int, total_steps: int) -> float:
    """Return the share of the run that lies before a step."""
    return min(step / max(total_steps, 1), 1.0)


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
