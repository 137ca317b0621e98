"""What a run reports is so: the state that is tested, the best epoch, and the same bits under every limit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, callbacks
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from typing_extensions import override

from cnnlab import Classifier, ConvNet, ImageData, build, normalised, patches
from cnnlab.callbacks import EMA, Checkpoint
from cnnlab.checkpoint import read_checkpoint
from cnnlab.errors import ConfigError
from cnnlab.evaluation import evaluate
from cnnlab.metrics import SplitMetrics
from cnnlab.probe import probe
from tests.conftest import Train, read
from tests.prove.resume import compare, rows
from tests.prove.truth import everything
from tests.test_callbacks import Walk

FAST = ["callbacks.dashboard=null"]
STOP = "+callbacks.stop={{_target_: tests.test_train.StopAt, step: {step}, signum: 15}}"


def interrupted(train: Train, folder: Path, *options: str, step: int) -> Path:
    """Train with a SIGTERM in a step."""
    with pytest.raises(SystemExit) as ended:
        train(*FAST, *options, STOP.format(step=step), folder=folder)
    assert ended.value.code == 143
    return folder


def same_but_for_the_signal(one: Path, two: Path) -> str:
    first, second = everything(one), everything(two)
    for outcome in (first, second):
        for name in ("stop", "explode"):
            outcome["config"]["config"]["callbacks"].pop(name, None)
    return compare(first, second)


# The small run has 10 batches an epoch.
@pytest.mark.parametrize(
    ("limits", "step"),
    [
        (["trainer.max_epochs=-1", "trainer.max_steps=13"], 12),
        (["trainer.max_epochs=3", "trainer.max_steps=1000"], 9),
        pytest.param(["trainer.max_epochs=3", "trainer.max_steps=20"], 9, marks=pytest.mark.slow),
        pytest.param(
            ["trainer.max_epochs=2", "trainer.min_steps=15", "trainer.limit_train_batches=7"], 8, marks=pytest.mark.slow
        ),
        (["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"], 11),
        (["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=7"], 8),
        pytest.param(["trainer.max_epochs=2", "trainer.precision=64-true"], 4, marks=pytest.mark.slow),
        pytest.param(
            ["trainer.max_epochs=2", "objective.metric=train/loss", "objective.mode=min"], 12, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_interrupted_run_reports_what_it_would_have_under_every_limit(
    train: Train, tmp_path: Path, limits: list[str], step: int
):
    whole = train(*FAST, *limits, folder=tmp_path / "whole")
    resumed = interrupted(train, tmp_path / "resumed", *limits, step=step)
    train(f"resume='{resumed}'", "trusted=[tests]", folder=resumed)
    assert not same_but_for_the_signal(whole, resumed)
    assert [int(row["epoch"]) for row in rows(resumed)] == list(range(len(rows(whole))))


def test_an_epoch_that_max_steps_cut_short_is_taken_up_again(train: Train, tmp_path: Path):
    whole = train(*FAST, "trainer.max_epochs=-1", "trainer.max_steps=23", folder=tmp_path / "whole")
    longer = train(*FAST, "trainer.max_epochs=-1", "trainer.max_steps=13", folder=tmp_path / "longer")
    train(f"resume='{longer}'", "trainer.max_steps=23", folder=longer)
    assert not compare(rows(whole), rows(longer))
    states = [read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (whole, longer)]
    assert not compare(*states)


@pytest.mark.parametrize("steps", [7, 13])
def test_the_state_that_max_steps_ends_with_is_validated(train: Train, tmp_path: Path, steps: int):
    folder = train(
        *FAST, "trainer.max_epochs=-1", f"trainer.max_steps={steps}", "objective.metric=val/loss",
        "optimizer.lr=0.001", folder=tmp_path / "run",
    )  # fmt: skip
    record, last = read(folder / "run.json"), rows(folder)[-1]
    assert int(last["step"]) == steps
    assert float(last["val/loss"]) == read(folder / "metrics.json")["objective"] == record["best"]["value"]
    assert record["best"]["step"] == steps, "the loss falls, so that the last state is the best"


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_precision_auto_is_recorded_as_what_it_stood_for(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_bfloat16: bool,
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    options = [*FAST, "trainer.precision=auto", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    folder = train(*options, folder=tmp_path / "run")
    content = read_checkpoint(folder / "checkpoints/last.ckpt")
    named = "bf16-mixed" if has_bfloat16 else "32-true"
    assert content["hyper_parameters"]["config"]["trainer"]["precision"] == named
    assert read(folder / "run.json")["precision"] == named
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not has_bfloat16)
    metrics = evaluate(str(folder), figures=False).content["metrics"]
    assert metrics["loss"] == read(folder / "metrics.json")["test/loss"]
    with pytest.raises(SystemExit) as ended:
        train(f"resume='{folder}'", "trainer.max_epochs=2", folder=folder)
    assert ended.value.code == 2
    assert f"trained in {named}" in capsys.readouterr().err


class KillInTest(Callback):
    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_early_stopping_is_remembered_and_can_be_given_more_patience(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    early = [
        "callbacks=[default,early_stopping]", "callbacks.early_stopping.min_delta=0.9", "trainer.max_epochs=5", *FAST,
    ]  # fmt: skip
    folder = tmp_path / "stopped"
    with pytest.raises(SystemExit):
        train(
            *early, "callbacks.early_stopping.patience=1", "+callbacks.kill._target_=tests.test_truth.KillInTest",
            folder=folder,
        )  # fmt: skip
    assert len(rows(folder)) == 2
    assert (
        "early stopping after epoch 2: Monitored metric val/accuracy did not improve"
        in (folder / "train.log").read_text()
    )
    monkeypatch.setattr(KillInTest, "on_test_start", Callback.on_test_start)
    train(f"resume='{folder}'", "trusted=[tests]", folder=folder)
    assert len(rows(folder)) == 2, "there was nothing left to train"
    assert read(folder / "run.json")["status"] == "completed"
    whole = train(*early, "callbacks.early_stopping.patience=2", folder=tmp_path / "whole")
    train(
        f"resume='{folder}'", "trusted=[tests]", "callbacks.early_stopping.patience=2", "trainer.max_epochs=6",
        folder=folder,
    )  # fmt: skip
    assert len(rows(folder)) == len(rows(whole)) == 3


@pytest.mark.parametrize(
    "options",
    [
        ["callbacks=[default,ema]"], ["callbacks=[default,ema,lookahead]", "data.val_size=0"],
        ["+callbacks.average._target_=pytorch_lightning.callbacks.EMAWeightAveraging"],
        ["+callbacks.average._target_=pytorch_lightning.callbacks.WeightAveraging"],
        ["trainer.precision=bf16-true"], ["trainer.precision=64-true"],
    ],
)  # fmt: skip
def test_what_was_tested_is_what_evaluate_reads(train: Train, options: list[str]):
    objective = ["objective.metric=train/loss"] if "data.val_size=0" in options else []
    folder = train(*FAST, *options, *objective)
    metrics = evaluate(str(folder), figures=False).content["metrics"]
    assert metrics == {name[5:]: value for name, value in read(folder / "metrics.json").items() if name[:5] == "test/"}


def test_an_average_is_its_recursion_with_a_warm_up(tmp_path: Path):
    patches.install()
    module, average = Walk(), EMA(0.9)
    trainer = Trainer(
        max_steps=30, callbacks=[average], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, [torch.zeros(1)] * 100)
    expected = 0.0
    for step in range(1, 31):
        decay = min(0.9, (1 + step) / (10 + step))
        expected += (1 - decay) * (step - expected)
    assert module.weight.item() == pytest.approx(expected, abs=1e-12)
    assert 30 - expected < 10, "without a warm-up it would lag behind by the whole beginning"


def test_the_best_epoch_is_named_and_ties_go_to_the_lower_loss_then_to_the_later_one(train: Train):
    folder = train(*FAST, "trainer.max_epochs=3")
    record, best = read(folder / "run.json"), read(folder / "run.json")["best"]
    assert best.keys() == {"epoch", "step", "metric", "value"}
    assert (
        best["value"]
        == read(folder / "metrics.json")["objective"]
        == float(rows(folder)[best["epoch"]]["val/accuracy"])
    )
    assert f"best    epoch {best['epoch'] + 1}, step {best['step']}, val/accuracy" in (folder / "train.log").read_text()
    assert record["status"] == "completed"
    checkpoint = Checkpoint("val/accuracy", "max")
    checkpoint.best_score, checkpoint.best_metrics = 0.5, {"val/loss": 1.0}
    cases = {(0.6, 9.0): True, (0.5, 0.9): True, (0.5, 1.0): True, (0.5, 1.1): False, (0.4, 0.1): False}
    for (score, loss), improves in cases.items():
        assert checkpoint._improves(score, loss) == improves, (score, loss)


def test_a_second_checkpoint_callback_that_comes_first_changes_nothing_of_ours(
    train: Train, monkeypatch: pytest.MonkeyPatch
):
    build_list = build.build_list

    def with_another(cfg: Any, group: str, **offered: Any) -> list[Any]:
        first = [callbacks.ModelCheckpoint()] if group == "callbacks" else []
        return [*first, *build_list(cfg, group, **offered)]

    monkeypatch.setattr(build, "build_list", with_another)
    folder = train(*FAST, "trainer.max_epochs=1")
    assert read(folder / "run.json")["best"]["epoch"] == 0
    assert "no checkpoint was kept" not in (folder / "train.log").read_text()


class Explode(Callback):
    """Let the weights grow for a few steps until a loss is no number, as long as the learning rate is above a bound.

    Args:
        signalled: Whether a signal comes among these steps, before the run is resumed.
    """

    def __init__(self, signalled: bool) -> None:
        self.signalled = signalled

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: object) -> None:
        if trainer.global_step >= 14 and trainer.optimizers[0].param_groups[0]["lr"] > 0.006:
            for parameter in pl_module.parameters():
                parameter.data.mul_(1.1 if trainer.global_step < 17 else float("inf"))
            if self.signalled and trainer.global_step == 15 and not trainer.ckpt_path:
                os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_the_weights_blow_up_does_not_use_up_the_rollbacks(train: Train, tmp_path: Path):
    def options(signalled: str) -> list[str]:
        explode = f"+callbacks.explode={{_target_: tests.test_truth.Explode, signalled: {signalled}}}"
        return [*FAST, explode, "on_divergence=rollback", "optimizer.lr=0.01"]

    whole = train(*options("false"), folder=tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(SystemExit) as ended:
        train(*options("true"), folder=stopped)
    assert ended.value.code == 143
    assert read_checkpoint(stopped / "checkpoints" / "last.ckpt")["global_step"] == 15
    train(f"resume='{stopped}'", "trusted=[tests]", folder=stopped)
    assert read(stopped / "run.json")["rollbacks"] == read(whole / "run.json")["rollbacks"] == 1
    assert not same_but_for_the_signal(whole, stopped)


class Wrong(nn.Module):
    """A network with a mistake."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 1 if kind == "one" else 1000 if kind == "many" else 5)

    @override
    def forward(self, images: torch.Tensor) -> Any:
        logits = self.head(self.norm(images.float().mean((2, 3))[:, : 2 if self.kind == "fails" else 3]))
        return (logits, logits) if self.kind == "tuple" else logits.argmax(1) if self.kind == "classes" else logits


@pytest.mark.parametrize(
    ("kind", "told"),
    [("one", r"\(2, 1\)"), ("many", r"\(2, 1000\)"), ("tuple", "a tuple"), ("classes", r"\(2,\)"),
     ("fails", "does not take images of 8 × 8 × 3")],
)  # fmt: skip
def test_a_wrong_network_is_told_before_the_run_begins(kind: str, told: str):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=told):
        probe(Wrong(kind), images, 5, last_batch=2)


def test_a_probe_leaves_everything_as_it_was_and_knows_of_a_last_batch_of_one():
    network, images = Wrong("right"), torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    network.norm.eval()
    before, random = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    probe(network, images, 5, last_batch=2)
    assert not compare(before, dict(network.state_dict()))
    assert torch.equal(random, torch.get_rng_state())
    assert (network.training, network.norm.training) == (True, False)
    with pytest.raises(ConfigError, match=r"data\.drop_last=true"):
        probe(network, images, 5, last_batch=1)


REFUSED = {
    "BatchSizeFinder": "", "LearningRateFinder": "", "BackboneFinetuning": "",
    "ModelPruning": ", pruning_fn: l1_unstructured", "StochasticWeightAveraging": ", swa_lrs: 0.1",
    "GradientAccumulationScheduler": ", scheduling: {0: 2}",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_callbacks_whose_result_would_not_be_recorded_are_refused_by_name(
    train: Train, capsys: pytest.CaptureFixture, name: str
):
    with pytest.raises(SystemExit) as refused:
        train(f"+callbacks.x={{_target_: pytorch_lightning.callbacks.{name}{REFUSED[name]}}}")
    assert refused.value.code == 2
    assert f"callbacks: {name} " in capsys.readouterr().err


def test_other_callbacks_of_lightnings_work_and_a_profilers_table_is_kept(train: Train):
    names = ("LearningRateMonitor", "ModelSummary")
    others = [f"+callbacks.{name.lower()}._target_=pytorch_lightning.callbacks.{name}" for name in names]
    assert all(hasattr(callbacks, name) for name in names)
    folder = train(*FAST, *others, "trainer.max_epochs=1", "trainer.profiler=simple")
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text()
    assert "run_training_batch" in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.val_check_interval=50"], "trainer.val_check_interval=50 must be at most 10"),
        (["schedule=cosine", "trainer.max_epochs=-1", "trainer.max_time='00:00:00:09'"], "length is not known"),
        (["callbacks=[default,lookahead]", "trainer.max_epochs=-1", "trainer.max_time='00:00:00:09'"],
         "callbacks.lookahead follows"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_do_is_told_before_its_first_step(
    train: Train, capsys: pytest.CaptureFixture, overrides: list[str], told: str
):
    with pytest.raises(SystemExit) as refused:
        train(*overrides)
    assert refused.value.code == 2
    assert told in capsys.readouterr().err


def test_frozen_norms_keep_their_statistics(train: Train, tmp_path: Path):
    frozen = train(
        *FAST, "callbacks=[default,freeze]", "callbacks.freeze.parameters=['body.head.norm2.*']", "trainer.max_epochs=1"
    )
    state = read_checkpoint(frozen / "checkpoints/last.ckpt")["state_dict"]
    assert torch.equal(state["network.body.head.norm2.running_mean"], torch.zeros(16))
    assert int(state["network.body.head.norm2.num_batches_tracked"]) == 0


def test_metrics_are_float32_in_every_precision():
    metrics = SplitMetrics(3).to(torch.bfloat16)
    torch.set_default_dtype(torch.float64)
    try:
        metrics.update(torch.eye(3, dtype=torch.float32), torch.arange(3))
        values = metrics.compute()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in values.values()} == {torch.float32}


def test_from_python_the_test_returns_its_metrics_and_a_prediction_the_logits(npz: Path, tmp_path: Path):
    patches.install()
    data = ImageData(npz, val_size=80, batch_size=32)
    network = normalised(
        ConvNet(3, 10, (32, 32), channels=[4], kernel_size=5, batch_norm=False, hidden=[]), data.mean, data.std
    )
    module = Classifier(network, 10, optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.01))
    trainer = Trainer(
        max_epochs=1, default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", enable_checkpointing=False, logger=TensorBoardLogger(tmp_path),
    )  # fmt: skip
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    logits = torch.cat(trainer.predict(module, data))  # type: ignore[arg-type]
    assert tested["test/accuracy"] == pytest.approx(float((logits.argmax(1) == data.labels("test")).float().mean()))
    board = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    assert {"val/accuracy", "test/loss"} <= set(board.Tags()["scalars"])
