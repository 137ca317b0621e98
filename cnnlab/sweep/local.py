"""The launcher `local`: each trial a process of its own, several at a time, on one machine."""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
import rich
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from typing_extensions import override

from cnnlab import config
from cnnlab.errors import ConfigError, Stopped
from cnnlab.run import command_line

log = logging.getLogger(__name__)

OUTPUT = "console.log"
TRIAL_MIB = 1024  # of memory that a trial may need, where nobody says how many there shall be


class Local(Launcher):
    """Start each trial as a process, so that whatever ends it takes no other with it.

    Args:
        n_jobs: Trials at a time. By default one for each GPU, or for each core as far as the memory goes.
        threads: Threads of each trial; by default an equal share of the cores.
        start: `fork` imports PyTorch once and starts a trial in a moment; `spawn` starts each from nothing; `auto`
            forks on Linux, where that is safe.
    """

    def __init__(
        self,
        n_jobs: int | None = None,
        threads: int | None = None,
        start: Literal["auto", "fork", "spawn"] = "auto",
    ) -> None:
        self.n_jobs = n_jobs
        self.threads = threads
        self.start = start if start != "auto" else "fork" if sys.platform == "linux" else "spawn"

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task = task_function
        self.config = config

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ConfigError("hydra/launcher=local goes with hydra/sweeper=cnnlab only")

    def pool(self, trials: int) -> "Pool":
        """Return the processes for so many trials."""
        trainer = self.config.trainer
        per_trial = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
        gpus = visible_gpus() if trainer.accelerator in ("auto", "gpu", "cuda") else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = len(gpus) // per_trial if gpus else max(1, min(cores // per_trial, available_mib() // TRIAL_MIB))
        jobs = max(1, min(self.n_jobs or room, trials))
        threads = self.threads or max(1, cores // (jobs * per_trial))
        return Pool(self, jobs, threads, gpus, per_trial)


@dataclass
class Running:
    """A trial's process.

    Attributes:
        process: Forked or spawned.
        seat: Its place in the pool, which decides about GPUs.
    """

    process: Any
    seat: int

    @property
    def pid(self) -> int:
        """The process, and the group that it leads."""
        return int(self.process.pid)

    def code(self) -> int | None:
        """Return its exit code, minus the number of the signal that killed it; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode


class Pool:
    """Processes that train side by side.

    Args:
        launcher: Says how they start.
        size: How many at a time.
        threads: Of each.
        gpus: Those of the machine.
        per_trial: GPUs of each.
    """

    def __init__(self, launcher: Local, size: int, threads: int, gpus: list[str], per_trial: int = 1) -> None:
        self.size = size
        self.threads = threads
        self.gpus = gpus
        self.per_trial = per_trial
        self._launcher = launcher
        self._running: dict[str, Running] = {}

    def start(self, name: str, argv: list[str], folder: Path, held: int | None) -> None:
        """Start a trial.

        Args:
            name: The trial's.
            argv: Its command line, without the program.
            folder: Where its output goes.
            held: A file that it keeps open as long as it lives.
        """
        seat = min(set(range(self.size)) - {running.seat for running in self._running.values()})
        environment = {}
        if self.gpus:
            first = seat * self.per_trial
            mine = [self.gpus[index % len(self.gpus)] for index in range(first, first + self.per_trial)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(mine))
        start = self._fork if self._launcher.start == "fork" else self._spawn
        self._running[name] = Running(start(argv, folder, environment, held), seat)

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""
        until = time.monotonic() + timeout
        while True:
            codes = {name: running.code() for name, running in self._running.items()}
            ended = [(name, cause_of(code)) for name, code in codes.items() if code is not None]
            if ended or time.monotonic() > until:
                break
            time.sleep(0.05)
        for name, _ in ended:
            del self._running[name]
        return ended

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end; at a second signal, end them at once. Returns what `wait` does."""
        ended = []
        sent = signum
        while self._running:
            for running in self._running.values():
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, sent)
            try:
                while self._running:
                    ended += self.wait(1.0)
            except Stopped:
                sent = signal.SIGKILL
        return ended

    def _threads(self) -> dict[str, str]:
        """Return what says how many threads a trial has: what was asked for, or else what the user's shell says."""
        asked = self._launcher.threads is not None
        return {"OMP_NUM_THREADS": str(self.threads) if asked else os.environ.get("OMP_NUM_THREADS", str(self.threads))}

    def _fork(self, argv: list[str], folder: Path, environment: dict[str, str], held: int | None) -> Any:
        # Before the libraries are loaded that read them. numpy's own threads would be in the way of a fork.
        os.environ |= self._threads()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks for GPUs without waking CUDA up
        import cnnlab.build  # noqa: F401 - PyTorch and Lightning, once for all trials

        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(
            target=_trial, args=(self._launcher.task, argv, folder / OUTPUT, environment, os.getpid())
        )
        process.start()
        with suppress(OSError):  # either of the two is first; afterwards both can rely on the group
            os.setpgid(process.pid or 0, process.pid or 0)
        return process

    def _spawn(self, argv: list[str], folder: Path, environment: dict[str, str], held: int | None) -> Any:
        environment = environment | self._threads() | search_path()
        with (folder / OUTPUT).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, sys.argv[0], *argv], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=os.environ | environment, process_group=0,
                pass_fds=() if held is None else (held,),
            )  # fmt: skip


def _trial(task: TaskFunction, argv: list[str], output: Path, environment: dict[str, str], parent: int) -> None:
    """Run train.py's main in a forked process, as if the process had been started with this command line."""
    with suppress(OSError):
        os.setpgid(0, 0)
    _end_with(parent)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a live table of the parent's may stand before them
    rich.reconfigure()
    os.environ |= environment
    atexit._clear()  # what the parent wants to do at its end is none of ours
    GlobalHydra.instance().clear()
    sys.argv = [sys.argv[0], *argv]
    try:
        with command_line():
            hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="train")(task)()
    except Stopped as stop:
        sys.exit(stop.exit_code)
    finally:
        atexit._run_exitfuncs()


def _end_with(parent: int) -> None:
    """Have this process stop in order when its parent is no more; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            raise Stopped(signal.SIGTERM)


def cause_of(code: int) -> str | None:
    """Say what ended a process, unless it ended by itself without an error."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"the process ended with exit code {code}" if code else None


def search_path() -> dict[str, str]:
    """Return what a new process needs to find the user's own networks where this one does: beside the sweep."""
    if str(Path.cwd()) not in sys.path:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path.cwd())]))}


def visible_gpus() -> list[str]:
    """List the machine's GPUs, without waking CUDA up: a process that did so can't fork any more."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def available_mib() -> int:
    """Return the memory that is free for more processes, as far as the system tells."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        return 1 << 20
    for limit, used in (("memory.max", "memory.current"),):  # of a container
        with suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            found = min(found, (int((group / limit).read_text()) - int((group / used).read_text())) // 2**20)
    return found
