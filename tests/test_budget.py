"""Training to a deadline: the schedule follows the clock, and a second run can follow the first to the bit."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from cnnlab import patches
from cnnlab.callbacks import Budget, budget
from cnnlab.callbacks.budget import Cycle
from cnnlab.checkpoint import read_checkpoint
from cnnlab.config import preflight
from cnnlab.errors import ConfigError
from cnnlab.schedule import OneCycle, Pace
from cnnlab.wording import parse_duration
from tests.conftest import ROOT, Train, read, run_process
from tests.prove.budget import outcome_by_step
from tests.prove.resume import compare
from tests.test_divergence import spoil


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("2h", 7200), ("1.5min", 90), ("1000h", 3_600_000), ("1s", 1), ("0.5s", None),
     ("0h", None), ("1001h", None), ("10", None), (90, None), ("-5s", None), ("1e3s", None), ("10 min", None),
     ("10mins", None), ("", None), (None, None), ("nan", None), (True, None)],
)  # fmt: skip
def test_a_time_is_read_as_people_write_it(text: object, seconds: float | None):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["budget=10mins"], "budget must be a time from 1s to 1000h as 90s, 10min or 2h, or the folder of a run"),
        (["budget=90"], "budget must be a time"),
        (["budget=0s"], "budget must be a time"),
        (["budget=90s", "trainer.max_epochs=3"], "budget=90s and trainer.max_epochs=3 both say when the run ends"),
        (["budget=90s", "trainer.max_steps=30"], "budget=90s and trainer.max_steps=30 both say when the run ends"),
        (["budget=90s", "trainer.max_time='00:00:01:00'"], "leave trainer.max_time out"),
        (["budget=90s", "trainer.min_epochs=3"], "leave trainer.min_epochs out"),
        (["-m", "budget=90s,2weeks"], "budget must be a time"),
    ],
)
def test_what_contradicts_a_budget_is_refused_before_anything_is_imported(lines: list[str], reason: str):
    with pytest.raises(ConfigError, match=reason):
        preflight(["experiment=quickstart", *lines])


@given(
    until=st.floats(1, 200), between=st.floats(1, 200), pause=st.floats(0, 100), times=st.tuples(st.floats(0, 3000),
    st.floats(0, 3000)),
)  # fmt: skip
def test_steps_and_pauses_fill_the_time_and_no_more(
    until: float, between: float, pause: float, times: tuple[float, float]
):
    cycle = Cycle(until, between, pause)
    few, many = sorted(map(cycle.steps_in, sorted(times)))
    assert few == cycle.steps_in(min(times))  # more time is never for fewer steps
    pauses = math.ceil(max(0.0, many - until) / between - 1e-9) if many > until else 0
    taken = many + pauses * pause
    # What is left is not enough for the pause that would come before another step.
    assert taken <= max(times) + 1e-6 * max(times)
    assert max(times) - taken <= pause + 1e-6 * max(times)
    assert Cycle(math.inf, math.inf, pause).steps_in(max(times)) == max(times)


def test_at_a_constant_speed_the_schedule_is_the_ordinary_one():
    pace, schedule = Pace(), OneCycle()
    for step in range(500):
        pace.advance(500 - step)
    assert pace.is_over
    for step in range(500):
        assert schedule(*pace.place(step)) == pytest.approx(schedule(step, 500), abs=1e-5)


class Clock:
    """The time of a simulated machine."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Images(LightningDataModule):
    """50 batches of 10 images to train with, 4 to validate, 20 to test."""

    batch_size = 10

    def count(self, split: str) -> int:
        return {"val": 40, "test": 200}[split]

    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(50, 1))  # type: ignore[arg-type]

    @override
    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4, 1))  # type: ignore[arg-type]


class Machine(LightningModule):
    """A step takes what the simulation says: so long for each image, three times that in training."""

    def __init__(self, clock: Clock, seconds_at: Callable[[float], float]) -> None:
        super().__init__()
        self.clock = clock
        self.seconds_at = seconds_at
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def work(self, images: int) -> None:
        self.clock.now += images * self.seconds_at(self.clock.now - 1000)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.work(30)
        return self.weight.sum()

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.work(10)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


SPEEDS = {
    "constant": lambda seconds: 0.001,
    "half of it is taken away midway": lambda seconds: 0.001 if seconds < 30 else 0.002,
    "a busy start": lambda seconds: 0.004 if seconds < 20 else 0.001,
    "in turns": lambda seconds: 0.001 if seconds % 10 < 5 else 0.0017,
    "ever slower": lambda seconds: 0.001 * (1 + seconds / 60),
}


def fit_on_clock(
    machine: Machine, images: Images, every: int | None, monkeypatch: pytest.MonkeyPatch, folder: Path, **flags: Any
) -> Budget:
    """Train for 60 simulated seconds, of which 4 are over, with a validation every so many epochs or 70 batches."""
    clock = machine.clock
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(budget, "processor_seconds", lambda: (1.0, 0.0))  # this machine may have other work
    patches.install()
    deadline = Budget("60s", 60.0, began=clock.now - 4)
    trainer = Trainer(
        max_epochs=-1, callbacks=[deadline], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu", num_sanity_val_steps=0,
        check_val_every_n_epoch=every, val_check_interval=None if every else 70, **flags,
    )  # fmt: skip
    trainer.fit(machine, images)
    return deadline


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_run_ends_in_time_and_its_schedule_with_it(
    speed: str, every: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    clock = Clock()
    machine = Machine(clock, SPEEDS[speed])
    deadline = fit_on_clock(machine, Images(), every, monkeypatch, tmp_path)
    machine.work(200)  # the test
    clock.now += 1  # the pictures
    shares = np.array(deadline.pace.shares)
    assert shares[-1] == 1
    assert len(shares) == machine.trainer.global_step + 1
    assert (np.diff(shares[5:]) > 0).all()
    assert shares[-2] > 0.97  # the last step comes where the schedule is all but over
    assert 57 <= deadline.used <= 61.5
    # As fast as at first, half of the time would have been half of the steps.
    if speed == "constant":
        steps = np.arange(len(shares))
        assert np.abs(shares[5:] - steps[5:] / steps[-1]).max() < 0.02


def test_epochs_that_end_with_a_smaller_step_are_counted_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    machine = Machine(Clock(), SPEEDS["constant"])
    fit_on_clock(machine, Images(), 1, monkeypatch, tmp_path, accumulate_grad_batches=20)
    (said,) = re.findall(r"about (\d+) steps, ([\d.]+) epochs", caplog.text)
    assert float(said[0]) / float(said[1]) == pytest.approx(3, rel=0.01), "20, 20 and 10 of 50 batches"


class Untested(Images):
    """The same, without a test."""

    @override
    def count(self, split: str) -> int:
        return {"val": 40, "test": 0}[split]


class Thorough(Machine):
    """A machine whose validations take four seconds, and epochs without one a moment."""

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.work(1000)

    @override
    def on_train_epoch_end(self) -> None:
        self.clock.now += 0.05


def test_validations_of_few_epochs_are_provided_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    clock = Clock()
    deadline = fit_on_clock(Thorough(clock, SPEEDS["constant"]), Untested(), 3, monkeypatch, tmp_path)
    clock.now += 1  # the pictures
    assert 55 <= deadline.used <= 61.5  # another validation does not fit in
    # From the first one on, which says what they take, each step goes equally far.
    steps = np.diff(deadline.pace.shares[151:])
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.02)


@pytest.mark.slow
def test_a_run_that_went_back_does_not_take_its_training_for_starting_up(train: Train, monkeypatch: pytest.MonkeyPatch):
    endings, begin = [], Budget.on_fit_start

    def note(deadline: Budget, *arguments: Any) -> None:
        begin(deadline, *arguments)
        endings.append(deadline.ending)

    monkeypatch.setattr(Budget, "on_fit_start", note)
    monkeypatch.setattr(budget, "LEAST_ENDING_SECONDS", 0.0)
    train(spoil(13, above=0.006), "on_divergence=rollback", "optimizer.lr=0.01", "budget=4s", "trainer.max_epochs=-1")
    first, second = endings
    assert first == second > 0


OPTIONS = [
    "trainer.max_epochs=-1", "schedule=onecycle", "callbacks=[default,ema,lookahead]", "callbacks.figures=null",
    "callbacks.dashboard=null", "callbacks.checkpoint.every_n_steps=7", "model.dropout=0.2", "augment=[flip_crop]",
    "trainer.accumulate_grad_batches=2",
]  # fmt: skip


def test_a_run_ends_validated_and_says_what_it_used(train: Train):
    folder = train("budget=8s", "trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=1000", "schedule=linear")
    facts, last = read(folder / "run.json"), (folder / "history.csv").read_text().splitlines()[-1].split(",")
    assert facts["limits"] == {"budget": "8s"}
    assert facts["budget"]["asked"] == "8s"
    assert facts["budget"]["used"] < 8 + 5
    assert int(last[1]) == facts["budget"]["steps"] == facts["best"]["step"]
    assert last[5] != ""  # the last state's loss on the validation images
    shares = read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]["Budget"]["shares"].tolist()
    assert shares[-1] == 1
    assert float(last[2]) == pytest.approx(0.01 * (1 - shares[-2]), abs=1e-6)  # the line's end, one step before it
    train(f"resume='{folder}'", folder=folder)
    log = (folder / "train.log").read_text()
    assert "budget=8s, of which" in log
    assert f"the run in {folder} is done already" in log


@pytest.mark.slow
def test_a_run_that_is_killed_is_repeated_to_the_bit(small: list[str], tmp_path: Path):
    folder, again = tmp_path / "run", tmp_path / "again"
    options = [*small[:-1], *OPTIONS]
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), *options, "budget=30s", f"hydra.run.dir='{folder}'"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0) as process:
        while not (folder / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert time.monotonic() - began < 60
    resumed = run_process(f"resume='{folder}'")
    assert resumed.returncode == 0, resumed.stderr
    facts = read(folder / "run.json")
    assert facts["budget"]["asked"] == "30s"
    assert facts["limits"] == {"budget": "30s"}
    repeated = run_process(*options, f"budget='{folder}'", f"hydra.run.dir='{again}'")
    assert repeated.returncode == 0, repeated.stderr
    assert compare(outcome_by_step(folder), outcome_by_step(again)) == ""
    shares = read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]["Budget"]["shares"]
    assert len(shares) == facts["budget"]["steps"] + 1


def test_a_budget_that_starting_up_uses_is_told(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(budget.Budget, "used", property(lambda self: 0.9))  # on a fast machine it does not take as long
    with pytest.raises(SystemExit) as stop:
        train("budget=1s", "trainer.max_epochs=-1")
    assert stop.value.code == 2
    assert "no time is left to train" in capsys.readouterr().err


def test_only_a_run_that_had_a_budget_can_be_repeated(train: Train, trained: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        train(f"budget='{trained}'", "trainer.max_epochs=-1")
    assert stop.value.code == 2
    assert "that run had no budget" in capsys.readouterr().err


@pytest.mark.slow
def test_each_trial_of_a_sweep_has_the_budget(small: list[str], tmp_path: Path):
    """Also where they train side by side, and when the sweep is resumed with nothing left to do."""
    command = [
        "-m", *small[:-1], "callbacks.figures=null", "budget=20s", "seed=0,1", "hydra/launcher=local",
        "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    ended = run_process(*command, f"hydra.sweep.dir='{tmp_path / 'sweep'}'")
    assert ended.returncode == 0, ended.stderr
    records = [read(path)["budget"] for path in (tmp_path / "sweep").glob("*/run.json")]
    assert [record["asked"] for record in records] == ["20s", "20s"]
    assert all(15 <= record["used"] <= 25 for record in records)
    resumed = run_process(*command, f"resume='{tmp_path / 'sweep'}'")
    assert resumed.returncode == 0, resumed.stderr
    assert [read(path)["budget"] for path in (tmp_path / "sweep").glob("*/run.json")] == records


@pytest.mark.slow
def test_processes_agree_on_every_step(small: list[str], tmp_path: Path):
    folder, again = tmp_path / "run", tmp_path / "again"
    options = [*small[:-1], *OPTIONS, "trainer.accelerator=cpu", "trainer.devices=2"]
    for asked, place in (("30s", folder), (f"'{folder}'", again)):
        ended = run_process(*options, f"budget={asked}", f"hydra.run.dir='{place}'")
        assert ended.returncode == 0, ended.stderr
    assert compare(outcome_by_step(folder), outcome_by_step(again)) == ""
