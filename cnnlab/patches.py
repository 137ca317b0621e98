"""What cnnlab changes in Lightning, TensorBoard and PyTorch, where they offer no door; nothing by an import alone.

`install` applies the changes that are global to a process. Each entry says why it is there and in which version of the
other side it was read; `tests/test_patches.py` holds that the other side still has that shape.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loops import training_epoch_loop
from pytorch_lightning.loops.optimization.automatic import ClosureResult
from pytorch_lightning.plugins.precision import precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer import trainer as lightning_trainer
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.enums import LightningEnum
from pytorch_lightning.utilities.seed import isolate_rng
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from torch import Tensor
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
    # It says that it takes bfloat16; machine.check_precision refuses float16 on a CPU. Lightning 2.6.6.
    r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)` but AMP",
)

EMPTY_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
)  # fmt: skip
"""Hooks around a step that a LightningModule and a strategy have, and in which they do nothing. Lightning 2.6.6."""
CLIPPING = "configure_gradient_clipping"
"""A hook in which a LightningModule does nothing where the Trainer has no `gradient_clip_val`."""


@cache
def _patch_once() -> None:
    _ChildProcessObserver._terminate_all = terminate_without_sigkill  # type: ignore[method-assign, assignment]
    LocalFileSystem.append = append_to_deleted_folder
    lightning_trainer.isolate_rng = isolate_rng_of_what_is_awake  # type: ignore[assignment]
    skip_empty_hooks()


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


def isolate_rng_of_what_is_awake() -> AbstractContextManager[None]:
    """Keep random numbers over a sanity check as Lightning does, CUDA's only where it is in use.

    Lightning would wake CUDA for a training on the CPU. Lightning 2.6.6, `Trainer._run_stage`.
    """
    return isolate_rng(include_cuda=torch.cuda.is_initialized())


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


def leave_signals_to_us(trainer: Trainer) -> None:
    """Keep the processes of a run from asking each other in every step for a SIGTERM, and waiting for the device.

    It comes to our handler, not to Lightning's, and `StopOnSignal` asks now and then. Lightning 2.6.6,
    `_TrainingEpochLoop.advance`.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


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
    """Return what `self.log` has of each number for the whole epoch, and the images behind a mean's sum.

    Lightning keeps them in no checkpoint: of an epoch that was resumed inside, it would say what the rest gave.
    Lightning 2.6.6, `_ResultCollection`.
    """
    results = trainer.fit_loop.epoch_loop._results
    return {
        name: (float(result.value), int(getattr(result, "cumulated_batch_size", 0)))
        for name, result in results.items()
        if result.is_tensor and result.meta.on_epoch
    }


def add_logged(trainer: Trainer, before: dict[str, tuple[float, int]]) -> None:
    """Give `self.log` for the whole epoch what it had when the state that was resumed from was saved."""
    results = trainer.fit_loop.epoch_loop._results
    for name in before.keys() & results.keys():
        result, (value, images) = results[name], before[name]
        if result.meta.is_mean_reduction or result.meta.is_sum_reduction:
            result.value = result.value + value
        else:
            result.value = result.meta.reduce_fx(result.value, torch.full_like(result.value, value))
        if result.meta.is_mean_reduction:
            result.cumulated_batch_size = result.cumulated_batch_size + images


def just_logged(trainer: Trainer, loop: Any) -> dict[str, float]:
    """Return what has been logged in this epoch of training, or in this validation.

    `trainer.callback_metrics` keeps what was logged in earlier ones beside it. Lightning 2.6.6, `_ResultCollection`.

    Args:
        trainer: The trainer.
        loop: `trainer.fit_loop.epoch_loop`, or its `val_loop`.
    """
    results, logged = loop._results, trainer.callback_metrics
    fresh = [result for result in results.values() if not result.has_reset]
    names = [name for result in fresh for on_step in (False, True) for name in results._forked_name(result, on_step)]
    return {name: float(logged[name]) for name in names if name in logged}


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


@cache
def _differs(kind: type, base: type, hook: str) -> bool:
    return getattr(kind, hook, None) is not getattr(base, hook, None)


def has_hook(instance: Any, base: type, hook: str) -> bool:
    """Whether an object, or its class, has a hook of its own in place of its base's."""
    return hook in vars(instance) or _differs(type(instance), base, hook)  # type: ignore[arg-type]


def skip_empty_hooks() -> None:
    """Have Lightning call only the hooks of a step that somebody wrote.

    It calls some sixty of them a step, of each callback, the module and the strategy, most of them empty, and enters a
    context and writes a name around each: a fifth of a small network's step. Lightning 2.6.6, `trainer/call.py`.
    """
    call._call_callback_hooks = call_written_hooks
    # Only where the training step does not pass: no frame of ours is to stand between train.py and that.
    calls = SimpleNamespace(**vars(call))
    calls._call_lightning_module_hook = unless_empty(
        call._call_lightning_module_hook, LightningModule, "lightning_module"
    )
    calls._call_strategy_hook = unless_empty(call._call_strategy_hook, Strategy, "strategy")
    training_epoch_loop.call = precision.call = calls  # type: ignore[assignment]
    # It asks a dozen times a step what is going on, and compares the words in lower case.
    RunningStage.__eq__ = lambda stage, other: stage is other or LightningEnum.__eq__(stage, other)  # type: ignore[method-assign]
    # It also reads the training step's signature from source in each step.
    signature = cache(training_epoch_loop.is_param_in_hook_signature)
    training_epoch_loop.is_param_in_hook_signature = lambda hook, *args, **kwargs: signature(
        getattr(hook, "__func__", hook), *args, **kwargs
    )


_call_callback_hooks = call._call_callback_hooks


def call_written_hooks(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> None:
    """Call a hook of the callbacks that have it; see `skip_empty_hooks`."""
    if "monitoring_callbacks" in kwargs or not isinstance(trainer.profiler, NoProfiler):
        _call_callback_hooks(trainer, hook_name, *args, **kwargs)
        return
    everyone, hooked = vars(trainer).get("_hooked", (None, {}))
    if everyone != trainer.callbacks:
        everyone, hooked = trainer._hooked = list(trainer.callbacks), {}
    if hook_name not in hooked:
        hooked[hook_name] = [each for each in everyone if has_hook(each, Callback, hook_name)]
    callbacks = hooked[hook_name]
    if not callbacks:
        return
    module = trainer.lightning_module
    if module:
        before, module._current_fx_name = module._current_fx_name, hook_name
    for callback in callbacks:
        getattr(callback, hook_name)(trainer, module, *args, **kwargs)
    if module:
        module._current_fx_name = before


def unless_empty(function: Callable[..., Any], base: type, owner: str) -> Callable[..., Any]:
    """Return what calls a hook of the trainer's module or strategy as `function` does, unless the hook is empty."""

    def call_hook(trainer: Trainer, hook_name: str, *args: Any, **kwargs: Any) -> Any:
        is_empty = hook_name in EMPTY_HOOKS or (hook_name == CLIPPING and trainer.gradient_clip_val is None)
        if is_empty and not has_hook(getattr(trainer, owner), base, hook_name):
            return None
        return function(trainer, hook_name, *args, **kwargs)

    return call_hook


class QuickModule(LightningModule):
    """A LightningModule around whose steps Lightning does less that leads to nothing. Lightning 2.6.6, torch 2.13."""

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        # Set some twenty times a step; `nn.Module` would search its parameters, buffers and submodules each time.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @override
    def _call_batch_hook(self, hook_name: str, *args: Any) -> Any:
        # Lightning asks for each of three hooks whether the module, the data, or both have it.
        trainer: Any = self._trainer
        data = trainer and trainer.datamodule
        if data is None or not isinstance(trainer.profiler, NoProfiler):
            return super()._call_batch_hook(hook_name, *args)
        if has_hook(data, LightningDataModule, hook_name):
            return getattr(data, hook_name)(*args)
        if hook_name == "on_before_batch_transfer" and not has_hook(self, LightningModule, hook_name):
            return args[0]
        return super()._call_batch_hook(hook_name, *args)


def run_backward(loss: Tensor, gradient: Tensor) -> None:
    """Do what `loss.backward(gradient)` does, without comparing their shapes as symbols. torch 2.13."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


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
    plugin = trainer.precision_plugin
    if type(plugin).train_step_context is precision.Precision.train_step_context:  # a generator around the other
        plugin.train_step_context = plugin.forward_context  # type: ignore[method-assign, assignment]
