"""The other side of each patch still has the shape that the patch was written for."""

import dis
import inspect
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loops import training_epoch_loop
from pytorch_lightning.plugins.precision import precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import RunningStage
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.io import gfile
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import scalar

from cnnlab import patches
from cnnlab.errors import MachineError


def test_lightnings_observer_still_kills_by_this_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    patches.install()
    assert "self._terminate_all()" in inspect.getsource(_ChildProcessObserver)
    child = Mock()
    observer = _ChildProcessObserver(child_processes=[child], main_pid=os.getpid())
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(patches.time, "sleep", lambda seconds: None)
    observer._terminate_all()
    child.kill.assert_called_once()
    assert ended == [MachineError.exit_code]
    assert "another of the run's processes died" in capsys.readouterr().err


def test_events_are_written_though_their_folder_was_deleted(tmp_path: Path):
    patches.install()
    assert list(inspect.signature(patches._append).parameters) == ["self", "filename", "file_content", "binary_mode"]
    path = tmp_path / "gone" / "events"
    gfile.LocalFileSystem().append(os.fsencode(path), b"event", binary_mode=True)
    assert path.read_bytes() == b"event"


def test_torchs_writer_still_takes_events_and_summaries(tmp_path: Path):
    with SummaryWriter(tmp_path) as writer:
        patches.write_event(writer, Event(step=3, session_log=SessionLog(status=SessionLog.START)))
        patches.write_summary(writer, scalar("x", 1.0))
    assert any(path.stat().st_size > 0 for path in tmp_path.iterdir())


def test_lightning_still_asks_its_profiler_and_notes_hook_names_in_every_hook():
    source = inspect.getsource(call)
    assert source.count("trainer.profiler.profile(") >= 4
    assert source.count("_current_fx_name = hook_name") >= 2
    assert "profile" in vars(PassThroughProfiler.__mro__[1])
    profiler = patches.NoProfiler()
    with profiler.profile("x"):
        profiler.start("x")
        profiler.stop("x")


def is_empty(function: Callable[..., Any]) -> bool:
    codes = {instruction.opname for instruction in dis.get_instructions(function)}
    return codes <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}


@pytest.mark.parametrize("hook", patches.EMPTY_HOOKS)
def test_hooks_that_are_skipped_do_nothing_in_lightning(hook: str):
    for base in (LightningModule, Strategy, Callback):
        assert not hasattr(base, hook) or is_empty(getattr(base, hook))


def test_lightning_still_calls_hooks_by_these_names():
    patches.install()
    for module, names in {
        training_epoch_loop: ("_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook"),
        precision: ("_call_callback_hooks", "_call_lightning_module_hook"),
    }.items():
        for name in names:
            assert f"call.{name}(" in inspect.getsource(module)
            assert getattr(module.call, name).__module__ == patches.__name__
    places: dict[str, Any] = {
        "if is_param_in_hook_signature(training_step_fx": training_epoch_loop,
        "with self.precision_plugin.train_step_context():": Strategy,
        "with self.forward_context():\n            yield": precision.Precision.train_step_context,
        "return self.state.stage == RunningStage.TRAINING": Trainer,
        "if clip_val <= 0:\n            return": precision.Precision,
        "gradient_clip_val = self.trainer.gradient_clip_val or 0.0": LightningModule,
        "with isolate_rng():": Trainer,
        "self.trainer.world_size > 1:\n            self._broadcast_sigterm_tensor()": training_epoch_loop,
    }
    for text, place in places.items():
        assert text in inspect.getsource(place), text
    assert RunningStage.TRAINING == "train"
    assert RunningStage.TRAINING != RunningStage.TESTING
    assert not is_empty(LightningModule._call_batch_hook)


def test_each_hook_that_somebody_wrote_is_called_under_its_name(tmp_path: Path):
    """Of callbacks by their class, or set on one; of a module, which need not take the batch's number."""
    patches.install()
    calls: list[str] = []

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Linear(1, 1)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss = self.weight(batch[0]).sum()
            self.log("loss", loss)
            return loss

        def on_before_backward(self, loss: torch.Tensor) -> None:
            calls.append(f"module, {self._current_fx_name}")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            calls.append(f"class, {pl_module._current_fx_name}")

    callback = LambdaCallback(on_after_backward=lambda trainer, module: calls.append(f"one, {module._current_fx_name}"))
    trainer = Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1, default_root_dir=tmp_path,
        callbacks=[Watch(), callback], profiler=patches.NoProfiler(), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 1))))
    assert trainer.callback_metrics["loss"].isfinite()
    assert calls == ["module, on_before_backward", "one, on_after_backward", "class, on_train_batch_end"]


def test_the_short_way_back_gives_the_gradients_of_the_long_one():
    gradients = []
    for run in (lambda loss: loss.backward(), lambda loss: patches.run_backward(loss, torch.ones(()))):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        for _ in range(2):  # they are added up
            run(layer(torch.arange(6.0).view(2, 3)).square().mean())
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_a_hook_name_is_noted_and_modules_are_still_registered():
    module = patches.QuickModule()
    module.layer = torch.nn.Linear(1, 1)
    module._current_fx_name = "training_step"
    module._current_fx_name = "validation_step"
    assert module._current_fx_name == "validation_step"
    assert [name for name, _ in module.named_parameters()] == ["layer.weight", "layer.bias"]


def test_lightning_still_divides_and_copies_the_loss_by_these_names():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    assert "output_result_cls.from_training_step_output(" in inspect.getsource(type(loop))
    loss = torch.ones((), requires_grad=True)
    theirs = loop.output_result_cls.from_training_step_output({"loss": loss, "logits": 1})
    patches.keep_whole_loss(trainer)
    ours = loop.output_result_cls.from_training_step_output({"loss": loss, "logits": 1})
    assert ours.closure_loss is loss
    assert theirs.closure_loss is not loss
    assert ours.asdict() == theirs.asdict() == {"loss": torch.ones(()), "logits": 1}
    halved = loop.output_result_cls.from_training_step_output({"loss": loss}, 2)
    assert halved.asdict() == {"loss": torch.tensor(0.5)}
    assert loop.output_result_cls.from_training_step_output(None).asdict() == {"loss": None}


def test_lightning_still_says_what_is_silenced():
    loops = Path(inspect.getfile(Trainer)).parent.parent
    source = "".join(path.read_text() for path in loops.rglob("*.py"))
    for part in ("It is recommended to use `self.log(", "The number of training batches ("):
        assert part in source
    fabric = Path(inspect.getfile(_ChildProcessObserver)).parents[2]
    assert "LeafSpec" in "".join(path.read_text() for path in [*fabric.rglob("*.py"), *loops.rglob("*.py")])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        patches.install()
        warnings.warn("The number of training batches (3) is smaller than the logging interval", stacklevel=1)
        warnings.warn("It is recommended to use `self.log('x', ..., sync_dist=True)`", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another"]
    assert logging.getLogger("pytorch_lightning").level == logging.WARNING
