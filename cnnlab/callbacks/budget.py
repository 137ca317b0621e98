"""Training to a deadline: the schedule follows the clock, and ends when the time is up."""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from cnnlab.callbacks.checkpoint import validation_rhythm
from cnnlab.callbacks.figures import Figures
from cnnlab.classifier import callbacks_of
from cnnlab.errors import ConfigError
from cnnlab.schedule import Pace
from cnnlab.wording import format_duration

log = logging.getLogger(__name__)

WINDOW, LONGEST_WINDOW, FEWEST = 0.1, 60.0, 10  # share of the budget, seconds, steps over which a step's time is a mean
FEWEST_TIMED = 3  # steps after the first, before the schedule moves
OUTLIER = 5.0  # times the usual step: what took longer counts as so much
AGREE_SECONDS = 1.0  # after so long, or ten steps, several processes agree anew how many steps are left
EVALUATION = 0.35  # of a step's time for each image, until a validation was timed: it has no backward pass
SAVING_SECONDS = 0.05  # beside a validation, until that was timed
LEAST_ENDING_SECONDS = 1.05  # for the pictures and files at the end, on an idle machine
ENDING = 0.24  # of the time that starting up computes
WITHOUT_PICTURES = 0.4  # of either
LOAD_SECONDS = 1.0  # between two looks at how long the process waits for a processor
VIEWS = {"none": 1, "mirror": 2, "mirror_translate": 6}  # of an image in the test


class Cycle(NamedTuple):
    """How training and validations, with what is saved after them, take turns.

    Attributes:
        until: Steps to the next validation, the one under way among them.
        between: Steps from one to the next.
        pause: How long one takes, in steps.
    """

    until: float
    between: float
    pause: float

    def steps_in(self, time_left: float) -> float:
        """Return how many steps a time is enough for, both measured in steps; the last is followed by no pause."""
        rest = time_left - self.until
        if not rest > 0:  # or there is no pause at all
            return time_left
        cycles, rest = divmod(rest, self.between + self.pause)
        return self.until + cycles * self.between + max(0.0, rest - self.pause)


class Budget(Callback):
    """End a run when its time is up, with its schedule at its end.

    At each optimizer step the share of the run that is over grows by 1/n of what is left of it, where n is the number
    of steps that the time is still enough for, as fast as steps have been lately: validations, the test and the
    pictures at the end are provided for. At a constant speed that is the ordinary schedule; a step that takes twice as
    long goes twice as far. The shares are part of the checkpoint, so that a resumed run has those of before, and a
    second run can have all of them.

    Args:
        name: As it was typed.
        seconds: Wall-clock time of the whole command.
        began: When the command began, by the monotonic clock; now by default.
        shares: Of the run that lie before each step, from a run that is repeated; the clock decides nothing then.

    Attributes:
        pace: The shares so far.
        ending: Seconds that pictures and files take at the end on an idle machine; 0 until starting up was timed.
    """

    def __init__(
        self, name: str, seconds: float, began: float | None = None, shares: Sequence[float] | None = None
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.shares = shares
        self.pace = Pace()
        self._began = time.monotonic() if began is None else began
        self._before = 0.0  # seconds of earlier commands that this one resumes
        self._step: float | None = None  # seconds that an optimizer step takes now
        self._pauses: dict[str, float] = {}  # steps' time that a `validation` takes, and the end of an `epoch` without
        self._image: float | None = None  # steps' time that evaluating an image takes
        self.ending = 0.0
        self._had = self._waited = 0.0  # seconds of and for a processor when the load was measured last
        self._measure_at = 0.0
        self._slowdown = 1.0  # how many times as long as on an idle machine computing takes now
        self._intervals: deque[float] = deque()  # seconds between the last steps, and their sum
        self._timed = 0.0
        self._window = min(WINDOW * seconds, LONGEST_WINDOW)
        self._mark: float | None = None  # when the last step was timed
        self._left_at: float | None = None  # when the last batch before an interruption ended
        self._interruption = ""  # what came since that: `validation` or `epoch`
        self._agreed: tuple[float, int] | None = None  # steps left, and how many of them until all agree anew
        self._is_announced = False

    @property
    def used(self) -> float:
        """Seconds since the command began, with those of the commands that it resumes."""
        return self._before + time.monotonic() - self._began

    def describe(self) -> dict[str, Any]:
        """Return what a run's record says of it."""
        return {"asked": self.name, "used": round(self.used, 2), "steps": len(self.pace.shares) - 1}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Drawing and writing at the end takes about a fifth of what starting up computes; a little more is kept.
        self._had, self._waited = processor_seconds()
        starting = min(time.monotonic() - self._began, self._had)
        draws = any(callbacks_of(trainer, Figures))
        # A run that went back since it diverged has started up long ago.
        self.ending = self.ending or max(LEAST_ENDING_SECONDS, ENDING * starting) * (1.0 if draws else WITHOUT_PICTURES)
        self._slowdown = 1 + self._waited / max(self._had, 1e-3)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._interruption and self._left_at is not None and self._mark is not None:
            pause = time.monotonic() - self._left_at
            self._mark += pause
            if self._step:
                self._pauses[self._interruption] = pause / self._step
        self._interruption = ""

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        if len(self.pace.shares) > step + 1:
            return  # an optimizer that asks for several gradients in a step
        now = time.monotonic()
        if self._mark is not None:
            self._note(now - self._mark)
        self._mark = now
        if self.shares is not None:
            self.pace.shares.append(self.shares[min(step + 1, len(self.shares) - 1)])
        else:
            self._advance(trainer)
        if self.pace.is_over:
            # Before the step's end, so that no state is saved after it that would be resumed inside the epoch.
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1  # the last state is validated in whatever epoch it comes

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._left_at = time.monotonic()
        if self.pace.is_over and trainer.is_global_zero:
            log.info(f"budget={self.name}: the last step is step {trainer.global_step}, after {self.used:.1f} s")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interruption = "validation"
        self._validation_began = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = evaluated(trainer, trainer.datamodule, "val")  # type: ignore[attr-defined]
        if self._step is not None and images:
            self._image = (time.monotonic() - self._validation_began) / images / self._step

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interruption = self._interruption or "epoch"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "shares": torch.tensor(self.pace.shares, dtype=torch.float64),
            "clock": {
                "began": self._began, "before": self._before, "used": self.used, "step": self._step,
                "pauses": self._pauses, "image": self._image,
            },
        }  # fmt: skip

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pace.shares = state_dict["shares"].tolist()
        clock = state_dict["clock"]
        # A run that went back since it diverged goes on in the command that saved the state.
        self._before = clock["before"] if clock["began"] == self._began else clock["used"]
        self._step, self._pauses, self._image = clock["step"], dict(clock.get("pauses", {})), clock["image"]
        self._keep([self._step] * FEWEST if self._step is not None else [])

    def _advance(self, trainer: Trainer) -> None:
        """Note how far the run is after the step under way."""
        if self._agreed is None or self._agreed[1] <= 0:
            plan = self._plan(trainer)
            self._agreed = trainer.strategy.broadcast(plan) if trainer.world_size > 1 else plan
        if self._agreed is None:  # no step was timed yet
            self.pace.shares.append(0.0)
            return
        left, until_agreed = self._agreed
        self.pace.advance(left)
        self._agreed = (left - 1, until_agreed - 1) if trainer.world_size > 1 else None

    def _note(self, interval: float) -> None:
        """Note how long a step took; a checkpoint inside an epoch is no sign that the machine is slower."""
        interval = min(interval, OUTLIER * self._step) if self._step is not None else interval
        self._intervals.append(interval)
        self._timed += interval
        while len(self._intervals) > FEWEST and self._timed - self._intervals[0] > self._window:
            self._timed -= self._intervals.popleft()

    def _keep(self, intervals: list[float]) -> None:
        self._intervals, self._timed = deque(intervals), sum(intervals)

    def _measure_load(self) -> None:
        now = time.monotonic()
        if now < self._measure_at:
            return
        self._measure_at = now + LOAD_SECONDS
        had, waited = processor_seconds()
        if had - self._had >= LOAD_SECONDS / 4:
            self._slowdown = 1 + (waited - self._waited) / (had - self._had)
            self._had, self._waited = had, waited

    def _plan(self, trainer: Trainer) -> tuple[float, int] | None:
        """Return how many steps the time is enough for, the one under way among them; None while that is unknown.

        Raises:
            ConfigError: There is no time even for the first.
        """
        time_left = self.seconds - self.used
        self._measure_load()
        ending_seconds = self.ending * self._slowdown
        if self._step is None and len(self._intervals) >= FEWEST_TIMED:
            self._step = statistics.median(self._intervals)
            self._keep([self._step] * FEWEST_TIMED)
        if self._step is None:
            if len(self.pace.shares) == 1 and time_left <= ending_seconds:
                raise ConfigError(
                    f"budget={self.name}: starting up took {self.used:.1f} s, and the test and the pictures take about "
                    f"{ending_seconds:.1f} s: no time is left to train. Give more."
                )
            latest = self._intervals[-1] if self._intervals else 0.0
            return (1.0, 0) if time_left - ending_seconds < 2 * latest else None
        self._step = self._timed / len(self._intervals)
        validation, ending = self._costs(trainer)
        # What the ends of epochs without a validation take is spread over all steps.
        steps_an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        stretch = 1 + self._pauses.get("epoch", 0.0) / steps_an_epoch
        cycle = Cycle(*self._rhythm(trainer), validation / stretch)
        left = max(1.0, cycle.steps_in((time_left / self._step - ending) / stretch))
        if self._timed < self._window / 2 and time_left > ending_seconds:
            left = max(2.0, left)  # a few slow steps are no sign that the test will take all of the time
        if not self._is_announced:
            self._is_announced = True
            self._announce(trainer, left)
        return left, max(1, min(10, round(AGREE_SECONDS / self._step)))

    def _costs(self, trainer: Trainer) -> tuple[float, float]:
        """Return what a validation takes, and what comes after the last step, both in steps."""
        assert self._step is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        per_step = data.batch_size * trainer.accumulate_grad_batches
        image = self._image or EVALUATION / per_step
        saving = SAVING_SECONDS / self._step
        validation = self._pauses.get("validation", image * evaluated(trainer, data, "val") + saving)
        views = VIEWS.get(getattr(trainer.lightning_module, "tta", "none"), 1)
        test = image * views * evaluated(trainer, data, "test")
        return validation, validation + test + self.ending * self._slowdown / self._step

    def _rhythm(self, trainer: Trainer) -> tuple[float, float]:
        """Return how many steps it is to the next validation, and how many there are between two."""
        if not trainer.enable_validation:
            return math.inf, math.inf
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        batches, every = validation_rhythm(trainer, batch_idx)
        epochs, accumulated = trainer.check_val_every_n_epoch or 1, trainer.accumulate_grad_batches
        left = -batches % every
        if math.isinf(every):  # none in this epoch
            every = trainer.num_training_batches
            left = (-(trainer.current_epoch + 1) % epochs + 1) * every - batches
        return 1 + left / accumulated, epochs * every / accumulated

    def _announce(self, trainer: Trainer, left: float) -> None:
        if not trainer.is_global_zero:
            return
        assert self._step is not None
        steps = round(len(self.pace.shares) - 1 + left)
        epochs = steps / math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        recording = (max(0.0, self.seconds - self.used) - left * self._step) / self.seconds
        log.info(
            f"budget={self.name}, of which {format_duration(self.used)} are over: about {steps:,} steps, {epochs:.1f} "
            f"epochs; {recording:.0%} of the time is for validation, the test and the pictures"
        )


def processor_seconds() -> tuple[float, float]:
    """Return for how many seconds this process has had a processor, and for how many it waited for one.

    Linux says so (Documentation/scheduler/sched-stats.rst); elsewhere it never waited.
    """
    try:
        had, waited = Path("/proc/self/schedstat").read_text().split()[:2]
        return int(had) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return time.process_time(), 0.0


def evaluated(trainer: Trainer, data: Any, split: str) -> int:
    """Return how many images of `val` or `test` each process evaluates."""
    limit = getattr(trainer, f"limit_{split}_batches")
    size = getattr(data, "eval_batch_size", data.batch_size)
    images = math.ceil(data.count(split) / trainer.world_size)
    return min(images, size * (limit if isinstance(limit, int) else int(limit * math.ceil(images / size))))


def find_budget(trainer: Trainer) -> Budget | None:
    """Return the trainer's callback of this kind; None where a run has no budget."""
    return next(callbacks_of(trainer, Budget), None)
