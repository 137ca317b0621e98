"""What a sweep's table says: means, whether a lead is real, what mattered, and what it leaves out."""

import itertools
import json
import random
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from cnnlab import plots
from cnnlab.files import write_json
from cnnlab.stats import welch, wilson
from cnnlab.sweep import summary, verdict
from cnnlab.sweep.table import Table, read
from tests.conftest import read as read_json

Make = Callable[..., Table]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the folder of a sweep whose trials reached what a function of their settings says; read its table."""

    def write(
        axes: Mapping[str, Iterable[Any]], reached: Callable[..., float], /, *, mode: str = "max", **record: Any
    ) -> Table:
        (tmp_path / ".sweep").mkdir()
        content = {
            "objective": {"metric": "val/accuracy", "mode": mode, "over": ["seed"]}, "command": "c", "planned": 9,
            "base": ["model=lenet"], "program": "train", "keys": list(axes), "config": {"trainer": {"max_epochs": 2}},
            "search": None, "each": 1, "trials": [], **record,
        }  # fmt: skip
        (tmp_path / ".sweep" / "record.json").write_text(json.dumps(content))
        for number, values in enumerate(itertools.product(*axes.values())):
            settings = {key: str(value) for key, value in zip(axes, values, strict=True)}
            trial = tmp_path / f"trial-{number}"
            overrides = [f"{key}={value}" for key, value in settings.items()]
            write_json(trial / "trial.json", {"number": number, "overrides": overrides, "settings": settings})
            run = {"status": "completed", "limits": {"max_epochs": 2}, "seconds": 1.0}
            write_json(trial / "run.json", run | {"images": {"val": 100 + int(settings.get("data.fold", 0))}})
            value = reached(*values)
            write_json(trial / "metrics.json", {"val/accuracy": value, "objective": value})
            (trial / "history.csv").write_text(f"epoch,val/accuracy\n0,{value}\n1,{value}\n")
        return read(tmp_path)

    return write


def noise(*values: float) -> float:
    return random.Random(str(values)).gauss(0, 0.01)


def test_means_are_taken_over_the_keys_that_the_objective_names(make: Make):
    table = make(
        {"lr": [0.1, 0.2], "width": [1, 2], "seed": [0, 1, 2]}, lambda lr, width, seed: lr + noise(lr, width, seed),
        objective={"metric": "val/accuracy", "mode": "max", "over": ["seed", "width"]},
    )  # fmt: skip
    assert [(group.settings, len(group.rows)) for group in table.groups] == [({"lr": "0.2"}, 6), ({"lr": "0.1"}, 6)]
    values = [0.2 + noise(0.2, width, seed) for width in (1, 2) for seed in range(3)]
    assert table.groups[0].mean == pytest.approx(statistics.fmean(values))
    assert table.groups[0].sd == pytest.approx(statistics.stdev(values))
    assert table.winner == "train -m model=lenet lr=0.2 width=1,2 seed=0,1,2", "all of them are repeated"


def test_a_winner_by_the_loss_has_the_smallest(make: Make):
    table = make({"lr": [3, 1, 2]}, lambda lr: lr / 4, mode="min")
    assert table.winner == "train model=lenet lr=1"


def test_folds_are_pooled_each_image_once(make: Make, tmp_path: Path):
    accuracy = {0: 0.90, 1: 0.80, 2: 0.85}
    table = make(
        {"seed": [0, 1], "data.fold": [0, 1, 2]}, lambda seed, fold: accuracy[fold], config={"data": {"folds": 3}}
    )
    (group,) = table.groups
    pool = verdict.pooled(table, group)
    count = 100 + 101 + 102
    right = 0.9 * 100 + 0.8 * 101 + 0.85 * 102
    assert pool is not None
    assert pool.images == count
    assert pool.accuracy == pytest.approx(right / count)
    assert (pool.low, pool.high) == wilson(round(right), count)
    result = summary.write(tmp_path, pictures=False)
    assert f"{pool.accuracy:.2%}" in summary.describe(result)
    assert read_json(tmp_path / "sweep.json")["groups"][0]["pooled"]["images"] == count


def test_a_set_of_folds_that_is_not_whole_is_not_pooled(make: Make):
    table = make({"data.fold": [0, 1]}, lambda fold: 0.9, config={"data": {"folds": 3}})
    assert verdict.pooled(table, table.groups[0]) is None


def test_a_lead_over_seeds_is_real_or_not(make: Make):
    table = make({"lr": [0.1, 0.11, 0.5], "seed": range(5)}, lambda lr, seed: lr + noise(lr, seed))
    sentence = verdict.lead(table)
    best, second, _ = ([row.objective for row in group.rows] for group in table.groups)
    p = min(1, 2 * welch(second, best).p)  # type: ignore[arg-type]
    assert p < 0.05
    assert sentence is not None
    assert sentence.startswith("lr=0.5 has the higher val/accuracy than lr=0.11 (Welch's t-test over 5 and 5 runs, ")
    assert f"p = {p:.2g}" in sentence


def test_a_lead_that_chance_explains_is_called_so(make: Make):
    table = make({"lr": [0.1, 0.1001], "seed": range(5)}, lambda lr, seed: lr + noise(lr, seed))
    assert (verdict.lead(table) or "").startswith("no evidence of a difference in val/accuracy")


def test_the_lead_of_a_single_run_is_left_open(make: Make):
    sentence = verdict.lead(make({"lr": [0.1, 0.2]}, lambda lr: lr)) or ""
    assert sentence.startswith("lr=0.2 leads lr=0.1 by 10.00 points: whether that is more than chance can't be told")


def test_the_setting_that_mattered_comes_first(make: Make, tmp_path: Path):
    table = make(
        {"lr": [0.001, 0.01, 0.1], "width": [8, 16, 32], "act": ["relu", "gelu"]},
        lambda lr, width, act: 0.5 + 3 * lr + noise(lr, width, act),
    )
    shares = verdict.importance(table)
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert "matters lr " in summary.describe(summary.write(tmp_path))
    assert (tmp_path / "figures" / "importance.png").exists()


def test_too_few_trials_say_nothing_of_what_mattered(make: Make):
    assert verdict.importance(make({"lr": [1, 2], "width": [1, 2]}, lambda lr, width: lr / 4)) == {}


def test_a_trial_of_another_length_is_named_and_left_out_unless_asked(make: Make, tmp_path: Path):
    make({"lr": [0.1, 0.2], "seed": [0, 1]}, lambda lr, seed: lr + noise(lr, seed))
    longer = tmp_path / "trial-0"
    write_json(longer / "run.json", {"status": "completed", "limits": {"max_epochs": 5}})
    write_json(longer / "metrics.json", {"objective": 0.99, "val/accuracy": 0.99})
    (longer / "history.csv").write_text("epoch,val/accuracy\n" + "".join(f"{epoch},0.5\n" for epoch in range(5)))
    table = read(tmp_path)
    assert [row.name for row in table.incomparable] == ["trial-0"]
    assert [(group.settings["lr"], len(group.rows)) for group in table.groups] == [("0.2", 2), ("0.1", 1)]
    assert "left out of ranking and means: trial-0 (5 epochs)" in summary.describe(summary.write(tmp_path))
    trials = read_json(tmp_path / "sweep.json")["trials"]
    assert [trial["is_comparable"] for trial in trials] == [True, True, True, False]
    counted = read(tmp_path, any_length=True)
    assert [(group.settings["lr"], len(group.rows)) for group in counted.groups] == [("0.1", 2), ("0.2", 2)]


@pytest.mark.parametrize("metric", ["val/f1", "test/f1"])
def test_the_curves_show_the_objective_or_what_validation_has_of_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
):
    make({"lr": [0.1, 0.2]}, lambda lr: lr, objective={"metric": metric, "mode": "max"})
    for trial in ("trial-0", "trial-1"):
        (tmp_path / trial / "history.csv").write_text("epoch,val/accuracy,val/f1\n0,0.9,0.25\n1,0.9,0.5\n")
    draw = Mock(wraps=plots.trial_curves)
    monkeypatch.setattr(plots, "trial_curves", draw)
    summary.write(tmp_path)
    ((curves, column, _), _) = draw.call_args
    assert column == "val/f1"
    assert curves == {"trial-0": ([1, 2], [0.25, 0.5]), "trial-1": ([1, 2], [0.25, 0.5])}


def test_lengths_that_the_sweep_varies_are_no_reason_to_leave_a_trial_out(make: Make):
    table = make({"trainer.max_epochs": [1, 2]}, lambda epochs: epochs / 4)
    assert not table.incomparable
