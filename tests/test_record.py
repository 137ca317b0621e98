"""A run's folder is found and read back as data."""

import json
import os
from pathlib import Path

import pytest

from cnnlab.config import preflight
from cnnlab.errors import CheckpointError, ConfigError, DamagedError
from cnnlab.record import Record, find_run, runs


def run_folder(folder: Path, *, objective: float | None = None, mode: str = "max", age: int = 0) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(f"objective: {{metric: val/accuracy, mode: {mode}}}\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    (folder / "run.json").write_text(json.dumps({"status": "running" if objective is None else "completed"}))
    if objective is not None:
        (folder / "metrics.json").write_text(json.dumps({"objective": objective}))
    os.utime(folder / "run.json", (1_000_000 - age, 1_000_000 - age))
    return folder


def test_last_is_the_newest_run_and_best_the_one_with_the_best_objective(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(Path("outputs/day/good"), objective=0.9, age=2)
    run_folder(Path("outputs/day/bad"), objective=0.1, age=1)
    run_folder(Path("outputs/day/other goal"), objective=2.0, mode="min", age=3)
    run_folder(Path("outputs/sweeps/day/running"))
    assert len(list(runs(Path("outputs")))) == 4
    assert find_run("last").checkpoint == Path("outputs/sweeps/day/running/checkpoints/best.ckpt")
    assert find_run("best").checkpoint == Path("outputs/day/good/checkpoints/best.ckpt")


def test_init_from_means_the_run_that_is_the_last_one_when_it_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(Path("outputs/day/good"), objective=0.9)
    assert f"init_from='{tmp_path}/outputs/day/good/checkpoints/best.ckpt'" in preflight(["init_from=last"])
    assert f"init_from='{tmp_path}/outputs/day/good/checkpoints/best.ckpt'" in preflight(
        ["-m", "init_from=best", "seed=1,2"]
    )
    with pytest.raises(ConfigError, match="nowhere"):
        preflight(["init_from=nowhere"])


def test_a_run_is_its_folder_or_its_checkpoint_file(tmp_path):
    folder = run_folder(tmp_path / "a b=c", objective=0.5)
    for named in (folder, folder / "checkpoints" / "best.ckpt"):
        checkpoint, record = find_run(str(named))
        assert checkpoint == folder / "checkpoints" / "best.ckpt"
        assert record is not None
        assert (record.objective, record.overrides, record.status) == (0.5, ["seed=1"], "completed")
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(b"")
    assert find_run(str(alone)).record is None


def test_what_is_no_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named in ("nowhere", ".", "last", "best"):
        with pytest.raises(ConfigError, match="run"):
            find_run(named)
    (run_folder(tmp_path / "run") / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet; its status is running"):
        find_run("run")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DamagedError, match=r"run\.json"):
        assert Record(tmp_path).run


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("run.json", '{"status": ["failed"]}', "status"),
        ("run.json", '{"seconds": "long"}', "seconds"),
        ("run.json", '{"seconds": NaN}', "seconds"),
        ("run.json", '{"seed": 1' + "0" * 4000 + "}", "seed"),
        ("run.json", '{"git": 5}', "git"),
        ("run.json", '{"git": {"commit": 5, "dirty": true}}', "commit"),
        ("run.json", '{"overrides": {"a": 1}}', "overrides"),
        ("metrics.json", '{"test/accuracy": "0.9"}', "test/accuracy"),
        ("metrics.json", "[1]", "JSON object"),
        ("history.csv", "epoch,lr\n1,fast\n", "lr"),
        ("history.csv", "epoch,lr\n1\n", "damaged"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file_and_key(tmp_path, name, text, key):
    (tmp_path / name).write_text(text)
    with pytest.raises(DamagedError, match=rf"{name}.*{key}|{key}.*{name}") as damage:
        getattr(Record(tmp_path), name.partition(".")[0])
    assert damage.value.exit_code == 4


def test_one_damaged_run_takes_best_away_from_nobody(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    run_folder(Path("outputs/good"), objective=0.9)
    run_folder(Path("outputs/bad"), objective=0.99)
    Path("outputs/bad/run.json").write_text("{")
    assert find_run("best").checkpoint == Path("outputs/good/checkpoints/best.ckpt")
    assert "outputs/bad/run.json" in caplog.text


def test_best_compares_runs_of_the_same_data_and_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)

    def make(name: str, objective: float, path: str, metric: str = "val/accuracy", batch_size: int = 32) -> None:
        folder = tmp_path / "outputs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
        config = f"objective: {{metric: {metric}, mode: max}}\ndata: {{path: {path}, batch_size: {batch_size}}}\n"
        (folder / ".hydra" / "config.yaml").write_text(config)
        (folder / "metrics.json").write_text(json.dumps({metric: objective, "objective": objective}))
        (folder / "run.json").write_text(json.dumps({"status": "completed"}))
        time = 1_700_000_000 + len(list((tmp_path / "outputs").iterdir()))
        os.utime(folder / "run.json", (time, time))

    make("easy", 0.99, "easy.npz")
    make("loss", 7.0, "hard.npz", metric="val/loss")
    make("first", 0.8, "hard.npz", batch_size=64)
    make("newest", 0.7, "hard.npz")
    assert find_run("best").checkpoint.parents[1].name == "first"
    assert find_run("last").checkpoint.parents[1].name == "newest"
    assert capsys.readouterr().err.splitlines() == ["best is outputs/first", "last is outputs/newest"]
