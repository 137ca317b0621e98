"""The same run is not run twice: what makes two runs the same, and that nothing else does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlab.identity import IRRELEVANT, identify
from cnnlab.run import versions
from tests.conftest import Train, drawn, read


@pytest.fixture
def config(npz: Path) -> dict[str, Any]:
    return {
        "seed": 0,
        "data": {"_target_": "cnnlab.data.ImageData", "path": str(npz), "batch_size": 32, "resident": "auto"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "callbacks": {"history": {"flush_every": 50}, "checkpoint": {"every_n_steps": None}},
        "logger": {"tensorboard": {"version": 1}},
        "trainer": {"max_epochs": 2, "profiler": None, "default_root_dir": "here"},
    }


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = "other"
    return config


@pytest.mark.parametrize("kind", [kind for kind in IRRELEVANT if kind != "data.path"])
def test_what_cannot_change_a_result_is_no_part_of_it(config: dict[str, Any], kind: str):
    assert identify(changed(config, kind.replace("*", "anything")), versions()) == identify(config, versions())


@pytest.mark.parametrize(
    "key", ["seed", "data.batch_size", "optimizer.lr", "optimizer._target_", "trainer.max_epochs", "model.width"]
)
def test_a_setting_that_a_result_depends_on_is_part_of_it(config: dict[str, Any], key: str):
    assert identify(changed(config, key), versions()) != identify(config, versions())


def test_the_data_counts_and_its_place_does_not(config: dict[str, Any], npz: Path, tmp_path: Path):
    copy = tmp_path / "copy.npz"
    copy.write_bytes(npz.read_bytes())
    moved = {**config, "data": {**config["data"], "path": str(copy)}}
    assert identify(moved, versions()) == identify(config, versions())
    images, labels = drawn(400, 10, seed=5)
    np.savez(copy, X_train=images, y_train=labels, X_test=images, y_test=labels)
    assert identify(moved, versions()) != identify(config, versions())


def test_a_run_that_exists_is_taken_over(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    first = train("trainer.max_epochs=1", folder=tmp_path / "outputs" / "first")
    again = train("trainer.max_epochs=1", "reuse=true", "logger=none", folder=tmp_path / "outputs" / "again")
    record = read(again / "run.json")
    assert (record["status"], record["reused"]) == ("completed", str(first))
    assert record["identity"] == read(first / "run.json")["identity"]
    for name in ("metrics.json", "history.csv", "checkpoints/best.ckpt"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    other = train("trainer.max_epochs=1", "reuse=true", "seed=1", folder=tmp_path / "outputs" / "other")
    assert "reused" not in read(other / "run.json")
