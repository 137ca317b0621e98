"""The proofs in short, and in the length that CI has time for; `python -m tests.prove` runs them in full."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def prove(*arguments: str, timeout: float) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "tests.prove", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_proofs_about_resuming_hold_at_a_glance():
    printed = prove("glance", timeout=280)
    assert all(name in printed for name in ("resume", "signals", "truth"))
    assert "BROKEN" not in printed


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(
    "arguments",
    [
        ["resume", "--kills", "40"],
        ["signals", "--each", "10"],
        ["faults", "--damages", "4000"],
        ["hostile"],
        ["truth", "--draws", "20"],
        ["budget", "--kills", "20"],
        ["deadlines", "--runs", "6"],
    ],
)
def test_each_proof_holds(arguments: list[str]):
    prove(*arguments, timeout=1500)
