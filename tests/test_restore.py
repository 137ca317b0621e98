"""A run's folder is enough to have its network again."""

import io
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from cnnlab.checkpoint import read_checkpoint, write_checkpoint, write_sealed
from cnnlab.errors import CheckpointError, DamagedError, UnsafeError
from cnnlab.evaluation import evaluate
from cnnlab.restore import restore
from tests.conftest import Train, read


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


@pytest.fixture
def best(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint to alter."""
    return Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt"))


CALL = {"_target_": "os.system", "command": "true"}


@pytest.mark.parametrize(
    "hidden",
    [
        (CALL,), ((CALL,),), [[(CALL,)]], {"x": (CALL,)}, OrderedDict(CALL), OrderedDict(x=(OrderedDict(CALL),)),
        [{"_target_": "torch.nn.Sequential", "_args_": (CALL,)}],
        [{"_target_": "torch.nn.Linear", "_partial_": True, "in_features": CALL}],
    ],
    ids=repr,
)  # fmt: skip
def test_no_container_hides_a_call(best: Path, hidden: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.system", lambda command: pytest.fail("it was called"))
    with pytest.raises(UnsafeError, match=r"os\.system"):
        restore(altered(best, extra=hidden))


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("config", "eval", "tta"), "${oc.env:HOME}", "tta"),
        (("config", "eval", "tta"), "unknown", "tta"),
        (("config", "trainer", "precision"), "${oc.env:HOME}", "precision"),
        (("config", "model"), None, "model"),
        (("config", "model", "channels_last"), "yes", "channels_last"),
        (("config", "model", "x"), {1: 2}, "key"),
        (("config", "model", "x"), {1, 2}, "set"),
        (("config", "model", "x"), b"x", "bytes"),
        (("config", "model", "x"), 10**400, "int"),
        (("config", "model", "x"), torch.zeros(1), "Tensor"),
        (("config",), "text", "config"),
        (("classes",), [], "classes"),
        (("classes",), [1, 2], "classes"),
        (("image_shape",), [32, 32], "image_shape"),
        (("image_shape",), [32, 32, 10**9], "image_shape"),
        (("image_shape",), [-1, 32, 3], "image_shape"),
        ((), None, "hyper_parameters"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_settings_of_other_types_are_named_with_their_file_and_key(
    best: Path, keys: tuple[str, ...], value: object, named: str
):
    content = read_checkpoint(best)
    *parents, last = ("hyper_parameters", *keys)
    section = content
    for key in parents:
        section = section[key]
    section[last] = value
    write_checkpoint(content, best)
    with pytest.raises(DamagedError, match=rf"best\.ckpt.*{named}"):
        restore(str(best))


def test_settings_nested_without_end_are_refused(best: Path):
    endless: list[object] = []
    endless.append(endless)
    laughs: list[object] = ["ha"]
    for _ in range(40):
        laughs = [laughs] * 10
    for value in (endless, laughs):
        with pytest.raises(DamagedError, match="more than a run's settings do"):
            restore(altered(best, extra=value))


def test_no_memory_is_taken_for_a_network_that_the_file_does_not_hold(best: Path):
    with pytest.raises(CheckpointError, match="another network's"):
        restore(altered(best, hidden=[2**30, 2**30]))


def test_a_packed_checkpoint_is_refused_before_it_takes_memory(best: Path):
    stored, packed = zipfile.ZipFile(best), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    write_sealed(best, packed.getvalue())
    with pytest.raises(UnsafeError, match="packed"):
        restore(str(best))


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(best: Path):
    content = read_checkpoint(best)
    content["optimizer_states"] = [{"state": {0: {"exp_avg": torch.zeros(1).expand(2**40)}}}]
    write_checkpoint(content, best)
    with pytest.raises(UnsafeError, match="repeats"):
        restore(str(best))


def test_an_ensemble_answers_with_the_mean_of_its_members_probabilities(trained: Path, train: Train, tmp_path: Path):
    other = train("seed=1", folder=tmp_path / "other")
    together = restore(f"{trained},{other}")
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        members = [restore(str(folder)).network(images).softmax(1) for folder in (trained, other)]
        torch.testing.assert_close(together.network(images).softmax(1), (members[0] + members[1]) / 2)
    content = evaluate(f"{trained},{other}", figures=False).content
    assert content["members"] == [str(folder / "checkpoints" / "best.ckpt") for folder in (trained, other)]
    assert not (trained / "evaluation.json").exists() or read(trained / "evaluation.json")["members"] == []
