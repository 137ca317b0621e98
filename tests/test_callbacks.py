"""Lookahead, frozen parameters, and another run's weights as a beginning."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from cnnlab import patches
from cnnlab.callbacks import Lookahead, progress
from cnnlab.checkpoint import read_checkpoint
from cnnlab.config import preflight
from cnnlab.errors import ConfigError
from tests.conftest import Train, read


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]


class Walk(LightningModule):
    """One weight that goes one up in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: list[float] = []

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(self.weight.item())
        return -self.weight.sum()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)


@dataclass
class Counting(Callback):
    """A callback of a user's own, written as a dataclass."""

    every: int = 2
    seen: ClassVar[list[int]] = []

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.every == 0:
            self.seen.append(batch_idx)


def test_a_callback_may_be_a_dataclass(train: Train):
    Counting.seen.clear()
    train("+callbacks.counting={_target_: tests.test_callbacks.Counting, every: 3}", "trainer.max_epochs=1")
    assert Counting.seen == [0, 3, 6, 9]


def test_lookahead_is_its_recursion(tmp_path: Path):
    patches.install()
    module, steps, every = Walk(), 23, 5
    trainer = Trainer(
        max_steps=steps, callbacks=[Lookahead(every, momentum=0.9)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, [torch.zeros(1)] * 100)
    slow = fast = 0.0
    seen = []
    for step in range(1, steps + 1):
        seen.append(fast)
        fast += 1
        if step == steps:
            fast = slow
        elif step % every == 0:
            slow += (1 - 0.9**every * (step / steps) ** 3) * (fast - slow)
            fast = slow
    assert module.seen == pytest.approx(seen, abs=1e-12)
    assert module.weight.item() == pytest.approx(slow, abs=1e-12)


class Raise(Callback):
    """Break the run off before a step."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 15 and not trainer.ckpt_path:
            raise RuntimeError("planted")


@pytest.mark.parametrize("callback", ["lookahead", "freeze"])
def test_an_interrupted_run_goes_on_to_the_same_bits(train: Train, tmp_path: Path, callback: str):
    options = [
        f"callbacks=[default,{callback}]", "+callbacks.raise._target_=tests.test_callbacks.Raise",
        "callbacks.checkpoint.every_n_steps=4", "model=speednet", "model.channels=[4,8]", "init=[dirac,whiten]",
        "optimizer.lr=0.01", "optimizer.norm_bias_factor=4",
        "callbacks.lookahead.every_n_steps=3" if callback == "lookahead" else "callbacks.freeze.until_epoch=1",
    ]  # fmt: skip
    if callback == "freeze":
        options.append("callbacks.freeze.parameters=[body.groups.*]")
    with pytest.raises(SystemExit):
        train(*options, folder=tmp_path / "cut")
    train(f"resume='{tmp_path / 'cut'}'", "trusted=[tests]")
    options.remove("+callbacks.raise._target_=tests.test_callbacks.Raise")
    whole, resumed = weights(train(*options, folder=tmp_path / "whole")), weights(tmp_path / "cut")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_frozen_parameters_stay_for_the_epochs_asked(train: Train, tmp_path: Path):
    freeze = ["callbacks=[default,freeze]", "callbacks.freeze.parameters=['body.features.*','!*.conv1.bias']"]
    begun = weights(train("trainer.max_epochs=1", "optimizer.lr=1e-30", "optimizer.momentum=0.5"))
    frozen = weights(train(*freeze, "trainer.max_epochs=2", folder=tmp_path / "frozen"))
    thawed = weights(train(*freeze, "callbacks.freeze.until_epoch=1", folder=tmp_path / "thawed"))
    for name in begun:
        if name.endswith(("weight", "bias")) and "norm" not in name:
            stays = "features" in name and not name.endswith("conv1.bias")
            assert torch.equal(begun[name], frozen[name]) == stays, name
            assert not torch.equal(begun[name], thawed[name]), name


def test_freezing_nothing_is_refused(train: Train, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        train("callbacks=[default,freeze]", "callbacks.freeze.parameters=[body.nothing.*]")
    assert stop.value.code == 2
    assert "fits no trained parameter: body.features.conv1.weight" in capsys.readouterr().err


def test_a_run_begins_with_another_ones_weights_and_a_new_head(train: Train, tmp_path: Path, npz: Path):
    first = train("trainer.max_epochs=1", folder=tmp_path / "first")
    still = ["optimizer.lr=1e-30", "optimizer.momentum=0.5", "trainer.max_epochs=1"]
    same = train(f"init_from='{first}'", *still, folder=tmp_path / "same")
    for name, value in weights(first, "best").items():
        if "norm" not in name:
            assert torch.equal(value, weights(same)[name]), name
    more = train(f"resume='{same}'", "trainer.max_epochs=2", folder=same)
    assert read(more / "run.json")["status"] == "completed"
    other = train(f"init_from='{first}'", "model.hidden=[120,30]", "seed=5", *still, folder=tmp_path / "other")
    log = (other / "train.log").read_text()
    assert "new: body.head.linear2.weight, body.head.linear2.bias, body.head.linear3.weight" in log
    assert torch.equal(
        weights(first, "best")["network.body.features.conv1.weight"],
        weights(other)["network.body.features.conv1.weight"],
    )


def test_the_transfer_recipe_trains_a_new_head_for_as_many_other_classes(train: Train, tmp_path: Path, npz: Path):
    first = train("trainer.max_epochs=1", folder=tmp_path / "first")
    with np.load(npz) as arrays:
        other = {**arrays, "classes": np.array([f"kind {label}" for label in range(10)])}
    np.savez(tmp_path / "other.npz", **other)
    recipe = ["experiment=transfer", f"data.path='{tmp_path}/other.npz'", "trainer.max_epochs=1"]
    second = train(f"init_from='{first}'", *recipe, folder=tmp_path / "second")
    begun, trained = weights(first, "best"), weights(second)
    for name in begun:
        if name.endswith(("weight", "bias")):
            assert torch.equal(begun[name], trained[name]) == ("features" in name), name
    assert "new: body.head.linear3.weight, body.head.linear3.bias" in (second / "train.log").read_text()
    with pytest.raises(ConfigError, match="init_from must be a run"):
        preflight(recipe)


def test_weights_of_another_network_are_refused(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture):
    first = train("trainer.max_epochs=1", folder=tmp_path / "first")
    with pytest.raises(SystemExit) as stop:
        train(f"init_from='{first}'", "model=resnet20", folder=tmp_path / "second")
    assert stop.value.code == 4
    assert "no weight fits" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["true", "default", "reduce-overhead", "max-autotune"])
def test_logits_of_a_captured_network_are_kept_though_each_step_overwrites_the_last(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
):
    """A CUDA graph writes its result where it wrote the last one: so does this stand-in for a compiled network."""
    modes = []

    def capture(network: torch.nn.Module, mode: str | None = None) -> None:
        modes.append(mode)
        forward = network._call_impl
        written: list[Tensor] = []

        def replay(images: Tensor) -> Tensor:
            if mode in ("reduce-overhead", "max-autotune"):
                for logits in written:
                    logits.data.zero_()
            written[:] = [forward(images)]
            return written[0]

        monkeypatch.setattr(network, "_compiled_call_impl", replay)  # as torch's own `compile` does

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    plain = train(folder=tmp_path / "plain")
    captured = train(f"model.compile={mode}", folder=tmp_path / "captured")
    assert modes == [None if mode == "true" else mode]
    columns = [
        [row.split(",")[:7] for row in (folder / "history.csv").read_text().splitlines()]
        for folder in (plain, captured)
    ]
    assert columns[0] == columns[1]


def test_an_epoch_that_takes_long_says_so_in_a_log_now_and_then(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quick = train("trainer.max_epochs=1")
    assert "of the epoch" not in (quick / "train.log").read_text()
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    log = (train("data.batch_size=2", folder=tmp_path / "slow") / "train.log").read_text()
    assert re.search(r"epoch 2/2, \d+ s left, loss [\d.]+, .*[\d,]+ images/s, \d+ s of the epoch", log)
