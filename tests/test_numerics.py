"""Faster ways to compute the same: their losses are those of the plain way; and a recipe keeps its word."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cnnlab.checkpoint import read_checkpoint
from tests.conftest import ROOT, Train, read, run_process


def losses(folder: Path) -> Tensor:
    """Return the loss of every training step of a run."""
    callbacks = read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]
    return callbacks["History"]["losses"]


def test_mixed_precision_follows_float32(train: Train, tmp_path: Path):
    plain = losses(train(folder=tmp_path / "plain"))
    mixed = losses(train("trainer.precision=bf16-mixed", folder=tmp_path / "mixed"))
    assert len(plain) == 20
    assert not torch.equal(plain, mixed)  # or it would not have been on
    assert torch.allclose(plain, mixed, atol=0.02)  # bfloat16 has 8 bits, the losses begin at 2.3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own
@pytest.mark.parametrize(
    ("model", "precision", "tolerance"),
    [("resnet20", "32-true", 1e-3), ("speednet", "bf16-mixed", 0.02)],
)
def test_a_compiled_network_follows_the_eager_one(
    model: str, precision: str, tolerance: float, train: Train, tmp_path: Path
):
    config = [f"model={model}", f"trainer.precision={precision}", "trainer.max_epochs=1"]
    eager = losses(train(*config, folder=tmp_path / "eager"))
    compiled = losses(train(*config, "model.compile=true", folder=tmp_path / "compiled"))
    assert torch.allclose(eager, compiled, atol=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quickstart_reaches_what_its_header_says(tmp_path: Path):
    header = (ROOT / "conf" / "experiment" / "quickstart.yaml").read_text()
    (mean, deviation), *_ = re.findall(r"test ([\d.]+) ± ([\d.]+) \(n=3", header)
    run_process("experiment=quickstart", "seed=3", f"hydra.run.dir='{tmp_path}/run'", cwd=tmp_path)
    found = read(tmp_path / "run" / "metrics.json")["test/accuracy"]
    # A fourth seed lies within four standard deviations, known from three, unless something has changed.
    assert abs(found - float(mean)) < 4 * float(deviation)
