"""The same run is not run twice: what makes two runs the same, and that nothing else does."""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from cnnlab.commands.runs import app as runs_app
from cnnlab.config import composed
from cnnlab.errors import ConfigError
from cnnlab.files import flatten
from cnnlab.identity import IRRELEVANT, identify
from cnnlab.ledger import list_runs, same_as
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


# Each as it is typed; together they touch every kind of setting that is no part of an identity.
INERT = (
    "reuse=true", "debug=true", "trusted=[mine]", "tags=[one]", "note=text", "objective.over=[]",
    "data.path=elsewhere.npz", "data.resident=host", "logger=csv", "logger=none", "logger=[tensorboard,csv]",
    "logger.tensorboard.version=2", "search=random", "callbacks.progress=null", "callbacks.figures=null",
    "callbacks.dashboard=null", "callbacks.history=null",
    "callbacks.checkpoint.every_n_steps=7", "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=true", "trainer.log_every_n_steps=3", "trainer.profiler=simple",
    "trainer.detect_anomaly=true", "trainer.enable_autolog_hparams=true", "trainer.model_registry=mine",
)  # fmt: skip


def composed_identity(*overrides: str) -> tuple[str, dict[str, Any]]:
    config: Any = OmegaConf.to_container(composed(overrides, Path("run")), resolve=True)
    return identify(config, {}), config


@pytest.mark.parametrize("override", INERT)
def test_an_override_that_cannot_change_a_result_leaves_the_identity_as_it_is(override: str):
    assert composed_identity(override)[0] == composed_identity()[0]


def test_every_setting_of_the_default_config_is_either_inert_or_part_of_the_identity():
    identity, config = composed_identity()
    plain = dict(flatten(config))
    # Of train.py; a section where it is chosen; the run's folder.
    touched = {"resume", "search", "trainer.default_root_dir"}
    for override in INERT:
        settings = dict(flatten(composed_identity(override)[1]))
        touched |= {key for key in {*plain, *settings} if plain.get(key, ...) != settings.get(key, ...)}
    for kind in IRRELEVANT:
        assert any(fnmatchcase(key, kind) for key in touched), kind
    for key in plain:
        alike = any(fnmatchcase(key, kind) for kind in IRRELEVANT)
        assert (identify(changed(config, key), {}) == identity) == alike, key


def test_settings_that_are_no_part_of_the_identity_leave_the_result_as_it_is(train: Train, tmp_path: Path):
    elsewhere = (
        "reuse",
        "data.path",
        "search",
        "trainer.model_registry",
        "trainer.default_root",
        "logger",
        "callbacks.figures",
    )
    quiet = [line for line in INERT if not line.startswith(elsewhere)]
    plain = train("trainer.max_epochs=1", folder=tmp_path / "plain")
    other = train("trainer.max_epochs=1", "logger=csv", *quiet, folder=tmp_path / "other")
    assert read(plain / "run.json")["identity"] == read(other / "run.json")["identity"]
    assert read(plain / "metrics.json") == read(other / "metrics.json")


def test_the_content_of_a_file_that_a_setting_names_counts(config: dict[str, Any], tmp_path: Path):
    table = tmp_path / "suspects.csv"
    table.write_text("index\n1\n")
    config["data"]["exclude"] = str(table)
    before = identify(config, versions())
    table.write_text("index\n2\n")
    assert identify(config, versions()) != before


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


def test_a_run_that_exists_is_taken_over(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    first = train("trainer.max_epochs=1", folder=tmp_path / "outputs" / "first")
    again = train("trainer.max_epochs=1", "reuse=true", "logger=none", folder=tmp_path / "outputs" / "again")
    record = read(again / "run.json")
    assert (record["status"], record["reused"]) == ("completed", str(first))
    assert record["identity"] == read(first / "run.json")["identity"]
    for name in ("metrics.json", "history.csv", "checkpoints/best.ckpt"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    listed = same_as(list_runs(tmp_path / "outputs"), str(first))
    assert {row["run"] for row in listed} == {"first", "again"}
    shutil.rmtree(first)
    third = train("trainer.max_epochs=1", "reuse=true", folder=tmp_path / "outputs" / "third")
    assert read(third / "run.json")["reused"] == str(again)
    other = train("trainer.max_epochs=1", "reuse=true", "seed=1", folder=tmp_path / "outputs" / "other")
    assert "reused" not in read(other / "run.json")
    runs_app([str(tmp_path / "outputs"), "--same-as", str(other), "--csv"], standalone_mode=False)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["run", "other"]
    facts = read(other / "run.json")
    (other / "run.json").write_text(json.dumps(facts | {"identity": None}))
    with pytest.raises(ConfigError, match="--same-as"):
        same_as([], str(other))
