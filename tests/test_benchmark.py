"""What the benchmark says adds up, and its sides are the trainings that they stand for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnnlab import benchmark, plots
from cnnlab.benchmark.sides import LabSide, separate_relu
from cnnlab.config import composed, project
from cnnlab.errors import ConfigError, DataError
from cnnlab.model import ConvNet
from tests.conftest import ROOT, drawn


@pytest.fixture
def config(npz: Path) -> list[str]:
    return [
        "data=npz",
        f"data.path='{npz}'",
        "data.val_size=0",
        "objective.metric=train/loss",
        "data.batch_size=32",
        "trainer.accelerator=cpu",
    ]


@pytest.mark.slow
def test_a_report_adds_up(config: list[str], tmp_path: Path):
    lines: list[str] = []
    content = benchmark.measure(config, ["plain"], rounds=2, seconds=0.2, progress=lines.append)
    assert content == json.loads(json.dumps(content)), "it is plain data"
    assert len(content["step_ms_rounds"]) == len(content["against"]["plain"]["ratio_rounds"]) == 2
    assert content["images_per_second"] == pytest.approx(400 / 13 / content["step_ms"] * 1000), "of 13 batches"
    assert content["flops_per_second"] == pytest.approx(content["images_per_second"] * content["flops_per_image"])
    # The article's network: 651,720 multiplications and additions forward, twice that backward but for the first
    # layer, which hands no gradient on to the images.
    first_layer = 28 * 28 * 6 * 75
    assert content["flops_per_image"] == pytest.approx(2 * (3 * 651_720 - first_layer), rel=0.01)
    assert set(content["parts_ms"]) == {
        "data", "augmentation", "forward", "backward", "optimizer", "recording", "everything else",
    }  # fmt: skip
    assert all(part >= 0 for part in content["parts_ms"].values())
    assert {"imports", "data", "build", "first step"} == set(content["start_up_seconds"])
    assert content["evaluation_images_per_second"] > 0
    assert lines[0].startswith("round 1 of 2: lab")
    assert plots.to_png(plots.step_parts(content)).startswith(b"\x89PNG")


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
    content = json.loads(file.read_text())
    verdicts = {attempt["overrides"][-1]: attempt["verdict"] for attempt in content["tried"]}
    assert {"trainer.precision=bf16-mixed", "model.channels_last=false"} < set(verdicts)
    assert all(line in verdicts and verdicts[line] == "faster" for line in content["best"])
    assert "Fastest: " + (" ".join(content["best"]) or "nothing") in ended.stdout


def test_data_without_a_test_are_evaluated_by_their_training_images(tmp_path: Path):
    images, labels = drawn(200, 10, seed=0)
    np.savez(tmp_path / "untested.npz", X_train=images, y_train=labels)
    lines = ["data=npz", f"data.path='{tmp_path}/untested.npz'", "data.test_size=0", "trainer.accelerator=cpu"]
    side = LabSide([*lines, "data.batch_size=1000"], tmp_path, time.perf_counter())
    assert side.facts()["images_per_step"] == 180, "a batch is all of them, however large it may be"
    speeds = side.inference(0.01)
    assert speeds["evaluation_images_per_second"] > 0
    assert set(speeds["prediction_ms"]) == {"1", "180"}  # all that are left of 200 beside a tenth for validation


def test_each_switch_is_judged_against_the_baseline_of_its_own_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The machine slows down to half between one attempt and the next: no fast setting may look slow for that."""
    from cnnlab.benchmark import measurement

    step_seconds = {"trainer.precision=bf16-mixed": 0.5, "trainer.precision=bf16-true": 1.0}
    rounds = iter(range(1000))

    class Drifting:
        def __init__(self, kind: str, overrides: list[str]) -> None:
            self.kind, self.overrides = kind, overrides
            self.blocks: list[float] = []
            self.facts = {"images_per_step": 100, "switches": ["trainer.precision=32-true"]}

        def call(self, method: str, *arguments: object) -> object:
            if method == "losses":
                return 1.0, 1.0
            drift = 1 + next(rounds) // 8  # attempts take eight calls
            seconds = step_seconds.get(self.overrides[-1], 1.0) if self.overrides else 1.0
            return seconds * drift

        def close(self) -> None: ...

    monkeypatch.setattr(measurement, "Side", Drifting)
    attempts, best = benchmark.try_switches([], ["precision"])
    ratios = {attempt.overrides[-1]: attempt.ratio for attempt in attempts}
    assert ratios["trainer.precision=bf16-mixed"] == pytest.approx(2)
    assert ratios["trainer.precision=bf16-true"] == pytest.approx(1)
    assert best == ["trainer.precision=bf16-mixed"]
    assert attempts[1].baseline_images_per_second == pytest.approx(50), "measured in its own rounds"
    from cnnlab.commands.benchmark import _print_sweep

    capsys.readouterr()
    _print_sweep({"tried": [vars(attempt) for attempt in attempts]})
    _, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == ["the", "config", "as", "it", "is", "100", "1.00", "baseline"]
    assert second.split() == ["trainer.precision=bf16-mixed", "200", "100", "2.00", "faster"]


def test_what_is_wrong_is_said_before_anything_runs(config: list[str]):
    with pytest.raises(ConfigError, match="precision, channels_last, compile, batch_size"):
        benchmark.try_switches(config, ["speed"])


def test_a_side_composes_with_the_users_own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [npz]\npath: nowhere.npz\n")
    monkeypatch.setattr(project._Flags, "config_dir", tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        benchmark.Side("lab", ["data=mine"])


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
    assert separate_relu(network) is network
    assert [type(layer) for layer in network.features] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2
    assert torch.equal(network(images), before)
