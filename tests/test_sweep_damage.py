"""Damage in a sweep's folder costs at most the trial that it is in."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnlab.errors import ConfigError
from cnnlab.files import write_json
from cnnlab.study import open_study
from cnnlab.sweep import pictures, summary
from cnnlab.sweep.table import read
from tests.conftest import read as read_json

RECORD = {
    "objective": {"metric": "val/accuracy", "mode": "max"}, "command": "c", "planned": 3, "base": ["model=lenet"],
    "program": "p", "keys": ["lr"], "config": {"trainer": {"max_epochs": 1}}, "search": None, "each": 1, "trials": [],
}  # fmt: skip
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three trials, as its files have it."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    (folder / ".sweep").mkdir(parents=True)
    (folder / ".sweep" / "record.json").write_text(json.dumps(RECORD))
    for number in range(3):
        trial = folder / f"lr-{number}"
        write_json(
            trial / "trial.json",
            {"number": number, "overrides": [f"lr={number}"], "settings": {"lr": str(number)}, "starts": 0},
        )
        limits = {"max_epochs": 1}
        write_json(
            trial / "run.json",
            {"status": "completed", "seconds": 1.0, "started": "2026-01-01T00:00:00+00:00", "limits": limits},
        )
        write_json(trial / "metrics.json", {"val/accuracy": number / 4, "objective": number / 4})
        (trial / "history.csv").write_text(f"epoch,val/accuracy,images_per_second\n0,{number / 4},100\n")
    return folder


def damaged(whole: Path, folder: Path, file: str, key: str | None, value: Any) -> Path:
    """Return a copy of a sweep with one key of a file replaced, or the whole file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / file
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        content = json.loads(path.read_text()) if path.suffix == ".json" else {}
        path.write_text(json.dumps(content | {key: value} if key else value))
    return folder


files = st.sampled_from(["trial.json", "run.json", "metrics.json", "history.csv"])
keys = st.sampled_from([
    None, "number", "overrides", "settings", "starts", "limits", "pruned", "status", "seconds", "started", "error",
    "objective", "val/accuracy",
])  # fmt: skip


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=files, key=keys, value=odd | st.binary(max_size=20))
def test_an_odd_trial_costs_its_own_row_only(whole, tmp_path, monkeypatch, file, key, value):
    monkeypatch.setattr(pictures, "draw", lambda *_: None)
    before = {row.name: row for row in read(whole).rows}
    folder = damaged(whole, tmp_path / "odd", f"lr-1/{file}", key, value)
    after = {row.name: row for row in summary.write(folder).table.rows}
    assert set(after) == set(before)
    assert {name: row for name, row in after.items() if name != "lr-1"} == {
        name: row for name, row in before.items() if name != "lr-1"
    }
    assert after["lr-1"].status in {"completed", "pruned", "failed", "interrupted", "running", "not started"}
    assert "sweep.md" in summary.describe(summary.write(folder, pictures=False))


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from([None, *RECORD]), value=odd | st.binary(max_size=20))
def test_an_odd_record_is_read_or_refused(whole, tmp_path, monkeypatch, key, value):
    monkeypatch.setattr(pictures, "draw", lambda *_: None)
    folder = damaged(whole, tmp_path / "odd", ".sweep/record.json", key, value)
    with contextlib.suppress(ConfigError):
        assert summary.describe(summary.write(folder))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("trial.json", "settings", []), ("trial.json", "overrides", {"a": 1}), ("trial.json", "number", "one"),
        ("run.json", "status", ["completed"]), ("run.json", "seconds", "long"), ("run.json", "started", 2026),
        ("run.json", "seconds", 10**400), ("metrics.json", "objective", "0.9"), ("metrics.json", None, []),
        ("history.csv", None, b"epoch,val/accuracy\nx,y\n"),
    ],
)  # fmt: skip
def test_a_trial_of_another_shape_is_shown_beside_the_others_with_pictures(whole, tmp_path, file, key, value):
    table = summary.write(damaged(whole, tmp_path / "odd", f"lr-1/{file}", key, value)).table
    assert [row.name for row in table.rows if row.status == "completed" and row.name != "lr-1"] == ["lr-2", "lr-0"]
    row = next(row for row in table.rows if row.name == "lr-1")
    if file == "history.csv":
        assert row.status == "completed"
    else:
        assert row.status == "failed"
        assert str(tmp_path / "odd" / "lr-1" / file) in (row.error or "")
        assert "resume the sweep" in (row.error or "")
    assert (tmp_path / "odd" / "figures" / "objective_by_value.png").exists()


def test_cells_of_the_csv_file_are_no_formulas(whole, tmp_path):
    formula = '=HYPERLINK("http://x","y")'
    folder = damaged(whole, tmp_path / "odd", "lr-1/trial.json", "settings", {formula: formula, "lr": "-1"})
    summary.write(folder)
    content = (folder / "sweep.csv").read_text()
    assert "'=HYPERLINK" in content
    assert ',"=' not in content
    assert "-1," in content
    assert "'-1" not in content, "a number stays a number"


@pytest.mark.parametrize(
    "file", ["trial.json", *(pytest.param(name, marks=pytest.mark.slow) for name in ("run.json", "metrics.json"))]
)
def test_a_trial_whose_file_was_emptied_is_run_again_and_no_other(sweep, file: str):
    folder = sweep("seed=0,1", "trainer.limit_train_batches=1")
    before = read_json(folder / "sweep.json")
    untouched = (folder / "seed-0" / "run.json").stat().st_mtime_ns
    (folder / "seed-1" / file).write_text("")
    assert [row.name for row in read(folder).failed] == ["seed-1"]
    sweep("seed=0,1", "trainer.limit_train_batches=1", "resume=sweep")
    after = read_json(folder / "sweep.json")
    assert after["counts"] == {"completed": 2}
    assert [row["metrics"] for row in after["trials"]] == [row["metrics"] for row in before["trials"]]
    assert (folder / "seed-0" / "run.json").stat().st_mtime_ns == untouched


def test_a_journal_whose_last_line_was_cut_stays_usable(tmp_path: Path):
    path = tmp_path / "study.journal"
    study = open_study(path, direction="maximize")
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("lr", 0, 1)
        trial.set_user_attr("overrides", ["lr=1"])
        study.tell(trial, number)
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for end in range(last, len(content)):
        path.write_bytes(content[:end])
        cut = open_study(path, direction="maximize")
        assert len(cut.trials) == 3
        assert cut.trials[-1].state == optuna.trial.TrialState.RUNNING, "the line that was cut said that it ended"
        cut.tell(2, 5.0)
        assert [trial.value for trial in open_study(path).trials] == [0, 1, 5]


def test_a_journal_that_is_damaged_otherwise_is_refused_with_a_way_out(tmp_path: Path):
    path = tmp_path / "study.journal"
    open_study(path, direction="maximize").ask()
    path.write_bytes(path.read_bytes().replace(b"op_code", b"\x00p_code"))
    with pytest.raises(ConfigError, match="begin a new search"):
        open_study(path, direction="maximize")
