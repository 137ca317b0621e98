"""The table of runs: found fast, filtered and sorted by whatever a run has."""

import csv
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlab.cli import app
from cnnlab.errors import ConfigError
from cnnlab.ledger import list_runs
from tests.conftest import ROOT, Train

CONFIG = "model: {_target_: x, width: [1, 2]}\noptimizer: {lr: %s}\nseed: 0\ndebug: false\n"


def run_folder(folder: Path, number: int, model: str = "lenet", lr: float = 0.1, accuracy: float | None = None) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(CONFIG % lr)
    record = {
        "status": "running" if accuracy is None else "completed", "started": f"2026-01-{number % 28 + 1:02}T10:00:00",
        "seconds": 1.5 * number, "seed": number,
        "choices": {"model": model, "augment": ["flip_crop", "cutout"] if number % 2 else [], "experiment": None},
        "overrides": [f"model={model}"],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if accuracy is not None:
        (folder / "metrics.json").write_text(json.dumps({"val/accuracy": accuracy, "objective": accuracy}))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> Path:
    run_folder(tmp_path / "a", 0, "lenet", 0.1, 0.5)
    run_folder(tmp_path / "sweep" / "0", 1, "resnet18", 0.01, 0.9)
    run_folder(tmp_path / "sweep" / "1", 2, "resnet18", 1e-4)
    return tmp_path


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], ["sweep/1", "sweep/0", "a"]),
        (["model=resnet18"], ["sweep/1", "sweep/0"]),
        (["model!=resnet18"], ["a"]),
        (["model=resnet18", "val/accuracy>0.8"], ["sweep/0"]),
        (["val/accuracy<=0.5"], ["a"]),
        (["val/accuracy=null"], ["sweep/1"]),
        (["optimizer.lr=1e-1"], ["a"]),
        (["optimizer.lr<0.05"], ["sweep/1", "sweep/0"]),
        (["augment=cutout"], ["sweep/0"]),
        (["augment=none"], ["sweep/1", "a"]),
        (["debug=false", "seed>=1", "status=completed"], ["sweep/0"]),
    ],
)
def test_conditions_choose_runs(three: Path, where: list[str], expected: list[str]):
    assert [row["run"] for row in list_runs(three, where)] == expected


def test_runs_are_sorted_and_those_without_the_key_come_last(three: Path):
    assert [row["run"] for row in list_runs(three, sort="val/accuracy")] == ["sweep/0", "a", "sweep/1"]
    assert [row["run"] for row in list_runs(three, sort="val/accuracy", ascending=True)] == ["a", "sweep/0", "sweep/1"]
    assert [row["run"] for row in list_runs(three, sort="optimizer.lr")] == ["a", "sweep/0", "sweep/1"]


def test_mistakes_are_answered(three: Path):
    with pytest.raises(ConfigError, match="did you mean val/accuracy"):
        list_runs(three, ["val/acuracy>0.5"])
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        list_runs(three, ["resnet18"])
    with pytest.raises(ConfigError, match="there is no"):
        list_runs(three / "nowhere")


@pytest.mark.parametrize("damage", ["{", "[]", '{"choices": 5, "overrides": 7}', '{"choices": [1]}'])
def test_a_damaged_run_hides_none(three: Path, damage: str):
    (three / "a" / "run.json").write_text(damage)
    assert {row["run"] for row in list_runs(three)} == {"a", "sweep/0", "sweep/1"}


def test_a_real_run_is_in_the_table(train: Train, tmp_path: Path):
    train("model=resnet20", "model.blocks=[1]", "model.channels=[4]", "trainer.max_steps=1", "augment=[flip_crop]")
    (row,) = list_runs(tmp_path, ["model=resnet20", "augment=flip_crop", "optimizer=sgd", "status=completed"])
    assert "model.blocks=[1]" in row["changes"]
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    del written["choices"], written["overrides"]  # as an earlier version wrote it
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    (row,) = list_runs(tmp_path, ["model=resnet20", "optimizer=sgd"])
    assert "model.blocks=[1]" in row["changes"]


def test_tags_and_a_note_find_a_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = train("trainer.max_steps=1", "tags=[baseline,paper]", "note='first, of many'")
    record = json.loads((folder / "run.json").read_text())
    assert (record["tags"], record["note"]) == (["baseline", "paper"], "first, of many")
    for where in (["tags=paper"], ["tags=baseline", "note=first, of many"]):
        assert [row["run"] for row in list_runs(tmp_path, where)] == ["run"]
    assert not list_runs(tmp_path, ["tags=pap"])
    with pytest.raises(SystemExit):
        app(["runs", str(tmp_path), "--wide"], prog_name="cnnlab")
    assert "baseline,paper" in capsys.readouterr().out


def test_a_row_is_opened_by_its_number(
    three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("typer.launch", opened.append)

    def call(number: int) -> tuple[object, str]:
        with pytest.raises(SystemExit) as end:
            app(["runs", str(three), "--open", str(number)], prog_name="cnnlab")
        return end.value.code, capsys.readouterr().err

    assert call(9)[0] == 2
    code, err = call(1)
    assert code == 2
    assert f"cnnlab report {three / 'sweep' / '1'}" in err
    (three / "sweep" / "1" / "report.html").write_text("a page")
    assert call(1)[0] in (0, None)
    assert opened == [str(three / "sweep" / "1" / "report.html")]


def test_the_command_prints_a_table_json_and_csv(three: Path, capsys: pytest.CaptureFixture[str]):
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            app(["runs", str(three), *arguments], prog_name="cnnlab")
        assert not end.value.code
        return capsys.readouterr().out

    assert "sweep/0" in printed()
    told = json.loads(printed("--json", "--sort", "optimizer.lr"))
    assert [(row["run"], row["optimizer.lr"]) for row in told] == [("a", 0.1), ("sweep/0", 0.01), ("sweep/1", 0.0001)]
    table = list(csv.DictReader(io.StringIO(printed("--csv", "--where", "model=lenet", "--show", "seed"))))
    assert [(row["run"], row["seed"], row["changes"]) for row in table] == [("a", "0", "model=lenet")]


def test_a_thousand_runs_take_no_two_seconds(tmp_path: Path):
    for number in range(1000):
        run_folder(tmp_path / f"{number // 100}" / f"{number}", number, "resnet18" if number % 2 else "lenet", 0.1, 0.5)
    code = "import sys; sys.argv[0] = 'cnnlab'; from cnnlab.cli import app; app()"
    words = ["runs", str(tmp_path), "--where", "model=resnet18", "--sort", "val/accuracy"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "500 runs below" in ran.stdout, ran.stderr
    # Of the processor, since others may be using the machine too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
