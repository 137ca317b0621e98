"""Folds put together: each training image is answered once by a network that did not see it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cnnlab.commands.evaluate import app
from cnnlab.errors import ConfigError
from cnnlab.evaluation import evaluate
from cnnlab.folds import answer_runs, evaluate_folds, find_folds, hold_out
from cnnlab.stats import wilson
from tests.conftest import read


def test_folds_are_pooled_and_their_ensemble_stands_beside_them(folds: Path, capsys: pytest.CaptureFixture[str]):
    app([str(folds), "--json"], standalone_mode=False)
    printed = capsys.readouterr().out
    content = json.loads(printed[printed.index("{") :])  # after the log of a run of this process
    assert read(folds / "evaluation.json") == {key: value for key, value in content.items() if key != "path"}
    (group,) = content["groups"]
    records = next(iter(find_folds(folds).values()))
    accuracies = [record.metrics["val/accuracy"] for record in records]
    counts = [record.run["images"]["val"] for record in records]
    pooled = group["out_of_fold"]
    assert pooled["count"] == sum(counts) == 400
    assert pooled["metrics"]["accuracy"] == pytest.approx(np.average(accuracies, weights=counts))
    losses = [record.metrics["val/loss"] for record in records]
    assert pooled["metrics"]["loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert pooled["accuracy_interval"] == list(wilson(round(400 * pooled["metrics"]["accuracy"]), 400))
    for run, record in zip(group["runs"], records, strict=True):
        assert run["metrics"]["accuracy"] == record.metrics["test/accuracy"]
    ensemble = evaluate(",".join(str(record.folder) for record in records), figures=False)
    assert group["ensemble"]["metrics"] == pytest.approx(ensemble.content["metrics"], rel=1e-5)


def test_a_sweep_that_lacks_a_fold_is_refused(folds: Path, tmp_path: Path):
    part = tmp_path / "part"
    for run in sorted(folds.glob("*fold*"))[:2]:
        shutil.copytree(run, part / run.name)
    with pytest.raises(ConfigError, match=r"must hold each fold from 0 to 2 once, it holds 0, 1"):
        evaluate_folds(part)
    with pytest.raises(ConfigError, match=r"no completed run with data\.folds"):
        find_folds(tmp_path / "nowhere")


def test_overrides_in_another_order_are_the_same_settings(folds: Path, tmp_path: Path):
    for run in sorted(folds.glob("*fold*")):
        for name in ("first", "second"):
            shutil.copytree(run, tmp_path / name / run.name)
        overrides = tmp_path / "second" / run.name / ".hydra" / "overrides.yaml"
        lines = overrides.read_text().splitlines()
        assert len(lines) > 2
        overrides.write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(ConfigError, match="once, it holds 0, 0, 1, 1, 2, 2"):
        find_folds(tmp_path)


def test_images_that_were_not_held_out_are_refused(folds: Path):
    (part,) = answer_runs([next(folds.glob("*fold*"))], ("val",))
    assert hold_out([part]).times.max() == 1
    with pytest.raises(ConfigError, match=r"data\.folds and data\.fold"):
        hold_out([part._replace(trained=part.held_out)])
    with pytest.raises(ConfigError, match="not about the same images"):
        hold_out([part, part._replace(labels=part.labels + 1)])
