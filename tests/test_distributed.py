"""Two processes on the CPU."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from cnnlab.checkpoint import network_weights, read_checkpoint
from tests.conftest import Train, read, run_process


class Conversation(Callback):
    """Check that a process says nothing to the others but its gradients in seven steps, and waits for no answer."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 2:  # after the first batch it is asked whether a save is due
            for name in ("broadcast", "all_reduce", "barrier", "all_gather", "broadcast_object_list"):
                setattr(torch.distributed, name, self._noting(name, getattr(torch.distributed, name)))
        elif trainer.global_step == 9:
            assert not self.calls, self.calls
            self.calls = ["done"]

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            return function(*arguments, **options)

        return call

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.calls[0] == "done"


def losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in ("train/loss", "val/loss")]


def test_two_processes_train_as_one_with_the_same_global_batch(small: list[str], train: Train, tmp_path: Path):
    # No batch norm: each process normalises with its own half of the batch.
    common = ["model.batch_norm=false", "trainer.accelerator=cpu"]
    two = tmp_path / "two"
    one = train(*common, "data.batch_size=32", folder=tmp_path / "one")
    double = run_process(
        *small, *common, "data.batch_size=16", "trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={two}",
        "+callbacks.conversation._target_=tests.test_distributed.Conversation",
    )  # fmt: skip
    assert double.returncode == 0, double.stderr
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    assert read(two / "metrics.json")["test/accuracy"] == pytest.approx(
        read(one / "metrics.json")["test/accuracy"], abs=0.02
    )
    assert read(two / "run.json")["status"] == "completed"
    assert (two / "figures" / "confusion_matrix.png").is_file()
    # With two processes a step would be twice as large, and the place in the epoch another one.
    more = run_process(f"resume={one}", "trainer.max_epochs=3", "trainer.devices=2", "trainer.strategy=ddp")
    assert more.returncode == 2
    assert "a step of this run sees 32 images, data.batch_size=32 on 1 device; here it would see 64" in more.stderr
    assert read(one / "run.json")["status"] == "completed"


@pytest.mark.slow
def test_frozen_parameters_stay_as_they_are_and_the_others_are_trained(small: list[str], train: Train, tmp_path: Path):
    """Processes wait for the gradients of all parameters, also where the optimizer is to leave some alone."""
    options = [
        "model.batch_norm=false", "trainer.accelerator=cpu", "callbacks=[default,freeze]",
        "callbacks.freeze.from_epoch=1", "callbacks.freeze.parameters=[body.features.*]",
    ]  # fmt: skip
    one, two = train(*options, folder=tmp_path / "one"), tmp_path / "two"
    run = run_process(
        *small, *options, "data.batch_size=16", "trainer.devices=2", "callbacks.figures=null", f"hydra.run.dir={two}"
    )
    assert run.returncode == 0, run.stderr
    weights = [network_weights(read_checkpoint(folder / "checkpoints" / "last.ckpt")) for folder in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_bias_that_is_trained_for_some_epochs_only_is_so_on_two_processes(small: list[str], tmp_path: Path):
    """SpeedNet's whitening layer, in the recipes of airbench."""
    folder = tmp_path / "run"
    run = run_process(
        *small, "model=speednet", "callbacks=[default,whiten_bias]", "callbacks.whiten_bias.from_epoch=1",
        "trainer.accelerator=cpu", "data.batch_size=16", "trainer.devices=2", "trainer.max_epochs=2",
        "callbacks.figures=null", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, last = (
        network_weights(read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")) for name in ("previous", "last")
    )
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert "body.whiten.bias" in first
    assert "body.whiten.bias" not in moved
    assert len(moved) > 5
