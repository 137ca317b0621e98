"""An exported file is the network, or it is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnlab import export as room
from cnnlab.errors import CnnlabError, ConfigError, DataError, MachineError
from cnnlab.export import export
from cnnlab.prediction import load_onnx, load_run
from tests.conftest import Train, read

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


@pytest.fixture(scope="module")
def images(npz: Path) -> np.ndarray:
    with np.load(npz) as arrays:
        return arrays["X_test"]


@pytest.mark.parametrize("input", ["uint8", "float"])
def test_onnx_is_asked_with_any_number_of_images(trained: Path, tmp_path: Path, images: np.ndarray, input: Any):
    exported = export(str(trained), output=tmp_path / "a b=ü.onnx", input=input)
    assert exported.difference <= 1e-5
    assert exported.images == 100
    assert set(exported.milliseconds) == {1, 256}
    expected = load_run(str(trained), "cpu").predict(images)
    predictor = load_onnx(exported.path)
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-5)
    np.testing.assert_allclose(predictor.predict(images[:7]), expected[:7], atol=1e-5)


@pytest.mark.parametrize("input", ["uint8", "float"])
def test_a_program_runs_without_cnnlab(trained: Path, tmp_path: Path, images: np.ndarray, input: Any):
    exported = export(str(trained), format="torch_export", output=tmp_path / "model.pt2", input=input)
    extra = {"metadata.json": ""}
    program = torch.export.load(exported.path, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["cnnlab.classes"]) == [str(number) for number in range(10)]
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    logits, probabilities = program(batch if input == "uint8" else batch / 255)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    np.testing.assert_allclose(probabilities.detach().numpy(), load_run(str(trained), "cpu").predict(images), atol=1e-5)


def test_safetensors_hold_the_weights_and_what_builds_their_network(trained: Path, tmp_path: Path):
    from safetensors import safe_open

    exported = export(str(trained), format="safetensors")
    assert exported.path == trained / "model.safetensors"
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    with safe_open(exported.path, "pt") as file:
        assert json.loads(file.metadata()["cnnlab.model"])["_target_"] == "cnnlab.model.ConvNet"
        names = set(file.keys())
        assert names == {name.removeprefix("network.") for name in saved if name.startswith("network.")}
        assert all(torch.equal(file.get_tensor(name), saved[f"network.{name}"]) for name in names)
        assert json.loads(file.metadata()["cnnlab.metrics"])["test/loss"] == read(trained / "metrics.json")["test/loss"]
    other = export(str(trained / "checkpoints" / "last.ckpt"), format="safetensors", output=tmp_path / "last")
    with safe_open(other.path, "pt") as file:
        assert file.metadata()["cnnlab.metrics"] == "{}", "those of the best state are none of the last one's"


def test_networks_with_batch_norm_are_exported(train: Train):
    folder = train("model=resnet20", "model.blocks=[1,1]", "model.channels=[4,8]", "trainer.max_steps=2")
    assert export(str(folder)).difference <= 1e-5


def test_a_file_that_answers_otherwise_is_not_kept(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(*args: Any) -> Any:
        answer = room._write_torch_export(*args)
        return lambda images: answer(images) + 1e-3

    monkeypatch.setitem(room.WRITERS, "torch_export", wrong)
    (tmp_path / "model.pt2").write_bytes(b"before")
    with pytest.raises(CnnlabError, match=r"differ .* by up to 0\.001"):
        export(str(trained), format="torch_export", output=tmp_path / "model.pt2", overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_what_stands_in_the_way_is_said_before_anything_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "model.onnx").write_bytes(b"before")
    with pytest.raises(ConfigError, match="--overwrite"):
        export(str(trained), output=tmp_path / "model.onnx")
    with pytest.raises(DataError, match="does not exist"):
        export(str(trained), data=tmp_path / "nowhere.npz")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MachineError, match=r"cnnlab\[export\]"):
        export(str(trained))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
