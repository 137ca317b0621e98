"""A run's folder is enough to have its network again."""

from pathlib import Path

import pytest
import torch

from cnnlab.checkpoint import read_checkpoint, write_checkpoint
from cnnlab.errors import CheckpointError, UnsafeError
from cnnlab.restore import restore
from tests.conftest import Train


def test_a_restored_network_is_the_trained_one(train: Train, npz: Path, monkeypatch: pytest.MonkeyPatch):
    folder = train("callbacks=[default,ema]", "trainer.max_epochs=1")
    monkeypatch.chdir(folder.parent.parent)
    run = restore(str(folder))
    assert not run.network.training
    assert (run.image_shape, len(run.classes), run.config["data"]["path"]) == ((32, 32, 3), 10, str(npz))
    assert run.record is not None
    saved = read_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, saved[f"network.{name}"])


def altered(path: Path, **model: object) -> str:
    """Write a copy of a checkpoint with another model config."""
    content = read_checkpoint(path)
    content["hyper_parameters"]["config"]["model"] |= model
    copy = path.with_name("altered.ckpt")
    write_checkpoint(content, copy)
    return str(copy)


def test_what_a_strangers_checkpoint_may_have_built(train: Train):
    path = train("trainer.max_epochs=1") / "checkpoints" / "best.ckpt"
    with pytest.raises(UnsafeError, match=r"model\._target_=os\.system"):
        restore(altered(path, _target_="os.system", command="touch x"))
    with pytest.raises(UnsafeError, match=r"model\.extra\._target_=builtins\.eval"):
        restore(altered(path, extra={"_target_": "builtins.eval"}))
    with pytest.raises(CheckpointError, match="another network's"):
        restore(altered(path, hidden=[7]))
