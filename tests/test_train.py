"""The whole way: a command, a trained network, a run's folder."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typing_extensions import override

from cnnlab.errors import ConfigError, Stopped
from cnnlab.files import write_json
from cnnlab.run import command_line
from tests.conftest import ROOT, Train, read, run_process


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def state(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        assert isinstance(two, (list, tuple))
        return len(one) == len(two) and all(same(*pair) for pair in zip(one, two, strict=True))
    return one == two


def test_a_run_leaves_the_folder_that_others_rely_on(train: Train):
    folder = train(figures=True)

    record = read(folder / "run.json")
    assert record["status"] == "completed"
    assert record["num_parameters"] == 62_038
    assert record["seed"] == 0
    assert record["device"].startswith("cpu")
    assert record["precision"] == "32-true"
    assert record["seconds"] > 0
    assert set(record["versions"]) == {"python", "torch", "pytorch_lightning", "hydra", "cnnlab"}
    assert {"command", "started", "git"} <= set(record)

    metrics = read(folder / "metrics.json")
    names = {
        "val/accuracy",
        "val/loss",
        "test/accuracy",
        "test/loss",
        "test/macro_f1",
        "test/calibration_error",
    }
    assert names <= set(metrics)
    assert metrics["objective"] == metrics["val/accuracy"]
    assert all(isinstance(value, float) for value in metrics.values())

    header = "epoch,step,lr,train/loss,train/accuracy,val/loss,val/accuracy,train_seconds,images_per_second"
    lines = (folder / "history.csv").read_text().splitlines()
    assert lines[0] == f"{header},val/calibration_error,val/macro_f1"
    assert [line.split(",")[:2] for line in lines[1:]] == [["0", "10"], ["1", "20"]]

    for name in ("best", "last"):
        assert {"state_dict", "optimizer_states", "loops"} <= set(state(folder, name))
    for name in ("config", "overrides", "hydra"):
        assert (folder / ".hydra" / f"{name}.yaml").is_file()
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"first_training_images", "loss", "learning_curves", "first_test_images", "confusion_matrix",
            "worst_mistakes"} <= pictures  # fmt: skip
    assert "epoch 2/2" in (folder / "train.log").read_text()
    assert not list(folder.rglob(".*.[0-9]*")), "nothing half-written is left"


def test_the_network_learns(train: Train):
    folder = train("trainer.max_epochs=8", "optimizer=adam", "optimizer.lr=0.003")
    assert read(folder / "metrics.json")["test/accuracy"] > 0.9


def test_tensorboard_has_every_step_and_every_epoch(train: Train):
    folder = train(figures=True)
    board = events(folder)
    tags = board.Tags()
    losses = board.Scalars("train/loss")
    assert [point.step for point in losses] == list(range(20))
    for name in ("train/loss_epoch", "train/accuracy", "val/loss", "val/accuracy", "images_per_second"):
        assert [point.step for point in board.Scalars(name)] == [0, 1], name
    recorded = [float(row["train/loss"]) for row in rows(folder)]
    assert [point.value for point in board.Scalars("train/loss_epoch")] == pytest.approx(recorded)
    assert sum(point.value for point in losses[:10]) / 10 == pytest.approx(recorded[0], rel=1e-4)
    assert "hp_metric" not in tags["scalars"]
    assert {"figures/first_training_images", "figures/confusion_matrix"} <= set(tags["images"])
    assert tags["graph"]
    assert not [path for path in (folder / "tensorboard").iterdir() if path.is_dir()], "no stray sub-runs"


@pytest.mark.parametrize("batch_size", ["32", "33"])
def test_epoch_means_are_weighted_by_images(train: Train, batch_size: str):
    folder = train(f"data.batch_size={batch_size}", "trainer.max_epochs=1", "optimizer.lr=1e-9")
    points = [point.value for point in events(folder).Scalars("train/loss")]
    sizes = [int(batch_size)] * (320 // int(batch_size))
    sizes += [320 - sum(sizes)] if sum(sizes) < 320 else []
    mean = sum(p * s for p, s in zip(points, sizes, strict=True)) / 320
    assert float(rows(folder)[0]["train/loss"]) == pytest.approx(mean, rel=1e-5)


def test_accumulated_steps_record_the_loss_of_the_batch(train: Train):
    plain = train("optimizer.lr=1e-9", "trainer.max_epochs=1")
    accumulated = train(
        "optimizer.lr=1e-9", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2",
        folder=plain.with_name("accumulated"),
    )  # fmt: skip
    first, second = (events(folder).Scalars("train/loss") for folder in (plain, accumulated))
    assert [p.value for p in first] == pytest.approx([p.value for p in second], rel=1e-4)
    assert rows(accumulated)[0]["step"] == "5"


def test_same_seed_gives_the_same_bits(train: Train, tmp_path: Path):
    one, two, other = (
        state(train("model.dropout=0.3", "augment=flip_crop", seed, folder=tmp_path / str(index)))["state_dict"]
        for index, seed in enumerate(["seed=1", "seed=1", "seed=2"])
    )
    assert same(one, two)
    assert not same(one, other)


class StopAt(Callback):
    """Send this process a real signal in the middle of the run's n-th step."""

    def __init__(self, step: int, signum: int = signal.SIGINT) -> None:
        self.step = step
        self.signum = signum

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


STOPS = [(signal.SIGINT, 3), (signal.SIGTERM, 9), (signal.SIGINT, 14), (signal.SIGTERM, 19)]


@pytest.mark.parametrize(
    ("extra", "stops"),
    [
        ([], STOPS),
        (["trainer.accumulate_grad_batches=2", "callbacks=[default,ema]"], [(signum, at // 2) for signum, at in STOPS]),
        # 26 steps, as there are more images to train on
        (["data.val_size=0", "objective.metric=test/accuracy"], [*STOPS[:3], (signal.SIGTERM, 25)]),
    ],
)
def test_resumed_run_equals_uninterrupted_run(
    train: Train, tmp_path: Path, extra: list[str], stops: list[tuple[int, int]]
):
    options = [
        "model.dropout=0.3", "augment=[flip_crop,cutout]", "schedule=cosine", "trainer.max_epochs=2", *extra,
    ]  # fmt: skip
    whole = train(*options, folder=tmp_path / "whole")
    timeless = [name for name in rows(whole)[0] if name not in ("train_seconds", "images_per_second")]
    for signum, stop in stops:
        stopped = tmp_path / f"stopped-{stop}"
        with pytest.raises(SystemExit) as ended:
            train(
                *options, f"+callbacks.stop={{_target_: tests.test_train.StopAt, step: {stop}, signum: {signum}}}",
                folder=stopped,
            )  # fmt: skip
        assert ended.value.code == 128 + signum
        assert read(stopped / "run.json")["status"] == "interrupted"
        # The step under way ends and is saved; behind an epoch's last one, the next step.
        assert int(state(stopped)["global_step"]) in (stop + 1, stop + 2)

        train(f"resume='{stopped}'", "trusted=[tests]", folder=stopped)
        assert read(stopped / "run.json")["status"] == "completed"
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(state(whole)[part], state(stopped)[part]), part
        assert [[row[name] for name in timeless] for row in rows(whole)] == [
            [row[name] for name in timeless] for row in rows(stopped)
        ]
        assert read(whole / "metrics.json") == read(stopped / "metrics.json")


class Swallow(Callback):
    """Lose a real signal's exception, as Python does in a weak reference's callback."""

    @override
    def on_test_end(self, trainer: Trainer, *args: object) -> None:
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_whose_exception_was_dropped_still_stops_the_run(train: Train):
    with pytest.raises(SystemExit) as ended:
        train("+callbacks.swallow={_target_: tests.test_train.Swallow}")
    assert ended.value.code == 130


def test_resuming_a_finished_run_says_so_and_changes_nothing(train: Train, caplog: pytest.LogCaptureFixture):
    folder = train()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    train(f"resume='{folder}'")
    assert "is done already" in (folder / "train.log").read_text()
    assert before == {path: path.read_bytes() for path in before}


def test_a_finished_run_can_be_given_more_epochs(train: Train, tmp_path: Path):
    longer = train("trainer.max_epochs=3", folder=tmp_path / "longer")
    folder = train("trainer.max_epochs=2")
    train(f"resume='{folder}'", "trainer.max_epochs=3", folder=folder)
    assert same(state(folder)["state_dict"], state(longer)["state_dict"])
    assert [row["epoch"] for row in rows(folder)] == ["0", "1", "2"]


def test_resume_never_starts_again_in_silence(train: Train):
    folder = train()
    for name in ("last", "previous"):
        (folder / "checkpoints" / f"{name}.ckpt").unlink()
    with pytest.raises(SystemExit) as ended:
        train(f"resume='{folder}'", "trainer.max_epochs=3", folder=folder)
    assert ended.value.code == 4


def test_without_validation_the_last_state_is_the_best(train: Train):
    folder = train("data.val_size=0", "objective.metric=test/accuracy")
    assert same(state(folder, "best")["state_dict"], state(folder, "last")["state_dict"])
    metrics = read(folder / "metrics.json")
    assert metrics["objective"] == metrics["test/accuracy"]
    assert not any(name.startswith("val/") for name in metrics)
    assert rows(folder)[0]["val/loss"] == ""
    for name in ("train/loss", "train/accuracy"):
        assert metrics[name] == pytest.approx(float(rows(folder)[-1][name]))


def test_the_best_state_is_tested(train: Train):
    folder = train("optimizer=adam", "optimizer.lr=0.05", "trainer.max_epochs=6", "objective.metric=val/loss",
                   "objective.mode=min")  # fmt: skip
    losses = [float(row["val/loss"]) for row in rows(folder)]
    best = state(folder, "best")
    assert best["epoch"] == losses.index(min(losses))
    assert read(folder / "metrics.json")["objective"] == pytest.approx(min(losses))


def test_divergence_stops_the_run_and_is_never_the_best(train: Train):
    with pytest.raises(SystemExit) as ended:
        train("optimizer.lr=1e12")
    assert ended.value.code == 6


def test_early_stopping_stops_early(train: Train):
    folder = train(
        "callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1.0", "trainer.max_epochs=9",
    )  # fmt: skip
    assert len(rows(folder)) == 2
    assert read(folder / "run.json")["status"] == "completed"


def test_validation_twice_an_epoch(train: Train):
    folder = train("trainer.val_check_interval=0.5")
    assert len(rows(folder)) == 2
    assert rows(folder)[-1]["val/accuracy"]


def test_fast_dev_run_records_nothing(train: Train):
    folder = train("trainer.fast_dev_run=true")
    assert not (folder / "history.csv").exists()
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_parallel_starts_never_share_a_folder(small: list[str], tmp_path: Path):
    command = [sys.executable, str(ROOT / "train.py"), *small, "trainer.fast_dev_run=true"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(240) for run in runs] == [0, 0]
    assert len(list(tmp_path.glob("outputs/*/*/run.json"))) == 2


def test_a_run_that_begins_in_a_failed_ones_folder_has_its_own_clock(train: Train, tmp_path: Path):
    folder = tmp_path / "run"
    write_json(folder / "run.json", {"status": "failed", "started": "2001-01-01T00:00:00+00:00", "seconds": 1e6})
    train("trainer.max_epochs=1", "trainer.enable_checkpointing=false")
    record = read(folder / "run.json")
    assert not record["started"].startswith("2001")
    assert record["seconds"] < 1e4
    with pytest.raises(ConfigError, match="holds a run already"):  # though it kept no checkpoint
        train("trainer.max_epochs=1")


def test_a_refused_resume_leaves_a_completed_run_what_it_was(train: Train, capsys: pytest.CaptureFixture):
    folder = train("trainer.max_epochs=1")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(SystemExit) as refused:
        train(f"resume='{folder}'", "data.path=nowhere.npz", "trainer.max_epochs=2")
    assert refused.value.code == 3
    assert "nowhere.npz does not exist" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before


def test_a_sweep_goes_on_after_a_failed_run_and_ends_with_7(small: list[str], tmp_path: Path):
    run = run_process(
        "-m", *small, "trainer.max_epochs=1", "optimizer.lr=1e12,0.01", f"hydra.sweep.dir={tmp_path}/sweep"
    )
    assert run.returncode == 7, run.stderr
    assert "diverged" in run.stderr
    trials = ("lr-1000000000000.0", "lr-0.01")
    assert [read(tmp_path / "sweep" / trial / "run.json")["status"] for trial in trials] == [
        "failed",
        "completed",
    ]


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("trainer.accelerator=gpu", 5),
        ("trainer.accelerator=tpu", 5),
        ("trainer.precision=16-mixed", 5),
        ("trainer.devices=999", 5),
        ("trainer.strategy=ddp_spawn", 2),
        ("data.mean=[0.5]", 3),
        ("data.classes=[a,b]", 3),
        ("+optimizer.speed=3", 2),
        ("+model.wings=2", 2),
        ("optimizer._target_=torch.optim.Sgd", 2),
        ("model._target_=nosuch.Net", 2),
        ("data.path=nowhere.npz", 3),
        ("hydra.run.dir=/dev/null/run", 5),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the first row is about a machine without a GPU")
def test_what_cannot_be_built_ends_with_its_exit_code_and_no_traceback(
    small: list[str], tmp_path: Path, override: str, code: int,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    import train as script

    words = [*small, override, *(["data.std=[0.5]"] if "mean" in override else [])]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    with pytest.raises(SystemExit) as ended, command_line():
        script.start(words)
    errors = capfd.readouterr().err
    assert ended.value.code == code
    assert errors.startswith("cnnlab: error: ")
    assert len(errors.splitlines()) <= 2
    if "_target_" in override or "data.path" in override:
        assert not list(tmp_path.iterdir()), "found out before anything is written"


def test_what_cannot_be_built_ends_a_process_likewise(small: list[str], tmp_path: Path):
    run = run_process(*small, "data.classes=[a,b]", cwd=tmp_path)
    assert run.returncode == 3
    assert re.fullmatch(r"cnnlab: error: .+\n(cnnlab: .+\n)?", run.stderr)


def test_a_run_goes_on_when_nobody_reads_its_output(small: list[str], tmp_path: Path):
    command = [sys.executable, str(ROOT / "train.py"), *small, "callbacks.figures=null"]
    folder = tmp_path / "run"
    run = subprocess.Popen([*command, f"hydra.run.dir={folder}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.close()
    _, errors = run.communicate(timeout=120)
    assert (run.returncode, errors) == (0, b"")
    assert read(folder / "run.json")["status"] == "completed"
    assert "next" in (folder / "train.log").read_text()
