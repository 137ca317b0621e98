"""A loss or a gradient that is no number stops a run, and never reaches a checkpoint."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from typing_extensions import override

from tests.conftest import Train, read


def state(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def error(folder: Path) -> str:
    return read(folder / "run.json")["error"]


class Spoil(Callback):
    """Make a gradient no number in a step, as long as the learning rate is above a bound."""

    def __init__(self, step: int, above: float = 0.0) -> None:
        self.step = step
        self.above = above

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: torch.nn.Module, *args: object) -> None:
        if trainer.global_step == self.step and trainer.optimizers[0].param_groups[0]["lr"] > self.above:
            gradient = next(pl_module.parameters()).grad
            assert gradient is not None
            gradient[0] = float("nan")


def spoil(step: int, above: float = 0.0) -> str:
    return f"+callbacks.spoil={{_target_: tests.test_divergence.Spoil, step: {step}, above: {above}}}"


def test_the_step_the_rate_and_the_images_are_named(train: Train, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        train("optimizer.lr=1e12")
    assert ended.value.code == 6
    said = error(tmp_path / "run")
    assert "the loss of step " in said
    assert "optimizer.lr=1e+12" in said
    assert "training images" in said
    assert "and 27 more" in said  # of a batch of 32
    assert "as rows of the training set: [" in (tmp_path / "run" / "train.log").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("step", [13, 19])
def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(train: Train, tmp_path: Path, step: int):
    # The epoch's last step has no loss behind it that would show what became of the weights.
    with pytest.raises(SystemExit) as ended:
        train(spoil(step), "callbacks.checkpoint.every_n_steps=1")
    assert ended.value.code == 6
    if step == 19:
        assert "the gradient of step 19 is not finite" in error(tmp_path / "run")
    else:
        assert "step 13" in error(tmp_path / "run")
    for name in ("last", "best"):
        saved = state(tmp_path / "run", name)
        assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert state(tmp_path / "run")["global_step"] == (step if step == 13 else 19)


def test_rollback_goes_on_from_the_last_good_state_with_half_the_rate(train: Train, tmp_path: Path):
    folder = train(spoil(13, above=0.004), "on_divergence=rollback", "optimizer.lr=0.01", "optimizer.momentum=0.9")
    record = read(folder / "run.json")
    assert (record["status"], record["rollbacks"]) == ("completed", 2)
    assert state(folder)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.01 / 4)
    lrs = [line.split(",")[2] for line in (folder / "history.csv").read_text().splitlines()[1:]]
    assert [float(lr) for lr in lrs] == pytest.approx([0.01, 0.0025])
    assert "rollback 2 of 8" in (folder / "train.log").read_text()


def test_rollback_in_the_first_epoch_begins_again_and_ends_some_time(train: Train, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        train(
            spoil(3), "on_divergence=rollback", "trainer.max_epochs=1", "data.val_size=0", "objective.metric=train/loss"
        )
    assert ended.value.code == 6
    assert read(tmp_path / "run" / "run.json")["rollbacks"] == 8


def test_rollback_without_a_checkpoint_to_go_back_to_has_diverged(train: Train, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        train(spoil(23), "on_divergence=rollback", "trainer.enable_checkpointing=false", "trainer.max_epochs=3")
    assert ended.value.code == 6
    assert "found no checkpoint to go back to" in error(tmp_path / "run")


class Worse(Callback):
    """Take the weights away once a rate has been halved, so that no later state is as good as the first."""

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: torch.nn.Module, *args: object) -> None:
        if trainer.optimizers[0].param_groups[0]["lr"] < 0.04:
            for parameter in pl_module.parameters():
                parameter.data.zero_()


def test_the_result_is_that_of_the_best_state_which_a_rollback_left_behind(train: Train):
    # The validation behind step 15 finds the best state so far; step 17 sends the run back to what was saved at 10.
    folder = train(
        spoil(17, above=0.04), "+callbacks.worse={_target_: tests.test_divergence.Worse}", "on_divergence=rollback",
        "optimizer.lr=0.05", "trainer.val_check_interval=0.5", "objective.metric=val/loss", "objective.mode=min",
    )  # fmt: skip
    assert read(folder / "run.json")["rollbacks"] == 1
    best = state(folder, "best")
    assert best["global_step"] == 15
    kept = best["callbacks"]["Checkpoint"]["best_metrics"]
    metrics = read(folder / "metrics.json")
    assert {name: metrics[name] for name in kept} == kept
    assert metrics["objective"] == kept["val/loss"]


def test_a_schedule_keeps_its_shape_at_half_the_rate(train: Train, tmp_path: Path):
    folder = train(spoil(13, above=0.004), "on_divergence=rollback", "optimizer.lr=0.006", "schedule=cosine",
                   "schedule.warmup=0", "trainer.max_epochs=2")  # fmt: skip
    schedule = state(folder)["lr_schedulers"][0]
    rollbacks = read(folder / "run.json").get("rollbacks", 0)
    assert schedule["base_lrs"] == pytest.approx([0.006 / 2**rollbacks])


@pytest.mark.parametrize(
    "options",
    [
        ["schedule._target_=torch.optim.lr_scheduler.OneCycleLR", "+schedule.max_lr=0.04", "+schedule.total_steps=30"],
        ["schedule._target_=torch.optim.lr_scheduler.CyclicLR", "+schedule.base_lr=0.01", "+schedule.max_lr=0.02",
         "+schedule.step_size_up=5"],
    ],
)  # fmt: skip
def test_a_scheduler_that_keeps_rates_of_its_own_has_them_halved(train: Train, options: list[str]):
    folder = train(
        spoil(13, above=0.005 if "CyclicLR" in options[0] else 0.007), "on_divergence=rollback", *options,
        "+schedule.cycle_momentum=false", "+schedule.interval=step",
    )  # fmt: skip
    assert 0 < read(folder / "run.json")["rollbacks"] < 5  # of 8: at an unchanged rate it would not end
