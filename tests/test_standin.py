"""Training on a GPU, on a stand-in for one: see `tests/standin`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import standin
from tests.conftest import ROOT
from tests.standin import cases

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: pytest -m gpu"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has a CUDA of its own"),
    pytest.mark.skipif(standin.compiler() is None, reason="no C++ compiler for the stand-in GPU: install g++"),
]

WAITING = ("gradient_clip_val=1,16-mixed",)


def run(kind: str, npz: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Run the cases of a kind in a process of its own: PyTorch asks for CUDA's hooks once."""
    result = tmp_path / f"{kind}.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.standin.trials", str(npz), str(result), kind],
        cwd=ROOT, capture_output=True, text=True, env=standin.environment(0) | {"STANDIN": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize("kind", ["options", "crossed"])
def test_a_gpu_trains_to_the_bits_of_the_cpu_and_no_step_waits_for_it(npz: Path, tmp_path: Path, kind: str):
    results = run(kind, npz, tmp_path)
    assert set(results) == set(cases.options() if kind == "options" else cases.CROSSED)
    for name, result in results.items():
        assert "error" not in result, f"{name}: {result['traceback']}"
        assert result["steps"] >= 3, name
        assert result["moved"] > 0, name
        assert not result["waits"], f"{name}: {result['waits']}"
        if name not in NOT_TO_THE_BIT:
            assert not result["different"], f"{name}: {result['different']}"
            assert all(ours == theirs for ours, theirs in result["metrics"].values()), f"{name}: {result['metrics']}"
