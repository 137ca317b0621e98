"""What the benchmark says adds up, and its sides are the trainings that they stand for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnlab import benchmark, plots
from cnnlab.benchmark.sides import as_written
from cnnlab.config import composed
from cnnlab.errors import ConfigError, DataError
from cnnlab.model import ConvNet
from tests.conftest import ROOT


@pytest.fixture
def config(npz: Path) -> list[str]:
    return ["data=npz", f"data.path='{npz}'", "data.val_size=0", "data.batch_size=32", "trainer.accelerator=cpu"]


def test_a_report_adds_up(config: list[str], tmp_path: Path):
    told: list[str] = []
    found = benchmark.report(config, ["plain"], rounds=2, seconds=0.2, told=told.append)
    assert found == json.loads(json.dumps(found)), "it is plain data"
    assert len(found["step_ms_rounds"]) == len(found["against"]["plain"]["ratio_rounds"]) == 2
    assert found["images_per_second"] == pytest.approx(32 / found["step_ms"] * 1000)
    assert found["flops_per_second"] == pytest.approx(found["images_per_second"] * found["flops_per_image"])
    # The article's network: 651,720 multiplications and additions forward, twice that backward but for the first
    # layer, which hands no gradient on to the images.
    first_layer = 28 * 28 * 6 * 75
    assert found["flops_per_image"] == pytest.approx(2 * (3 * 651_720 - first_layer), rel=0.01)
    assert set(found["parts_ms"]) == {
        "data", "augmentation", "forward", "backward", "optimizer", "recording", "everything else",
    }  # fmt: skip
    assert all(part >= 0 for part in found["parts_ms"].values())
    assert {"imports", "data", "build", "first step"} == set(found["start_up_seconds"])
    assert found["evaluation_images_per_second"] > 0
    assert told[0].startswith("round 1 of 2: lab")
    assert plots.to_png(plots.step_parts(found)).startswith(b"\x89PNG")


@pytest.mark.long
def test_the_sweep_recommends_what_is_faster_and_sound(config: list[str], tmp_path: Path):
    file = tmp_path / "found.json"
    ended = subprocess.run(
        [
            Path(sys.executable).with_name("cnnlab"), "benchmark", *config, "--sweep", "precision,channels_last",
            "--seconds", "0.3", "--json", file,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(file.read_text())
    verdicts = {one["overrides"][-1]: one["verdict"] for one in found["tried"]}
    assert {"trainer.precision=bf16-mixed", "model.channels_last=false"} < set(verdicts)
    assert all(line in verdicts and verdicts[line] == "faster" for line in found["best"])
    assert "Fastest: " + (" ".join(found["best"]) or "nothing") in ended.stdout


def test_what_is_wrong_is_said_before_anything_runs(config: list[str]):
    with pytest.raises(ConfigError, match="precision, channels_last, compile, batch_size"):
        benchmark.sweep(config, ["speed"])
    with pytest.raises(DataError, match="nowhere"):
        benchmark.Side("lab", ["data=npz", "data.path=nowhere.npz"])


def test_a_config_is_composed_for_a_folder(config: list[str], tmp_path: Path):
    cfg = composed([*config, "model=resnet18"], tmp_path)
    assert cfg.model.blocks == [2, 2, 2, 2]
    assert cfg.trainer.default_root_dir == cfg.logger.tensorboard.save_dir == str(tmp_path)
    assert "hydra" not in cfg
    for line, text in (("optimizer.lrr=1", "did you mean"), ("seed=1,2", "-m")):
        with pytest.raises(ConfigError, match=text):
            composed([line], tmp_path)


def test_the_plain_side_computes_the_same_with_each_relu_in_front_of_the_pooling():
    network = ConvNet(3, 10, (32, 32), channels=[6, 16], kernel_size=5, batch_norm=[False, True], hidden=[20])
    images = torch.randn(4, 3, 32, 32)
    before = network(images)
    assert as_written(network) is network
    assert [type(layer) for layer in network.features] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2
    assert torch.equal(network(images), before)
