"""Runs from Python: the same bits as from the command line, objects in place of configs, exceptions for exits."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cnnlab
from cnnlab.config import preflight
from cnnlab.data import ImageData
from cnnlab.errors import ConfigError
from tests.conftest import Train, read


@pytest.fixture
def quick(small: list[str]) -> list[str]:
    return [*small, "~callbacks.figures", "~callbacks.dashboard", "trainer.max_epochs=1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_from_python_equals_that_of_the_command_line(quick: list[str], train: Train, tmp_path: Path):
    arguments, handlers = sys.argv, logging.getLogger().handlers[:]
    run = cnnlab.train([*quick, f"hydra.run.dir='{tmp_path / 'python'}'"])
    assert sys.argv == arguments
    assert logging.getLogger().handlers == handlers
    folder = train("~callbacks.dashboard", "trainer.max_epochs=1", folder=tmp_path / "command")
    assert run.folder == tmp_path / "python"
    assert run.metrics == read(folder / "metrics.json")
    assert [row["epoch"] for row in run.history] == [0]
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(run.folder).items())
    assert run.data is not None
    assert run.classifier is not None
    again = cnnlab.train([f"resume='{run.folder}'"])
    assert again.metrics == run.metrics
    (row,) = cnnlab.runs(tmp_path / "python")
    assert row["test/accuracy"] == run.metrics["test/accuracy"]


def test_objects_take_the_place_of_what_the_config_names(quick: list[str], npz: Path, tmp_path: Path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    data = ImageData(npz, val_size=80, batch_size=32)
    loss = nn.MultiMarginLoss()
    folder = tmp_path / "run"
    run = cnnlab.train([*quick, f"hydra.run.dir='{folder}'"], network=network, loss=loss, data=data)
    assert run.data is data
    assert "network.1.1.weight" in {name.replace("body", "1") for name in weights(folder)}
    facts = read(folder / "run.json")
    assert (facts["objects"], facts["identity"]) == (["data", "loss", "network"], None)
    with pytest.raises(ConfigError, match="reuse=true"):
        cnnlab.train([*quick, "reuse=true"], network=network)
    resume = [f"resume='{folder}'", "trainer.max_epochs=2"]
    with pytest.raises(ConfigError, match=r"objects from Python \(data, loss, network\)"):
        preflight(resume)
    with pytest.raises(ConfigError, match="objects from Python"):
        cnnlab.train(resume, loss=loss)
    resumed = cnnlab.train(resume, network=network, loss=loss, data=ImageData(npz, val_size=80, batch_size=32))
    assert [row["epoch"] for row in resumed.history] == [0, 1]


@pytest.mark.parametrize("override", ["trainer.acelerator=gpu", "model.channels=[6]", "optimizer.lr=-1"])
def test_a_mistake_is_an_exception(quick: list[str], tmp_path: Path, override: str):
    with pytest.raises(ConfigError):
        cnnlab.train([*quick, f"hydra.run.dir='{tmp_path / 'run'}'", override])


def test_a_sweep_is_refused(quick: list[str]):
    with pytest.raises(ConfigError, match="command line"):
        cnnlab.train([*quick, "-m", "seed=0,1"])
