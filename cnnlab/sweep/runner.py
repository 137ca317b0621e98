"""Running trials: as many at a time as there is room for, each in its own folder."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.plugins.launcher import Launcher

from cnnlab import signals
from cnnlab.config import quote
from cnnlab.config.loader import read_flags
from cnnlab.errors import Stopped
from cnnlab.record import TRIAL, is_run
from cnnlab.sweep.board import Board
from cnnlab.sweep.folder import SweepFolder
from cnnlab.sweep.pool import LauncherPool, Pool, PoolLauncher
from cnnlab.sweep.trial import Trial

MAX_CRASHES = 2  # of the whole sweep's process with one trial


@dataclass
class Runner:
    """Run trials of a sweep.

    Args:
        launcher: Hydra's plugin that starts them.
        folder: The sweep's folder.
        board: Shows how far the sweep is.
        base: The overrides that all trials have.
        limits: Those of the sweep (epochs, steps, time).
    """

    launcher: Launcher
    folder: SweepFolder
    board: Board
    base: Sequence[str]
    limits: dict[str, Any]

    def pool(self, trials: int, batch: int | None = None) -> Pool:
        """Return where so many trials run; launchers of others get `batch` at a time, or all."""
        if isinstance(self.launcher, PoolLauncher):
            return self.launcher.pool(max(trials, 1))
        return LauncherPool(self.launcher, 1 if self._is_basic else batch or max(trials, 1))

    def run(self, pool: Pool, queue: Iterator[Trial | None]) -> Iterator[tuple[Trial, str]]:
        """Run trials as long as the queue has some; yield each with its status when it has ended.

        Args:
            pool: Where.
            queue: The trials; None for none at the moment. It is asked when there is room.
        """
        running: dict[str, Trial] = {}
        exhausted = False
        try:
            while True:
                signals.raise_if_received()
                while not exhausted and len(running) < pool.size:
                    trial = next(queue, ...)
                    if trial is ...:
                        exhausted = True
                    if not isinstance(trial, Trial):
                        break
                    if self._is_passed_over(trial):
                        yield trial, "failed"
                        self.board.end(trial.name)
                        continue
                    running[trial.name] = trial
                    self._start(pool, trial)
                if exhausted and not running:
                    return
                for name, cause in pool.wait(0.5):
                    trial = running.pop(name)
                    yield trial, self.folder.trial(name).end(cause, self.limits)
                    self.board.end(name)
                self.board.refresh()
        except Stopped as stop:
            ended = dict(pool.stop(stop.signum))
            for name in running:
                folder = self.folder.trial(name)
                # One that runs in this process has ended by itself; one that still waited has not begun.
                if name in ended or folder.run.get("status") == "interrupted":
                    folder.end(ended.get(name), self.limits)
                    self.board.end(name)
                elif not folder.run:
                    folder.write(starts=0)
            raise
        except BaseException:
            pool.stop(15)
            raise

    @property
    def _is_basic(self) -> bool:
        """Whether the trials run in this process, which then ends with whatever ends one of them."""
        return type(self.launcher).__name__ == "BasicLauncher"

    def _start(self, pool: Pool, trial: Trial) -> None:
        folder = self.folder.trial(trial.name)
        folder.begin(trial)
        path = quote(folder.path)
        overrides = [*self.base, *trial.overrides, *trial.extra]
        if isinstance(pool, LauncherPool):
            place = [f"hydra.sweep.dir={quote(self.folder.path)}", f"hydra.sweep.subdir={quote(trial.name)}"]
        else:
            place = [f"hydra.run.dir={path}"]
            if is_run(folder.path) and folder.run:
                place += [f"resume={path}", "hydra.output_subdir=null"]
            place += _hydra_words()
        pool.start(trial.name, [*overrides, *place], folder.path, self.folder.handle)
        self.board.start(trial.name)

    def _is_passed_over(self, trial: Trial) -> bool:
        """Whether a trial took the process of the whole sweep down so often that it is not started again."""
        folder = self.folder.trial(trial.name)
        if not self._is_basic or folder.note.get("starts", 0) < MAX_CRASHES:
            return False
        folder.fail(
            f"it took the sweep's process down {MAX_CRASHES} times and is passed over; to have it run again, resume "
            f"the sweep with hydra/launcher=local, or, if the machine went down, delete {folder.path / TRIAL}"
        )
        return True


def _hydra_words() -> list[str]:
    """Return Hydra's settings and flags of the command line that a trial needs too.

    The flags come last: between two overrides argparse takes them for the end of these.
    """
    flags, _ = read_flags(sys.argv[1:])
    kinds = ("hydra.job_logging", "hydra/job_logging", "hydra.verbose", "hydra.searchpath")
    files = {"--config-dir": flags.config_dir, "--config-name": flags.config_name, "--config-path": flags.config_path}
    settings = [line for line in flags.overrides if line.startswith(kinds)]
    return [*settings, *(word for flag, value in files.items() if value for word in (flag, value))]
