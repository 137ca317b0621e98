"""What the machine is said to have."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnnlab import machine

LINE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "version"
    path.write_text(LINE)
    monkeypatch.setattr(machine, "DRIVER", str(path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("cuda", "visible", "texts"),
    [
        (None, None, ["driver 535.104.05 is there", "built without CUDA", "pytorch.org/get-started"]),
        ("12.8", None, ["driver 535.104.05 is there", "CUDA 12.8 can't use it", "update the driver"]),
        ("12.8", "", ["CUDA_VISIBLE_DEVICES hides"]),
        (None, "-1", ["CUDA_VISIBLE_DEVICES hides"]),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_named_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, visible: str | None, texts: list[str]
):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for text in texts:
        assert text in machine.why_no_cuda()


def test_without_a_driver_nothing_is_to_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "DRIVER", str(tmp_path / "none"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert machine.nvidia_driver() is None
    assert machine.why_no_cuda() == ""


@pytest.mark.parametrize(("count", "text"), [(1, ""), (2, "1 more GPU is there"), (4, "3 more GPUs are there")])
def test_other_gpus_are_named(monkeypatch: pytest.MonkeyPatch, count: int, text: str):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert text in machine.describe_other_gpus(torch.device("cuda", 0), 1)
    assert not machine.describe_other_gpus(torch.device("cpu"), 1)


@pytest.mark.parametrize(
    ("benchmark", "deterministic", "tries"),
    [(None, False, True), (None, True, False), (False, False, False), (True, False, True)],
)
def test_cudnn_tries_convolutions_unless_the_run_is_to_be_deterministic(
    monkeypatch: pytest.MonkeyPatch, benchmark: bool | None, deterministic: bool, tries: bool
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tries)
    precision = torch.get_float32_matmul_precision()
    try:
        machine.tune_cuda("high", benchmark=benchmark, deterministic=deterministic)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark == tries
    finally:
        torch.set_float32_matmul_precision(precision)


def test_peak_memory_is_that_of_this_process_not_of_the_one_that_started_it():
    own = "from cnnlab.machine import peak_memory; before = peak_memory(); held = bytearray(100_000_000);"
    own += "del held; print(before, peak_memory() - before)"
    parent = "import subprocess, sys; held = bytearray(1_000_000_000); subprocess.run([sys.executable, *sys.argv[1:]])"
    ran = subprocess.run([sys.executable, "-c", parent, "-c", own], capture_output=True, text=True, check=True)
    before, taken = map(int, ran.stdout.split())
    assert 10e6 < before < 0.9e9
    assert 90e6 < taken < 150e6
