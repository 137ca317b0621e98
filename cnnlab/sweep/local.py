"""The launcher `local`: each trial a process of its own, several at a time, on one machine."""

import atexit
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import hydra
import rich
from hydra.core.global_hydra import GlobalHydra
from hydra.types import TaskFunction

from cnnlab import config, signals
from cnnlab.console import ConsoleHandler
from cnnlab.errors import Stopped
from cnnlab.run import command_line
from cnnlab.sweep.pool import PoolLauncher, cause_of_death, devices_per_trial

log = logging.getLogger(__name__)

OUTPUT = "console.log"
TRIAL_MIB = 1024  # of memory that a trial may need, where `n_jobs` is not given


@dataclass(eq=False)
class Local(PoolLauncher):
    """Start each trial as a process, so that whatever ends it takes no other with it.

    Args:
        n_jobs: Trials at a time. By default one for each GPU, or for each core as far as the memory goes.
        threads: Threads of each trial; by default as many as OMP_NUM_THREADS says, or else an equal share of the cores.
        start: `fork` imports PyTorch once and starts a trial in a moment; `spawn` starts each from nothing; `auto`
            forks on Linux, where that is safe.
    """

    n_jobs: int | None = None
    threads: int | None = None
    start: Literal["auto", "fork", "spawn"] = "auto"

    def __post_init__(self) -> None:
        if self.start == "auto":
            self.start = "fork" if sys.platform == "linux" else "spawn"

    def pool(self, trials: int) -> "ProcessPool":
        """Return the pool for so many trials."""
        trainer = self.config.trainer
        devices = devices_per_trial(trainer)
        gpus = visible_gpus() if trainer.accelerator in ("auto", "gpu", "cuda") else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if gpus:
            room = len(gpus) // (devices or len(gpus))
        else:
            room = min(cores // (devices or 1), available_mib() // TRIAL_MIB)
        jobs = max(1, min(self.n_jobs or room, trials))
        share = max(1, cores // (jobs * (devices or 1)))
        threads = str(self.threads or os.environ.get("OMP_NUM_THREADS") or share)
        return ProcessPool(self, jobs, threads, gpus, devices or len(gpus))


class Running(NamedTuple):
    """A trial's process.

    Attributes:
        process: Forked or spawned; it leads a group of its own.
        gpus: Those that it has.
    """

    process: Any
    gpus: list[str]

    def code(self) -> int | None:
        """Return its exit code, minus the number of the signal that killed it; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode


@dataclass
class ProcessPool:
    """Processes that train side by side.

    Args:
        launcher: Says how they start.
        size: How many at a time.
        threads: Threads of each, as OMP_NUM_THREADS says it.
        gpus: The machine's, as `CUDA_VISIBLE_DEVICES` names them.
        per_trial: GPUs of each.
    """

    launcher: Local
    size: int
    threads: str
    gpus: list[str]
    per_trial: int
    _running: dict[str, Running] = field(default_factory=dict, init=False)

    def start(self, name: str, argv: list[str], folder: Path, handle: int | None) -> None:
        """Start a trial."""
        load = Counter(gpu for running in self._running.values() for gpu in running.gpus)
        gpus = sorted(self.gpus, key=lambda gpu: load[gpu])[: self.per_trial]  # those with the fewest trials
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        start = self._fork if self.launcher.start == "fork" else self._spawn
        self._running[name] = Running(start(argv, folder, environment, handle), gpus)

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""
        until = time.monotonic() + timeout
        while True:
            codes = {name: running.code() for name, running in self._running.items()}
            ended = [(name, cause_of_death(code)) for name, code in codes.items() if code is not None]
            if ended or time.monotonic() > until:
                break
            time.sleep(0.05)
        for name, _ in ended:
            del self._running[name]
        return ended

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end; at a second signal, end them at once."""
        ended = []
        sent = signum
        while self._running:
            for running in self._running.values():
                with suppress(ProcessLookupError):
                    os.killpg(running.process.pid, sent)
            try:
                while self._running:
                    ended += self.wait(1.0)
            except Stopped:
                sent = signal.SIGKILL
        return ended

    def _fork(self, argv: list[str], folder: Path, environment: dict[str, str], handle: int | None) -> Any:
        # Set before the libraries that read them are loaded. numpy's own threads would be in the way of a fork.
        os.environ["OMP_NUM_THREADS"] = self.threads
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks for GPUs without waking CUDA
        import cnnlab.fit  # noqa: F401 - PyTorch and Lightning, once for all trials

        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(
            target=_trial, args=(self.launcher.task, argv, folder / OUTPUT, environment, os.getpid())
        )
        process.start()
        with suppress(OSError):  # either process is first; afterwards both can rely on the group
            os.setpgid(process.pid or 0, process.pid or 0)
        return process

    def _spawn(self, argv: list[str], folder: Path, environment: dict[str, str], handle: int | None) -> Any:
        environment = {**os.environ, **environment, "OMP_NUM_THREADS": self.threads, **search_path()}
        with (folder / OUTPUT).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, sys.argv[0], *argv], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=environment, process_group=0,
                pass_fds=() if handle is None else (handle,),
            )  # fmt: skip


def _trial(task: TaskFunction, argv: list[str], output: Path, environment: dict[str, str], parent: int) -> None:
    """Run train.py's main in a forked process, as if the process had been started with this command line."""
    with suppress(OSError):
        os.setpgid(0, 0)
    signals.end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # which died before
        raise Stopped(signal.SIGTERM)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the parent's live table may have replaced them
    rich.reconfigure()
    ConsoleHandler.pause_seconds = 0  # the parent's board has a line a trial; here each line goes to a file
    os.environ |= environment
    atexit._clear()  # what the parent does at its end is not for this process
    GlobalHydra.instance().clear()
    sys.argv = [sys.argv[0], *argv]
    try:
        with command_line():
            hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="train")(task)()
    except Stopped as stop:
        sys.exit(stop.exit_code)
    finally:
        atexit._run_exitfuncs()


def search_path() -> dict[str, str]:
    """Return what lets a new process import the user's own modules from where this one does: the working folder."""
    if str(Path.cwd()) not in sys.path:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path.cwd())]))}


def visible_gpus() -> list[str]:
    """List the machine's GPUs, or the parts that MIG divides them into, as `CUDA_VISIBLE_DEVICES` names them.

    CUDA isn't woken for it: a process that has done so can't fork any more.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [part.strip() for part in visible.split(",")]
        return list(takewhile(lambda name: name and not name.startswith("-"), names))  # CUDA ignores what follows -1
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if line.startswith("GPU ") and (whole := re.search(r"UUID: (GPU-[\w-]+)", line)):
            gpus[whole[1]] = []
        elif gpus and (part := re.search(r"UUID: (MIG-[\w/-]+)", line)):
            gpus[list(gpus)[-1]].append(part[1])
    return [name for whole, parts in gpus.items() for name in parts or [whole]]


def available_mib() -> int:
    """Return the memory that is free for more processes, in MiB, as far as the system says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        return 1 << 20
    with suppress(OSError, ValueError):  # of a container
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, (limit - used) // 2**20)
    return free
