"""A stand-in for an NVIDIA GPU, on a CPU build of PyTorch and a machine without one.

`install` gives PyTorch a device `cuda:0`: tensors carry CUDA's dispatch keys, and autocast, generators and optimizers
take CUDA's branches; their memory is the host's, and the CPU's kernels compute. What a CUDA kernel refuses (an operand
or a generator of the CPU) is refused in CUDA's words.

It shows that no devices are mixed, that nothing is read back where it should not be, which branches are taken, how many
operations are launched, that the results are the CPU's, and what wakes CUDA: a process that was forked after that can't
use it. It can't show what CUDA's own kernels compute, refuse or leave undetermined, nor streams, graphs, memory, speed,
NCCL (so no training on two devices at once) or a second device in the same process: `pytest -m gpu` shows these where
there is a GPU.

PyTorch asks for CUDA's hooks once, when it is imported: `install` comes before. `STANDIN=2` with `site` on PYTHONPATH
gives every Python process one, and says that there are two.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("standin.cpp")

WAKING = (
    "_lazy_init", "init", "current_device", "set_device", "get_device_properties", "get_device_name",
    "get_device_capability", "is_bf16_supported", "mem_get_info", "synchronize", "get_rng_state", "get_rng_state_all",
)  # fmt: skip
"""Functions of `torch.cuda` that take hold of the device: torch 2.13's call `_lazy_init`."""

woken: list[str] = []
"""Which of them were called in this process."""


def compiler() -> str | None:
    """Return the C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def environment(count: int = 1) -> dict[str, str]:
    """Return the environment of a process that sees so many stand-ins."""
    site = str(SOURCE.with_name("site"))
    path = os.pathsep.join(part for part in (site, os.environ.get("PYTHONPATH")) if part)
    return os.environ | {"PYTHONPATH": path, "STANDIN": str(count), "STANDIN_LIBRARY": str(library())}


def library() -> Path:
    """Return the compiled library; compile it where this version of it, for this PyTorch, is not in the cache."""
    given = os.environ.get("STANDIN_LIBRARY")
    if given:
        return Path(given)
    content = SOURCE.read_bytes() + importlib.metadata.version("torch").encode() + sys.version.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnlab"
    path = cache / f"standin-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(folder) / path.name
            _compile(part)
            part.replace(path)
    return path


def _compile(path: Path) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    command = [
        compiler() or "g++", "-O0", "-std=c++20", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=1",
        f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", str(SOURCE), "-o", str(path),
        f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr[-3000:]}")


def install(count: int = 1, capability: tuple[int, int] = (8, 0), memory: int = 80 * 2**30) -> None:
    """Give this process a stand-in.

    Args:
        count: How many devices there are said to be; all tensors are on the first.
        capability: CUDA's compute capability, which decides about bfloat16 and TF32.
        memory: Of a device, in bytes.
    """
    assert "torch" not in sys.modules, "PyTorch is imported already, and asked for CUDA's hooks then"
    ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)
    import torch

    from tests.launches import Launches

    is_bad_fork = False

    def after_fork() -> None:
        nonlocal is_bad_fork
        is_bad_fork = bool(woken)

    def wake(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if is_bad_fork:
                raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
            woken.append(name)
            return function(*args, **options)

        return call

    os.register_at_fork(after_in_child=after_fork)
    generator = torch.Generator("cuda")
    facts = SimpleNamespace(
        name="stand-in", total_memory=memory, major=capability[0], minor=capability[1], multi_processor_count=108,
        warp_size=32, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, gcnArchName="", uuid="0",
    )  # fmt: skip

    def visible() -> int:
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        return count if names is None else min(count, len([name for name in names.split(",") if name.strip()]))

    def seed(value: int) -> Any:
        return generator.manual_seed(int(value))

    def get_state(device: Any = "cuda") -> Any:
        return generator.get_state()

    def set_state(state: Any, device: Any = "cuda") -> None:
        generator.set_state(state)

    answers: dict[str, Any] = {
        "is_available": lambda: visible() > 0,
        "device_count": visible,
        "_device_count_nvml": visible,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: bool(woken) and not is_bad_fork,
        "_is_in_bad_fork": lambda: is_bad_fork,
        "current_device": lambda: 0,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "set_device": lambda device: None,
        "get_device_properties": lambda device=None: facts,
        "get_device_name": lambda device=None: facts.name,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: capability[0] >= 8,
        "mem_get_info": lambda device=None: (memory - 2**30, memory),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: Launches.note("synchronize"),
        "is_current_stream_capturing": lambda: False,
        "default_generators": (generator,),
        "manual_seed": seed,
        "manual_seed_all": seed,
        "get_rng_state": get_state,
        "set_rng_state": set_state,
        "get_rng_state_all": lambda: [get_state()],
        "set_rng_state_all": lambda states: set_state(states[0]),
    }
    answers |= {name: wake(name, answers[name]) for name in WAKING}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, name, answers[name])
    for module, name, answer in (
        (torch.cuda.graphs, "is_current_stream_capturing", lambda: False),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.amp.grad_scaler, "amp_definitely_not_available", lambda: False),
        (torch.Tensor, "pin_memory", lambda self, device=None: self),
        (torch.UntypedStorage, "clone", _clone_storage),
    ):
        setattr(module, name, answer)

    import lightning_fabric.accelerators.cuda as fabric
    import pytorch_lightning.accelerators.cuda as lightning

    for place, name, answer in (
        (fabric, "num_cuda_devices", visible),
        (lightning, "num_cuda_devices", visible),
        (fabric, "_get_all_visible_cuda_devices", lambda: list(range(visible()))),
        (fabric, "is_cuda_available", answers["is_available"]),
    ):
        setattr(place, name, answer)


def _clone_storage(storage: Any) -> Any:
    import torch

    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)
