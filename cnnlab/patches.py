"""What cnnlab changes in Lightning, TensorBoard and PyTorch, where they offer no door; nothing by an import alone.

`install` applies the changes that are global to a process. Each entry says why it is there and in which version of the
other side it was read; `tests/test_patches.py` holds that the other side still has that shape.
"""

import logging
import os
import time
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Self

from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loops.optimization.automatic import ClosureResult
from pytorch_lightning.profilers import Profiler
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from cnnlab.console import print_error
from cnnlab.errors import MachineError

ADVERTISING = ("pytorch_lightning", "lightning_fabric")
"""Loggers that announce devices, tips and other products at level INFO. Lightning 2.6.6."""

USELESS_WARNINGS = (
    # Lightning's copy of a function of torch's, since torch 2.12; nothing a user could do about it. Lightning 2.6.6.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # torchmetrics has the processes' values together before they are logged. Lightning 2.6.6.
    r"It is recommended to use `self.log\(.*sync_dist=True",
    # Every step's loss is recorded, however few there are. Lightning 2.6.6.
    r"The number of training batches \(\d+\) is smaller than the logging",
)


@cache
def _patch_once() -> None:
    _ChildProcessObserver._terminate_all = terminate_without_sigkill  # type: ignore[method-assign, assignment]
    LocalFileSystem.append = append_to_deleted_folder


def install() -> None:
    """Apply the changes to this process; a second call changes nothing."""
    for name in ADVERTISING:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    _patch_once()


def terminate_without_sigkill(observer: _ChildProcessObserver) -> None:
    """End this process since one that it started is dead, as Lightning's observer does, but with our exit code.

    Lightning sends itself SIGKILL, so that neither the reason nor a record of it is left. Most often the process ends
    by itself: a collective call fails, or a signal stopped all of them. If not, it waits in one. Lightning 2.6.6.
    """
    for process in observer._child_processes:
        process.kill()
    time.sleep(10)
    error = MachineError("another of the run's processes died: its own message says why. Resume with resume=FOLDER.")
    print_error(error)
    os._exit(error.exit_code)


_append = LocalFileSystem.append


def append_to_deleted_folder(
    system: LocalFileSystem, filename: bytes, content: bytes, binary_mode: bool = False
) -> None:
    """Append to an event file as TensorBoard does, but make its folder again where somebody deleted it.

    TensorBoard's thread would die of it, and the run with the thread. TensorBoard 2.21.
    """
    try:
        _append(system, filename, content, binary_mode)
    except FileNotFoundError:
        Path(os.fsdecode(filename)).parent.mkdir(parents=True, exist_ok=True)
        _append(system, filename, content, binary_mode)


def write_event(writer: SummaryWriter, event: Event) -> None:
    """Write an event of a kind that torch's writer has no method for, as a start of the session. torch 2.13."""
    writer._get_file_writer().add_event(event)


def write_summary(writer: SummaryWriter, summary: Summary) -> None:
    """Write a summary as it is, where the writer's own method would make a run beside it. torch 2.13."""
    writer._get_file_writer().add_summary(summary)


def count_epochs(trainer: Trainer) -> None:
    """Let a run that has `max_steps` resume as any other.

    With `max_steps`, Lightning takes every resumed run for one that stopped inside an epoch, so that an epoch that was
    complete is trained again, without batches or with those of another epoch. Lightning 2.6.6,
    `_FitLoop._iteration_based_training`.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Make a state that was saved at the end of an epoch one from inside the epoch, whose other batches are to come.

    Lightning counts an epoch that `max_steps` or a callback cut short as complete: a run that is resumed with more
    steps would never see its other batches. Lightning 2.6.6, the loops' `state_dict`.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for counter in (progress["total"], progress["current"]):
        counter["processed"] = counter["completed"]


def step_plateaus(trainer: Trainer) -> None:
    """Step the schedulers that look at a metric: called before an epoch's state is saved.

    Lightning steps them after it, so that a run that is resumed from that state lacks the step, and not at all in an
    epoch that was resumed inside. Lightning 2.6.6, `_FitLoop.on_advance_end`.
    """
    loop = trainer.fit_loop.epoch_loop
    update = type(loop).update_lr_schedulers
    if loop._num_ready_batches_reached():
        update(loop, "epoch", update_plateau_schedulers=True)

    def update_others(interval: str, update_plateau_schedulers: bool) -> None:
        if interval == "step" or not update_plateau_schedulers:
            update(loop, interval, update_plateau_schedulers)

    loop.update_lr_schedulers = update_others  # type: ignore[method-assign]


def logged_so_far(trainer: Trainer) -> dict[str, tuple[float, int]]:
    """Return the sum and the images behind it of each number that `self.log` is to average over the epoch.

    Lightning keeps them in no checkpoint: of an epoch that was resumed inside, it would average the rest. Lightning
    2.6.6, `_ResultCollection`.
    """
    results = trainer.fit_loop.epoch_loop._results
    return {
        name: (float(result.value), int(result.cumulated_batch_size))
        for name, result in results.items()
        if result.is_tensor and result.meta.on_epoch and result.meta.is_mean_reduction
    }


def add_logged(trainer: Trainer, before: dict[str, tuple[float, int]]) -> None:
    """Add to what `self.log` has summed up what it had when the state that was resumed from was saved."""
    results = trainer.fit_loop.epoch_loop._results
    for name in before.keys() & results.keys():
        total, images = before[name]
        results[name].value = results[name].value + total
        results[name].cumulated_batch_size = results[name].cumulated_batch_size + images


def may_stop(trainer: Trainer) -> bool:
    """Whether `min_epochs` and `min_steps` are reached. Lightning 2.6.6, `_FitLoop._can_stop_early`."""
    return trainer.fit_loop._can_stop_early


class NoProfiler(Profiler):
    """Measure nothing, at the least cost.

    Lightning asks its profiler some forty times a step, and its own that measures nothing enters a generator each
    time. Lightning 2.6.6.
    """

    _nothing = nullcontext()

    @override
    def profile(self, action_name: str) -> Any:
        return self._nothing

    @override
    def start(self, action_name: str) -> None: ...

    @override
    def stop(self, action_name: str) -> None: ...


class QuickHookNames(LightningModule):
    """A LightningModule on which Lightning notes the hook it is in at no cost.

    It sets `_current_fx_name`, a string, some forty times a step; `nn.Module` searches its parameters, buffers and
    submodules each time. Lightning 2.6.6, torch 2.13.
    """

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is str and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class WholeLoss(ClosureResult):
    """What Lightning keeps of a training step, with the loss as it is where there is nothing to divide it by.

    Lightning divides every loss by the number of batches that are accumulated, and copies it in case somebody changes
    it in place: with the gradient's division three of the forty-odd operations of a small network's step. Lightning
    2.6.6.
    """

    @override
    def _clone_loss(self) -> None:
        self.loss = None if self.closure_loss is None else self.closure_loss.detach()

    @override
    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> Self:
        if normalize != 1 or not isinstance(training_step_output, dict) or "loss" not in training_step_output:
            return super().from_training_step_output(training_step_output, normalize)  # type: ignore[return-value]
        extra = {name: value for name, value in training_step_output.items() if name != "loss"}
        return cls(training_step_output["loss"], extra=extra)


def keep_whole_loss(trainer: Trainer) -> None:
    """Let a trainer take the loss as it is: see `WholeLoss`."""
    trainer.fit_loop.epoch_loop.automatic_optimization.output_result_cls = WholeLoss
