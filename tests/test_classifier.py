"""What a step computes: losses, metrics and LightningModules of a user's own, distillation, schedulers of torch's."""

import csv
import datetime
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from typing_extensions import override

from cnnlab.errors import ConfigError
from cnnlab.evaluation import evaluate
from tests.conftest import Train, drawn, read

HERE = "tests.test_classifier"


class Scaled(nn.Module):
    """Cross-entropy of logits on a scale that is learnt with the network, as a user would write it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        assert num_classes == 10

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits * self.scale, targets)


class Wrong(Metric):
    """Share of wrong answers; less is better."""

    higher_is_better = False
    wrong: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wrong", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.wrong += (logits.argmax(1) != targets).sum()
        self.count += len(targets)

    @override
    def compute(self) -> Tensor:
        return self.wrong / self.count


class Plain(LightningModule):
    """A LightningModule that knows nothing of cnnlab's, with an auxiliary loss."""

    def __init__(self, network: nn.Module, optimizer: Any, weight: float = 0.1) -> None:
        super().__init__()
        self.network, self.build, self.weight = network, optimizer, weight
        self.wrong, self.seen = Wrong(), SumMetric()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        logits = self.network(batch.images)
        sharpness = logits.square().mean()
        self.log("train/sharpness", sharpness, on_step=False, on_epoch=True)
        for name, reduce in {"sharpest": "max", "softest": "min", "sharp": "sum"}.items():
            self.log(f"train/{name}", sharpness, on_step=False, on_epoch=True, reduce_fx=reduce)
        self.wrong.update(logits, batch.targets)
        self.log("train/wrong", self.wrong, on_step=False, on_epoch=True)
        self.seen.update(len(batch.targets))
        return nn.functional.cross_entropy(logits, batch.targets) + self.weight * sharpness

    @override
    def on_train_epoch_end(self) -> None:
        self.log("train/seen", self.seen.compute())
        self.seen.reset()
        if self.current_epoch == 0:
            self.log("train/first", 1.0)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        right = (self.network(batch.images).argmax(1) == batch.targets).float().mean()
        self.log("val/accuracy", right, batch_size=len(batch.targets))

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        right = (self.network(batch.images).argmax(1) == batch.targets).float().mean()
        self.log("test/accuracy", right, batch_size=len(batch.targets))

    @override
    def configure_optimizers(self) -> Any:
        return self.build(self.network)


class Headless(LightningModule):
    """One that keeps its network under another name."""

    def __init__(self, network: nn.Module, optimizer: Any) -> None:
        super().__init__()
        self.net, self.build = network, optimizer

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch.images), batch.targets)

    @override
    def configure_optimizers(self) -> Any:
        return self.build(self.net)


class Saving(Plain):
    """Keeps its arguments as Lightning's examples do."""

    def __init__(self, network: nn.Module, optimizer: Any, weight: float) -> None:
        super().__init__(network, optimizer, weight)
        self.save_hyperparameters()

    @override
    def configure_optimizers(self) -> Any:
        return self.hparams["optimizer"](self.network)


PARTS = {
    "number": [1, np.float64(2)],
    "date": {"when": datetime.date(2026, 1, 1)},
    "key": {Path: 1},
    "function": lambda: 1,
}


class Keeping(Plain):
    """Adds something of its own to a checkpoint."""

    def __init__(self, part: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.part = part

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = PARTS[self.part]


class Odd(Plain):
    """Optimizes by itself, skips batches, or learns nothing by gradients; all of which Lightning allows."""

    def __init__(self, step: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.step = step
        self.automatic_optimization = step != "manual"

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.step == "skipping" and batch_idx % 3 == 1:
            return None
        loss = nn.functional.cross_entropy(self.network(batch.images), batch.targets)
        self.log("train/seen_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.targets))
        if self.step != "manual":
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    @override
    def on_train_epoch_end(self) -> None:
        pass

    @override
    def configure_optimizers(self) -> Any:
        return None if self.step == "none" else super().configure_optimizers()


class Drawing(Plain):
    """Draws random numbers of three kinds, in a step and before an epoch."""

    def __init__(self, network: nn.Module, optimizer: Any) -> None:
        super().__init__(network, optimizer)
        self.register_buffer("scale", torch.ones(()))

    @override
    def on_train_epoch_start(self) -> None:
        self.scale: Tensor = 1 + torch.rand(())

    @override
    def on_train_epoch_end(self) -> None:
        pass

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        kept = torch.rand(len(batch.targets)) < random.uniform(0.5, 1)
        noise = np.random.normal(0, 0.1, (len(batch.targets), 10))  # noqa: NPY002
        logits = self.network(batch.images) * self.scale + torch.as_tensor(noise, dtype=torch.float32)
        return nn.functional.cross_entropy(logits[kept], batch.targets[kept])


class Seldom(Plain):
    """Logs a value in every second epoch only, in training or in validation."""

    def __init__(self, metric: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.metric = metric

    def on_train_epoch_end(self) -> None:
        if not self.metric.startswith("val/"):
            self.log_seldom()

    def on_validation_epoch_end(self) -> None:
        if self.metric.startswith("val/"):
            self.log_seldom()

    def log_seldom(self) -> None:
        if self.current_epoch % 2 == 0:
            self.log(self.metric, 0.25 * (1 + self.current_epoch // 2))


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_parameters_of_a_loss_are_trained_and_kept(train: Train):
    folder = train(f"loss._target_={HERE}.Scaled")
    assert float(weights(folder)["loss.scale"]) != 1.0


def test_a_metric_is_in_history_metrics_and_evaluation_and_may_be_the_objective(train: Train):
    folder = train(f"+metrics.wrong._target_={HERE}.Wrong", "objective.metric=val/wrong", "objective.mode=min")
    metrics, rows = read(folder / "metrics.json"), history(folder)
    assert metrics["val/wrong"] == pytest.approx(1 - metrics["val/accuracy"])
    assert metrics["test/wrong"] == pytest.approx(1 - metrics["test/accuracy"])
    assert metrics["objective"] == min(float(row["val/wrong"]) for row in rows)
    content = evaluate(str(folder), figures=False, trusted=["tests"]).content
    assert content["metrics"]["wrong"] == metrics["test/wrong"]


def test_a_lightning_module_of_the_users_own_trains_and_is_recorded_with_what_it_logs(train: Train, tmp_path: Path):
    folder = train(
        f"classifier._target_={HERE}.Plain", "+classifier.weight=0.01", "callbacks.checkpoint.every_n_steps=3"
    )
    assert read(folder / "run.json")["status"] == "completed"
    assert {"val/accuracy", "test/accuracy"} <= set(read(folder / "metrics.json"))
    assert all(float(row["train/sharpness"]) > 0 for row in history(folder))
    content = evaluate(str(folder), figures=False, trusted=["tests"]).content
    assert content["metrics"]["accuracy"] == pytest.approx(read(folder / "metrics.json")["test/accuracy"])
    part = train(f"classifier._target_={HERE}.Plain", "+classifier.weight=0.01", "trainer.max_steps=5",
                 folder=tmp_path / "part")  # fmt: skip
    train(f"resume='{part}'", "trainer.max_steps=-1", "trusted=[tests]")
    assert [row["train/sharpness"] for row in history(part)] == [row["train/sharpness"] for row in history(folder)]


@pytest.mark.filterwarnings("ignore:Attribute 'network' is an instance:UserWarning")
def test_a_module_that_saves_its_hyperparameters_is_kept_without_what_no_reader_loads(train: Train):
    folder = train(f"classifier._target_={HERE}.Saving", "+classifier.weight=0.25")
    assert "test/accuracy" in read(folder / "metrics.json")
    for name in ("last", "best"):
        kept = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["hyper_parameters"]
        assert kept.keys() == {"weight", "config", "classes", "image_shape", "objects"}
        assert kept["weight"] == 0.25
    train(f"resume='{folder}'", "trainer.max_epochs=3", "trusted=[tests]")
    assert len(history(folder)) == 3
    evaluate(str(folder), figures=False, trusted=["tests"])


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("number", "numpy.float64 .* at mine.1"),
        ("date", "datetime.date .* at mine.when"),
        ("key", "type .* at a key of mine"),
        ("function", "function .* at mine"),
    ],
)
def test_what_no_reader_would_load_is_named_before_it_is_saved(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture, part: str, place: str
):
    with pytest.raises(SystemExit) as ended:
        train(f"classifier._target_={HERE}.Keeping", f"+classifier.part={part}")
    assert ended.value.code == 2
    assert re.search(f"{place}: save only tensors", capfd.readouterr().err)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:`training_step` returned:UserWarning")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned:UserWarning")
@pytest.mark.parametrize(
    ("step", "columns"), [("manual", []), ("skipping", ["lr", "train/loss"]), ("none", ["train/loss"])]
)
def test_a_step_without_a_loss_or_an_optimizer_is_recorded_as_far_as_it_goes(
    train: Train, tmp_path: Path, step: str, columns: list[str]
):
    own = [f"classifier._target_={HERE}.Odd", f"+classifier.step={step}"]
    folder = train(*own, folder=tmp_path / "whole", figures=True)
    part = train(*own, "trainer.max_steps=5", folder=tmp_path / "part")
    train(f"resume='{part}'", "trainer.max_steps=-1", "trusted=[tests]")
    rows = history(folder)
    recorded = ("lr", "train/loss", "train/seen_loss", "val/accuracy")
    assert [[row[name] for name in recorded] for row in history(part)] == [
        [row[name] for name in recorded] for row in rows
    ]
    for row in rows:
        for name in ("lr", "train/loss"):
            assert (row[name] not in ("", "nan")) == (name in columns or (step, name) == ("manual", "lr"))
        if row["train/loss"]:
            assert float(row["train/loss"]) == pytest.approx(float(row["train/seen_loss"]))
        assert float(row["images_per_second"]) > 0
    left, right = weights(folder), weights(part)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stop", [4, 10])
def test_random_numbers_of_a_users_own_step_are_drawn_again_by_a_resumed_run(train: Train, tmp_path: Path, stop: int):
    own = [f"classifier._target_={HERE}.Drawing", "model.dropout=0.5"]
    whole = train(*own, folder=tmp_path / "whole")
    part = train(*own, f"trainer.max_steps={stop}", folder=tmp_path / "part")
    random.seed(stop)
    np.random.seed(stop)  # noqa: NPY002
    train(f"resume='{part}'", "trainer.max_steps=-1", "trusted=[tests]")
    left, right = weights(whole), weights(part)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("metric", ["val/score", "train/score", "score"])
def test_the_best_state_is_one_whose_own_epoch_logged_the_objective(train: Train, metric: str):
    folder = train(
        f"classifier._target_={HERE}.Seldom", f"+classifier.metric={metric}", f"objective.metric={metric}",
        "objective.mode=max", "trainer.max_epochs=4",
    )  # fmt: skip
    assert read(folder / "run.json")["best"] == {"epoch": 2, "step": 30, "metric": metric, "value": 0.5}
    assert read(folder / "metrics.json")["objective"] == read(folder / "metrics.json")[metric] == 0.5
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 2
    assert [row[metric] for row in history(folder)] == ["0.25", "", "0.5", ""]


def test_what_it_logs_over_an_epoch_survives_a_stop_inside(train: Train, tmp_path: Path):
    options = [f"classifier._target_={HERE}.Plain", "callbacks.dashboard=null"]
    whole = train(*options, folder=tmp_path / "whole")
    names = [name for name in history(whole)[0] if name.startswith("train/")]
    assert {f"train/{name}" for name in ("sharpness", "sharpest", "softest", "sharp", "wrong", "seen")} <= set(names)
    assert [row["train/seen"] for row in history(whole)] == ["320.0", "320.0"]
    assert [row["train/first"] for row in history(whole)] == ["1.0", ""]
    for stop in (4, 8, 9, 10):  # the small run has 10 batches an epoch
        run = tmp_path / f"run-{stop}"
        with pytest.raises(SystemExit):
            train(*options, f"+callbacks.stop={{_target_: tests.test_train.StopAt, step: {stop}}}", folder=run)
        train(f"resume='{run}'", "trusted=[tests]")
        for row, expected in zip(history(run), history(whole), strict=True):
            assert {name: row[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_module_without_a_network_says_what_the_verb_needs(train: Train):
    folder = train(f"classifier._target_={HERE}.Headless", "data.val_size=0", "objective.metric=train/loss")
    with pytest.raises(ConfigError, match=r"self\.network"):
        evaluate(str(folder), figures=False, trusted=["tests"])


def test_distillation_with_no_share_of_the_teacher_is_plain_training(train: Train, trained: Path, tmp_path: Path):
    plain = train(folder=tmp_path / "plain")
    student = train(
        "classifier=distillation", f"classifier.teacher='{trained}'", "classifier.share=0", folder=tmp_path / "student"
    )
    assert weights(plain).keys() == weights(student).keys()  # the teacher is no part of the checkpoint
    assert all(torch.equal(value, weights(student)[name]) for name, value in weights(plain).items())


def test_a_student_comes_close_to_its_teacher(train: Train, trained: Path, tmp_path: Path):
    options = ["classifier=distillation", f"classifier.teacher='{trained}'", "trainer.max_epochs=4"]
    distances = []
    for share in ("0", "1"):
        folder = train(*options, f"classifier.share={share}", folder=tmp_path / share)
        answers = [evaluate(str(run), figures=False).predicted for run in (folder, trained)]
        distances.append(float((answers[0] != answers[1]).mean()))
    assert distances[1] < distances[0]


@pytest.mark.slow
def test_a_plateau_lowers_the_learning_rate_when_nothing_improves_also_after_a_resume(train: Train, tmp_path: Path):
    """Lightning saves an epoch before such a schedule has stepped, and leaves its step out of a resumed epoch."""
    options = ["schedule=plateau", "schedule.patience=0", "schedule.threshold=10", "schedule.factor=0.5"]
    folder = train(*options, "trainer.max_epochs=4")
    rates = [float(row["lr"]) for row in history(folder)]
    assert rates[0] == rates[1] == 0.01
    assert rates[-1] < rates[1]
    for name, stopped in (("between", "trainer.max_epochs=2"), ("within", "trainer.max_steps=15")):
        part = train(*options, stopped, "callbacks.checkpoint.every_n_steps=3", folder=tmp_path / name)
        train(f"resume='{part}'", "trainer.max_epochs=4", "trainer.max_steps=-1")
        assert [float(row["lr"]) for row in history(part)] == rates
        assert all(torch.equal(value, weights(part)[key]) for key, value in weights(folder).items())


def test_a_scheduler_of_torchs_steps_every_epoch(train: Train):
    folder = train("schedule._target_=torch.optim.lr_scheduler.ExponentialLR", "+schedule.gamma=0.5")
    assert [float(row["lr"]) for row in history(folder)] == [0.01, 0.005]


def test_imbalance_is_told_and_balanced_weights_are_its_answer(train: Train, tmp_path: Path):
    images, labels = drawn(300, 10, seed=0)
    keep = (labels.ravel() < 9) | (np.arange(len(labels)) < 20)
    path = tmp_path / "odd.npz"
    np.savez(path, X_train=images[keep], y_train=labels[keep], X_test=images, y_test=labels)
    options = [f"data.path='{path}'", "data.val_size=0", "objective.metric=test/accuracy", "trainer.max_epochs=1"]
    assert "loss.class_weights=balanced" in (train(*options, folder=tmp_path / "plain") / "train.log").read_text()
    balanced = train(*options, "loss.class_weights=balanced", folder=tmp_path / "balanced")
    assert "accuracy will hide" not in (balanced / "train.log").read_text()
