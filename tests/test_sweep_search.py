"""A search proposes, prunes, goes on and ends in the same table."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from cnnlab.config import preflight
from cnnlab.data import shapes
from cnnlab.errors import PartialError
from cnnlab.files import write_json
from cnnlab.record import Record
from cnnlab.run import Run
from cnnlab.sweep.search import Search
from tests.conftest import ROOT, read, run_process

QUICK = ["callbacks.figures=null", "callbacks.dashboard=null", "logger=none"]


def opened(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))


@pytest.fixture
def search(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch):
    def run(*overrides: str) -> Path:
        import train as script

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        given = {line.partition("=")[0] for line in overrides}
        place = [] if "resume" in given else ["hydra.sweep.dir=sweep"]
        base = [line for line in [*small, *QUICK] if line.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight([*base, *overrides, *place])])
        script.main()
        return tmp_path / "sweep"

    return run


def test_a_trials_number_decides_what_chance_proposes():
    def proposed(number: int, sampler: str) -> float:
        options = {"sampler": sampler, "startup": 8}
        asked = SimpleNamespace(seed=0, options=options)
        study = optuna.create_study(sampler=Search._sampler(asked, number))  # type: ignore[arg-type]
        return study.ask().suggest_float("lr", 0, 1)

    for sampler in ("random", "tpe"):
        values = [proposed(number, sampler) for number in range(20)]
        assert len(set(values)) == 20, "processes that share a study never propose the same"
        assert values[7] == proposed(7, sampler)
        assert min(values) < 0.3
        assert max(values) > 0.7


def test_asha_stops_what_falls_behind_and_the_study_goes_on(search):
    space = "search.space={optimizer.lr:{low:1e-5,high:0.1},optimizer.weight_decay:null}"
    words = ["search=asha", space, "search.n_trials=5", "trainer.max_epochs=3"]
    folder = search(*words)
    table = read(folder / "sweep.json")
    statuses = [row["status"] for row in table["trials"]]
    assert statuses.count("pruned") >= 1
    assert statuses.count("pruned") + statuses.count("completed") == 5
    study = opened(folder)
    assert [trial.state for trial in study.trials].count(TrialState.PRUNED) == statuses.count("pruned")
    assert study.best_value == pytest.approx(max(row["objective"] for row in table["trials"] if row["epochs"] == 3))
    for row in table["trials"]:
        if row["status"] == "pruned":
            assert row["epochs"] < 3
            assert "pruned after epoch" in (folder / row["name"] / "train.log").read_text()
            assert 0 <= row["metrics"]["test/accuracy"] <= 1, "it was tested all the same"

    # Killed when it was given up, before it had ended: it ends so, as if nothing had been.
    given_up = next(row for row in table["trials"] if row["status"] == "pruned")
    place = folder / given_up["name"]
    write_json(place / "run.json", read(place / "run.json") | {"status": "running"})
    again = [line for line in Record(place).overrides if line.startswith("++callbacks.prune.")]  # as the sweep does
    search(f"resume={place}", "trainer.max_epochs=3", *again)
    assert read(place / "run.json")["status"] == "completed"
    assert len((place / "history.csv").read_text().splitlines()) == 1 + given_up["epochs"]
    assert read(place / "metrics.json") == given_up["metrics"] | {"objective": given_up["objective"]}

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}
    search(*["search.n_trials=6" if word == "search.n_trials=5" else word for word in words], "resume=sweep")
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}
    assert len(after) == 6
    assert {path: after[path] for path in before} == before
    assert len({row["settings"]["optimizer.lr"] for row in read(folder / "sweep.json")["trials"]}) == 6


def test_a_search_that_measures_no_objective_says_so(search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finish = Run.finish
    monkeypatch.setattr(
        Run, "finish", lambda self, metrics, objective, **rest: finish(self, metrics, "val/mean", **rest)
    )
    with pytest.raises(PartialError, match=r"no trial measured the objective, val/accuracy; measured: .*test/accuracy"):
        search("search=random", "search.n_trials=2", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert read(tmp_path / "sweep" / "sweep.json")["counts"] == {"completed": 2}


def test_a_result_that_was_lost_is_measured_again(search):
    words = ["search=random", "search.n_trials=2", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    folder = search(*words)
    before = read(folder / "sweep.json")
    lost = folder / before["trials"][0]["name"]
    (lost / "metrics.json").write_text("")
    search(*words, "resume=sweep")
    after = read(folder / "sweep.json")
    assert [row["metrics"] for row in after["trials"]] == [row["metrics"] for row in before["trials"]]
    assert [trial.state for trial in opened(folder).trials] == [TrialState.COMPLETE] * 2


def test_diverging_trial_fails_and_the_study_goes_on_with_means_over_seeds(search, tmp_path):
    # The second of the two choices makes the loss infinite.
    with pytest.raises(PartialError, match="trials failed: "):
        search(
            "search=random", "search.n_trials=4", "search.seeds=2", "trainer.max_epochs=1",
            "optimizer.lr=0.1,1e12", "optimizer.weight_decay=0",
        )  # fmt: skip
    study = opened(tmp_path / "sweep")
    states = [trial.state for trial in study.trials]
    assert len(states) == 4
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    table = read(tmp_path / "sweep" / "sweep.json")
    assert {float(row["settings"]["optimizer.lr"]) for row in table["trials"] if row["status"] == "failed"} == {1e12}
    good = next(trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    values = [
        row["objective"] for row in table["trials"] if row["name"].startswith(f"{good.number:03d}_")
    ]  # fmt: skip
    assert len(values) == 2
    assert "\n4 of 4 trials, " in (tmp_path / "sweep" / "sweep.md").read_text()
    assert good.value == pytest.approx(sum(values) / 2)


@pytest.mark.long
def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(npz: Path, tmp_path: Path):
    words = [
        sys.executable, str(ROOT / "train.py"), "search=tpe", "search.n_trials=8", "search.startup=2", "data=npz",
        "search.space={optimizer.lr:{low:0.01,high:0.1}}",
        f"data.path='{npz}'", "data.val_size=80", "data.batch_size=32", "trainer.max_epochs=2",
        "hydra/launcher=local", "hydra.launcher.n_jobs=1", *QUICK,
    ]  # fmt: skip
    options = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen([*words, "hydra.sweep.dir=sweep"], **options)  # type: ignore[call-overload]
    until = time.monotonic() + 200
    while not list(tmp_path.glob("sweep/*/history.csv")):
        assert time.monotonic() < until
        time.sleep(0.1)
    second = subprocess.Popen([*words, "resume=sweep"], **options)  # type: ignore[call-overload]
    time.sleep(3)
    first.kill()
    first.wait()
    assert second.wait(250) == 0
    ended = subprocess.run([*words, "resume=sweep"], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    study = opened(tmp_path / "sweep")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["counts"] == {"completed": 8}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_asha_reaches_what_random_search_reaches_in_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = shapes.generate(tmp_path / "shapes.npz")
    best: dict[str, list[float]] = {"asha": [], "random": []}
    for seed in range(3):
        seconds = 0.0
        for kind in best:
            limit = ["search.n_trials=30"] if kind == "asha" else ["search.n_trials=500", f"search.timeout={seconds}"]
            began = time.monotonic()
            ended = run_process(
                f"search={kind}", *limit, f"seed={seed}", "data=shapes", f"data.path='{path}'", "data.batch_size=128",
                "trainer.max_epochs=9", "hydra/launcher=local", *QUICK, f"hydra.sweep.dir='{tmp_path / kind}{seed}'",
                timeout=1500,
            )  # fmt: skip
            assert ended.returncode in (0, 7), ended.stderr  # large learning rates diverge
            seconds = time.monotonic() - began
            table = read(Path(f"{tmp_path / kind}{seed}") / "sweep.json")
            best[kind].append(max(row["objective"] for row in table["trials"] if row["objective"] is not None))
            with capsys.disabled():
                print(f"\nseed {seed}, {kind}: best {best[kind][-1]:.4f} in {seconds:.0f} s, {table['counts']}")
            if kind == "asha":
                assert table["counts"]["pruned"] >= 10, "a third at least"
    # A percentage point is what the best of so few trials differs by from seed to seed.
    assert sum(best["asha"]) / 3 >= sum(best["random"]) / 3 - 0.01
