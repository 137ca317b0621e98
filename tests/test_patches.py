"""The other side of each patch still has the shape that the patch was written for."""

import inspect
import logging
import os
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Trainer
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.trainer import call
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


def test_a_hook_name_is_noted_and_modules_are_still_registered():
    module = patches.QuickHookNames()
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
