"""Where trials run: what every pool offers, and the pool around a launcher that knows nothing of it."""

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from typing_extensions import override

from cnnlab.errors import ConfigError, Stopped, translate


class Pool(Protocol):
    """Where trials run, `size` at a time."""

    size: int

    def start(self, name: str, argv: list[str], folder: Path, handle: int | None) -> None:
        """Start a trial.

        Args:
            name: The trial's name.
            argv: Its command line, without the program.
            folder: Where its output goes.
            handle: An open file that it keeps open as long as it lives.
        """

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end; return the same as `wait`."""


class PoolLauncher(Launcher):
    """A launcher that offers a pool; it goes with `hydra/sweeper=cnnlab` only."""

    config: DictConfig
    task: TaskFunction
    n_jobs: int | None  # trials at a time

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs must be at least 1, got {self.n_jobs}.")
        self.config, self.task = config, task_function

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ConfigError("this launcher goes with hydra/sweeper=cnnlab only")

    def pool(self, trials: int) -> Pool:
        """Return where so many trials run."""
        raise NotImplementedError


def devices_per_trial(trainer: Any) -> int | None:
    """Return how many devices each trial asks for; None for all of them, or for some by their indices.

    Args:
        trainer: The config's `trainer`.
    """
    number = str(trainer.devices)
    return int(number) if number.isdigit() and int(number) > 0 else None


class LauncherPool:
    """Trials that a launcher of Hydra's or of somebody else's runs in batches; it returns when they have ended.

    Args:
        launcher: The launcher.
        size: Trials in a batch.
    """

    def __init__(self, launcher: Launcher, size: int) -> None:
        self.size = size
        self._launcher = launcher
        self._queue: dict[str, list[str]] = {}
        logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)  # two lines a trial
        self._count = 0

    def start(self, name: str, argv: list[str], folder: Path, handle: int | None) -> None:
        """Queue a trial."""
        self._queue[name] = argv

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Run all that is queued."""
        queue, self._queue = self._queue, {}
        if not queue:
            return []
        cause = None
        try:
            self._launcher.launch(list(queue.values()), self._count)
        except Exception as error:  # one trial's config, or a job that its cluster lost: no reason to stop
            cause = str(translate(error))
        except SystemExit as end:
            if end.code in (130, 143):
                raise Stopped(int(end.code) - 128) from end
            cause = f"sys.exit({end.code})"
        self._count += len(queue)
        return [(name, cause) for name in queue]

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Do nothing: the trials have ended."""
        return []


def cause_of_death(code: int) -> str | None:
    """Say what ended a process, unless it ended by itself without an error.

    Args:
        code: Its exit code, or minus the number of the signal that killed it.
    """
    if code < 0:
        names = {signum.value: signum.name for signum in signal.Signals}
        name = names.get(-code, f"signal {-code}")  # the real-time signals have no names
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"the process ended with exit code {code}" if code else None
