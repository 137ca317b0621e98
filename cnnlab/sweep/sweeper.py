"""The sweeper: runs what is left of a sweep, and ends in a table."""

import importlib.util
import sys
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from typing_extensions import override

from cnnlab import run as runs
from cnnlab import signals
from cnnlab.config import project
from cnnlab.config.lines import as_text
from cnnlab.console import say
from cnnlab.errors import ConfigError, PartialError, Stopped
from cnnlab.objective import objective_of
from cnnlab.record import limits_of, program, typed
from cnnlab.sweep import summary
from cnnlab.sweep.board import Board
from cnnlab.sweep.folder import SweepFolder
from cnnlab.sweep.plan import Plan
from cnnlab.sweep.runner import Runner
from cnnlab.sweep.table import Table
from cnnlab.sweep.trial import Trial


class Sweeper(HydraSweeper):
    """Run every combination of the values with commas, or a search, and end in a table."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        with open_dict(config):
            config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
        if (search := config.get("search")) and search.sampler != "grid" and not importlib.util.find_spec("optuna"):
            raise ConfigError(f"search.sampler={search.sampler} needs Optuna: pip install 'cnnlab[search]'")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    @override
    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep, or what is left of it.

        Raises:
            ConfigError: The folder holds another sweep.
            PartialError: Some trials failed.
        """
        folder = SweepFolder(Path(self.config.hydra.sweep.dir))
        plan = Plan(self.hydra_context.config_loader, self.config, arguments, folder.record.get("keys", []))
        if not folder.is_new and not self.config.resume:
            raise ConfigError(f"{folder.path} holds a sweep already: resume it with resume={folder.path}")
        try:
            with signals.handled():
                self._run(plan, folder)
        except Stopped as stop:
            say(f"cnnlab: stopped by {stop}; resume with: {_command(plan, folder)}", file=sys.stderr)
            sys.exit(stop.exit_code)
        finally:
            folder.release()

    def _run(self, plan: Plan, folder: SweepFolder) -> None:
        trials = [] if plan.proposes else plan.trials()
        folder.check(plan.config, plan.base, plan.keys, plan.search)
        hold = folder.hold(shared=plan.proposes)
        folder.write(
            command=_command(plan, folder if self.config.resume else None),
            program=f"{program()} {typed(project.words())}".strip(),
            base=plan.base,
            keys=list(dict.fromkeys([*plan.keys, *folder.record.get("keys", [])])),
            config=plan.config,
            objective=objective_of(plan.config),
            planned=plan.search["n_trials"] if plan.search and plan.proposes else len(trials),
            trials=[{"name": trial.name, "number": trial.number, "settings": trial.settings} for trial in trials],
            search=plan.search,
            each=max(1, len(plan.seeds)),
        )
        board = Board(folder.path, objective_of(plan.config))
        runner = Runner(self.launcher, folder, board, plan.base, limits_of(plan.config))
        try:
            if plan.proposes:
                from cnnlab.sweep.search import Search

                assert plan.search is not None
                Search(runner, plan.search, plan.dimensions(), plan.seeds, int(self.config.seed), hold).run()
            else:
                _run_grid(runner, trials)
        finally:
            board.close()
            runs.failed.clear()  # each is in the table
            # Not after a signal: it may have come while matplotlib was imported, which can then be imported no more.
            result = summary.write(folder.path, pictures=not isinstance(sys.exc_info()[1], Stopped))
            board.show(summary.describe(result))
        _check_complete(result.table, "" if plan.proposes else f"\nrun them again with: {_command(plan, folder)}")


def _check_complete(table: Table, again: str) -> None:
    """Check that every trial of a sweep came to its end and measured what it is about.

    Raises:
        PartialError: One did not.
    """
    if table.rows and all(row.objective is None for row in table.rows) and not table.failed:
        measured = ", ".join(dict.fromkeys(name for row in table.rows for name in row.metrics)) or "nothing"
        raise PartialError(f"no trial measured the objective, {table.metric}; measured: {measured}.")
    if missing := table.failed + [row for row in table.rows if row.status == "interrupted"]:
        names = ", ".join(row.name for row in missing)
        raise PartialError(f"{len(missing)} of {len(table.rows)} trials failed: {names}{again}")


def _run_grid(runner: Runner, trials: list[Trial]) -> None:
    left = [trial for trial in trials if not runner.folder.trial(trial.name).is_done(runner.limits)]
    pool = runner.pool(len(left))
    runner.board.plan(len(trials), len(trials) - len(left), pool.size)
    for _ in runner.run(pool, iter(left)):
        pass


def _command(plan: Plan, folder: SweepFolder | None) -> str:
    """Return the command line as a person would type it: that of this sweep, or the one to resume it in a folder."""
    argv = sys.argv[1:]
    first = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    flags, words = argv[first:], argv[:first]  # as the check of the command line sorts them
    if plan.search:
        flags = [flag for flag in flags if flag != "--multirun"]  # which the check added
    if folder is not None:
        words = [word for word in words if not word.startswith(("resume=", "hydra.sweep.dir="))]
        path, here = folder.path, Path.cwd()
        words.append(f"resume={as_text(str(path.relative_to(here) if path.is_relative_to(here) else path))}")
    return f"{program()} {typed([*flags, *words])}"
