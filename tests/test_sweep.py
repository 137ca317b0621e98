"""Names of trials, the table, what is refused, and what is passed over."""

import json
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from cnnlab.commands.report import report
from cnnlab.config import preflight, space
from cnnlab.errors import ConfigError, PartialError, UnsafeError
from cnnlab.files import write_json
from cnnlab.record import Record
from cnnlab.sweep import summary, table
from cnnlab.sweep.trial import folder_name, grid_trials
from tests.conftest import ROOT, read


def done(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}


def test_names_say_what_varied_and_nothing_a_path_cannot_hold():
    assert folder_name(["optimizer.lr=0.1", "seed=0"]) == "lr-0.1_seed-0"
    assert folder_name(["model.width=8", "+head.width=9"]) == "model.width-8_head.width-9"
    odd = folder_name(["augment=[flip_crop,cutout]", "data.path='a b/ü=$.npz'"])
    assert set(odd) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.+-")
    long = [folder_name([f"data.path={'x' * 300}{end}"]) for end in "ab"]
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 100


def test_seeds_of_a_searched_trial_never_share_a_folder():
    long = [f"optimizer.a_setting_with_a_name_{number}=0.123456" for number in range(7)]
    names = {folder_name([*long, f"seed={seed}"], "012") for seed in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) <= 100


def test_names_stay_when_the_grid_grows():
    small, large = (
        {trial.name for trial in grid_trials([f"lr={lr}", f"seed={seed}"] for lr in rates for seed in range(2))}
        for rates in (["0.1"], ["1", "0.1", "0.01"])
    )
    assert small < large


class Terminate(Callback):
    """Send the process a SIGTERM in training, as long as a file asks for it."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if Path("stop").exists():
            os.kill(os.getpid(), signal.SIGTERM)


def test_trial_that_is_stopped_however_often_goes_on(sweep, tmp_path: Path):
    words = ["seed=0,1", "+callbacks.stop._target_=tests.test_sweep.Terminate"]
    (tmp_path / "stop").touch()
    for start in ([], ["resume=sweep"], ["resume=sweep"]):
        with pytest.raises(SystemExit) as stopped:
            sweep(*words, *start)
        assert stopped.value.code == 143
        assert read(tmp_path / "sweep" / "seed-0" / "run.json")["status"] == "interrupted"
    told = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "2 trials: 1 interrupted, 1 not started" in told
    shown = told.split("```")[1].removeprefix("bash\n").strip()
    assert shown.startswith("cnnlab train -m data=npz ")
    assert shown.endswith("seed=0,1 +callbacks.stop._target_=tests.test_sweep.Terminate resume=sweep")
    again = preflight(shlex.split(shown)[2:])
    assert again == sys.argv[1:], "what is shown goes on with it"
    (tmp_path / "stop").unlink()
    folder = sweep(*words, "resume=sweep")
    assert read(folder / "sweep.json")["counts"] == {"completed": 2}


def test_what_stands_beside_a_varied_group_is_a_part_of_the_base(sweep):
    sweep("optimizer=sgd,adam", "optimizer.lr=0.01", "trainer.limit_train_batches=1")
    with pytest.raises(ConfigError, match=r"optimizer\.lr: was '0\.01', now '0\.02'"):
        sweep("optimizer=sgd,adam", "optimizer.lr=0.02", "trainer.limit_train_batches=1", "resume=sweep")


def test_sweep_with_a_link_that_leads_outside_is_refused(sweep, tmp_path: Path):
    folder = sweep("seed=0,1", "trainer.limit_train_batches=1")
    (tmp_path / "victim").write_text("mine")
    (folder / "seed-0" / "console.log").symlink_to(tmp_path / "victim")
    for act in (lambda: preflight(["-m", "seed=0,1", f"resume={folder}"]), lambda: report(str(folder))):
        with pytest.raises(UnsafeError, match=r"console\.log is a link"):
            act()
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_damaged_trial_takes_no_other_ones_row_away(sweep):
    folder = sweep("seed=0,1", "trainer.limit_train_batches=1")
    (folder / "seed-1" / "run.json").write_text("{")
    result = summary.write(folder).table
    assert {row.name: row.status for row in result.rows} == {"seed-0": "completed", "seed-1": "failed"}
    assert "damaged" in read(folder / "sweep.json")["trials"][1]["error"]


def test_sweep_ends_in_a_table_and_goes_on_where_it_was(sweep):
    folder = sweep("optimizer.lr=0.1,0.001", "seed=0,1")
    assert {path.name for path in folder.iterdir()} == {
        ".sweep", "figures", "sweep.csv", "sweep.json", "sweep.md",
        "lr-0.1_seed-0", "lr-0.1_seed-1", "lr-0.001_seed-0", "lr-0.001_seed-1",
    }  # fmt: skip
    content = read(folder / "sweep.json")
    assert content["counts"] == {"completed": 4}
    best, worst = content["groups"]
    assert best["settings"] == {"optimizer.lr": "0.1"}
    values = [read(folder / f"lr-0.1_seed-{seed}" / "metrics.json")["objective"] for seed in range(2)]
    assert best["mean"] == pytest.approx(statistics.fmean(values))
    assert best["sd"] == pytest.approx(statistics.stdev(values))
    assert worst["mean"] < best["mean"]
    assert " -m data=npz " in content["winner"]
    assert content["winner"].endswith("optimizer.lr=0.1 seed=0,1"), "a winner over seeds is repeated over seeds"
    assert (folder / "sweep.csv").read_text().splitlines()[0].startswith("optimizer.lr,seed,status,objective,")
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "objective_by_value", "learning_curves", "objective_by_time",
    }, "the seed is no axis"  # fmt: skip

    # A larger grid: what is done stays untouched, what is new is added.
    before = done(folder)
    sweep("optimizer.lr=0.1,0.01,0.001", "seed=0,1", "resume=sweep")
    after = done(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"lr-0.01_seed-0", "lr-0.01_seed-1"}
    assert read(folder / "sweep.json")["counts"] == {"completed": 6}

    # More epochs: every trial goes on.
    sweep("optimizer.lr=0.1", "seed=0", "trainer.max_epochs=2", "resume=sweep")
    history = (folder / "lr-0.1_seed-0" / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history] == ["epoch", "0", "1"]

    # Another base: refused, with what differs.
    with pytest.raises(ConfigError, match=r"data.batch_size: was 32, now 16") as refused:
        sweep("optimizer.lr=0.1,0.001", "seed=0,1", "data.batch_size=16", "resume=sweep")
    assert "its command was: " in str(refused.value)
    with pytest.raises(ConfigError, match="holds a sweep already"):
        sweep("optimizer.lr=0.1,0.001", "seed=0,1")


def test_winners_command_repeats_the_winner_to_the_bit(sweep, tmp_path, monkeypatch):
    import train as script

    folder = sweep("optimizer.lr=0.1,0.001")
    words = shlex.split(read(folder / "sweep.json")["winner"])
    monkeypatch.setattr(
        sys, "argv", [str(ROOT / "train.py"), *preflight([*words[words.index("train") + 1 :], "hydra.run.dir=again"])]
    )
    script.main()
    assert read(tmp_path / "again" / "metrics.json") == read(folder / "lr-0.1" / "metrics.json")


def test_winners_command_finds_the_users_own_configs(sweep, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer:\n  max_epochs: 1\n")
    folder = sweep("--config-dir=own", "experiment=mine", "seed=0,1", "trainer.limit_train_batches=1")
    words = shlex.split(read(folder / "sweep.json")["winner"])
    assert preflight([*words[words.index("train") + 1 :], "hydra.sweep.dir=again"])


def test_failed_trials_are_named_and_run_again(sweep, tmp_path):
    with pytest.raises(PartialError, match=r"1 of 2 trials failed: lr-1000000\nrun them again with: .* resume="):
        sweep("optimizer.lr=0.01,1000000")
    assert read(tmp_path / "sweep" / "lr-1000000" / "run.json")["status"] == "failed"
    before = done(tmp_path / "sweep")
    with pytest.raises(PartialError):
        sweep("optimizer.lr=0.01,1000000", "resume=sweep")
    after = done(tmp_path / "sweep")
    assert after["lr-0.01"] == before["lr-0.01"]
    assert after["lr-1000000"] > before["lr-1000000"]


def test_a_finished_sweep_of_200_is_passed_over_in_seconds(sweep, tmp_path):
    folder = sweep("seed=0,1")
    for seed in range(2, 200):
        shutil.copytree(folder / "seed-0", folder / f"seed-{seed}")
        note = read(folder / "seed-0" / "trial.json")
        write_json(
            folder / f"seed-{seed}" / "trial.json",
            note | {"number": seed, "overrides": [f"seed={seed}"], "settings": {"seed": str(seed)}},
        )
    before = done(folder)
    began = time.monotonic()
    sweep("seed=range(200)", "resume=sweep")
    seconds = time.monotonic() - began
    assert done(folder) == before
    assert read(folder / "sweep.json")["counts"] == {"completed": 200}
    assert seconds < 15, f"{seconds / 200 * 1000:.0f} ms a trial"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["-m", "resume=nowhere", "seed=0,1"], "must be a sweep's folder"),
        (["search=tpe", "search.pruner=ash"], "did you mean asha?"),
        (["search=tpe", "++search.space={optimizer.lrr:[0.1]}"], "optimizer.lrr is no key of this config"),
        (["search=tpe", "++search.space={model:[lenet,resnet99]}"], "no such option"),
        (["search=tpe", "search.space={optimizer.lr:{low:-1,log:false}}"], "optimizer.lr must be a number above 0"),
        (["search=tpe", "search.space={optimizer.lr:{low:2}}"], "low must be less than high"),
        (["-m", "seed=0,1", "trainer.devices=2"], "hydra/launcher=local gives each trial a process of its own"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(argv, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=part.replace("?", r"\?")):
        preflight(argv)
    assert not list(tmp_path.iterdir())


def test_search_needs_no_flag_and_local_trials_may_use_several_devices():
    assert "--multirun" in preflight(["search=tpe"])
    preflight(["-m", "seed=0,1", "trainer.devices=2", "trainer.accelerator=cpu", "hydra/launcher=local"])


def test_space_of_choices_that_open_spaces_makes_a_grid():
    found = space.parse_space(
        {"optimizer": {"sgd": {"optimizer.lr": {"low": 0.01, "high": 1.0, "log": True, "steps": 3}}, "adam": None}}
    )
    assert list(space.grid(found)) == [
        ["optimizer=sgd", "optimizer.lr=0.01"],
        ["optimizer=sgd", "optimizer.lr=0.1"],
        ["optimizer=sgd", "optimizer.lr=1.0"],
        ["optimizer=adam"],
    ]


def test_trial_that_was_resumed_by_itself_says_so_everywhere(sweep, tmp_path, monkeypatch):
    import train as script

    words = ["seed=0,1", "trainer.limit_train_batches=1"]
    folder = sweep(*words)
    for more in (["trainer.max_epochs=3"], []):  # the second time it is as it was
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *preflight([f"resume={folder}/seed-0", *more])])
        script.main()
    record = Record(folder / "seed-0")
    assert record.run["limits"]["max_epochs"] == 3
    assert record.config["trainer"]["max_epochs"] == 3
    assert record.overrides.count("trainer.max_epochs=3") == 1
    assert "trainer.max_epochs=1" not in record.overrides
    assert len(record.history) == 3
    before = done(folder)
    sweep(*words, "resume=sweep")
    assert done(folder) == before
    assert [row["is_comparable"] for row in read(folder / "sweep.json")["trials"]] == [True, False]


def test_report_reads_a_sweep_that_is_still_running(tmp_path: Path):
    (tmp_path / ".sweep").mkdir()
    record = {
        "objective": {"metric": "val/loss", "mode": "min"}, "command": "c", "planned": 3, "base": [], "program": "p",
        "keys": ["lr"], "config": {}, "trials": [], "search": None, "each": 1,
    }  # fmt: skip
    (tmp_path / ".sweep" / "record.json").write_text(json.dumps(record))
    for number, (status, value) in enumerate([("completed", 0.5), ("completed", 0.3), ("running", None)]):
        folder = tmp_path / f"lr-{number}"
        folder.mkdir()
        write_json(
            folder / "trial.json", {"number": number, "overrides": [f"lr={number}"], "settings": {"lr": str(number)}}
        )
        write_json(folder / "run.json", {"status": status, "seconds": 1.0, "started": "2026-01-01T00:00:00+00:00"})
        if value is not None:
            write_json(folder / "metrics.json", {"val/loss": value, "objective": value})
    result = summary.write(tmp_path).table
    assert [row.name for row in result.rows] == ["lr-1", "lr-0", "lr-2"], "less is better, and nothing comes last"
    assert read(tmp_path / "sweep.json")["counts"] == {"completed": 2, "running": 1}
    assert result.winner == "p lr=1"
    with pytest.raises(ConfigError, match="no sweep's folder"):
        table.read(tmp_path / "lr-0")
