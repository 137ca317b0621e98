"""The machine under the run: whether it has what is asked for, what it is called, how it hands out memory."""

import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch
from pytorch_lightning.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator

from cnnlab.errors import ConfigError, MachineError
from cnnlab.wording import count

DRIVER = "/proc/driver/nvidia/version"
"""Where Linux says which NVIDIA driver it has."""


def check_accelerator(name: str, key: str = "trainer.accelerator=") -> None:
    """Raise unless the machine has an accelerator of this name; `key` is the option that names it.

    Raises:
        MachineError: It has none.
    """
    available = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    available["gpu"] = available["cuda"] or available["mps"]
    if name not in available and name not in ("auto", "cpu") and name in AcceleratorRegistry.available_accelerators():
        try:
            available[name] = AcceleratorRegistry.get(name).is_available()
        except ModuleNotFoundError:  # its own library is not installed
            available[name] = False
    if not available.get(name, True):
        raise MachineError(
            f"{key}{name}: this machine has no such device, PyTorch {torch.__version__} finds only the "
            f"CPU{why_no_cuda()}. Use {key}auto or cpu."
        )


def device_for(name: str) -> torch.device:
    """Return the first device of an accelerator, as Lightning calls them; `auto` is the best one there."""
    if name == "auto":
        name = "cuda" if CUDAAccelerator.is_available() else "mps" if MPSAccelerator.is_available() else "cpu"
    if name == "gpu":
        name = "cuda" if CUDAAccelerator.is_available() else "mps"
    try:
        return torch.device(name, 0) if name == "cuda" else torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--accelerator must be auto, cpu, gpu, cuda or mps, got {name}.") from error


def fast_precision(device: torch.device) -> str:
    """Return the precision that `trainer.precision=auto` stands for on a device.

    It is bf16-mixed where the device itself multiplies in bfloat16, and 32-true elsewhere: a CPU without such products
    imitates them, and is slower than in float32.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Private in torch 2.13, which has no other word for it.
        has_bfloat16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bfloat16 else "32-true"


def check_precision(name: str | int | None, device: torch.device) -> None:
    """Raise unless a device computes in a precision; Lightning takes another one, or torch imitates it slowly.

    Raises:
        MachineError: It does not.
    """
    if str(name) in ("16-mixed", "16") and device.type == "cpu":
        raise MachineError(f"trainer.precision={name} needs a GPU, and this is a CPU. Use bf16-mixed or 32-true.")
    on_gpu = str(name).startswith("bf16") and device.type == "cuda"
    if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise MachineError(f"trainer.precision={name}: this GPU has no bfloat16. Use 16-mixed or 32-true.")


def describe_device(device: torch.device) -> str:
    """Return a device's name as people know it, and for the CPU why it was taken."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{device}, {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        has_gpu = torch.cuda.is_available() or MPSAccelerator.is_available()
        why = "as asked; a GPU is there too" if has_gpu else f"no GPU was found{why_no_cuda()}"
        return f"cpu, {count(torch.get_num_threads(), 'thread')}, {platform.machine()} ({why})"
    return str(device)


def tune_cuda(matmul_precision: str, *, benchmark: bool | None, deterministic: bool) -> None:
    """Set what a training on an NVIDIA GPU is expected to have.

    Args:
        matmul_precision: As `torch.set_float32_matmul_precision` takes it. It is left alone on a CPU, which has
            narrower products of its own under the same names.
        benchmark: Whether cuDNN tries which of its convolutions is the fastest for a shape; None: unless the run is
            to be deterministic, since all batches but an epoch's last have the same shape.
        deterministic: Whether the run is to be.
    """
    torch.set_float32_matmul_precision(matmul_precision)
    torch.backends.cudnn.benchmark = not deterministic if benchmark is None else benchmark


def why_no_cuda() -> str:
    """Say why PyTorch finds no NVIDIA GPU, and where there is a driver for one, what to do."""
    driver, cuda = nvidia_driver(), torch.version.cuda
    if driver and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "; CUDA_VISIBLE_DEVICES hides the GPUs"
    if driver and cuda:
        return (
            f"; the NVIDIA driver {driver} is there, and this PyTorch's CUDA {cuda} can't use it: update the driver, "
            "or install a PyTorch for an older CUDA"
        )
    if driver:
        return (
            f"; the NVIDIA driver {driver} is there, but this PyTorch {torch.__version__} is built without CUDA: "
            "install it as https://pytorch.org/get-started/locally says"
        )
    return "" if cuda else "; this PyTorch is built without CUDA"


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver, if the machine has one."""
    try:
        lines = Path(DRIVER).read_text(errors="replace")
    except OSError:
        return None
    version = re.search(r"\b\d+\.\d+(\.\d+)*\b", lines)
    return version[0] if version else "of unknown version"


def describe_other_gpus(device: torch.device, used: int) -> str:
    """Say how many GPUs a run leaves alone, and how to take them."""
    others = torch.cuda.device_count() - used if device.type == "cuda" else 0
    if others < 1:
        return ""
    count = f"{others} more GPU{'s are' if others > 1 else ' is'}"
    return f"; {count} there: trainer.devices=auto takes all, hydra/launcher=local a trial on each"


def peak_memory() -> int:
    """Return the most memory in bytes that this process has held at once.

    Linux counts into `getrusage` what the parent held when it started this process, which may be a notebook or a sweep
    with data of its own; the line VmHWM of /proc begins with the program.
    """
    try:
        held = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        held = None
    if held:
        return int(held[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, which else would get it page by page from the system.

    At batch 512 the article's network takes 0.91 to 0.98 of the time (two cores of a Zen 2, three pairs of runs); at
    batch 64 no difference stands out of the noise. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: blocks below 1 GiB come from the heap
