"""The sweeper: which trials there are, which of them still have to run, and the table at the end."""

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import override

from cnnlab import run as runs
from cnnlab import signals
from cnnlab.config import space
from cnnlab.errors import ConfigError, PartialError, Stopped
from cnnlab.record import is_run, program, typed
from cnnlab.sweep import summary
from cnnlab.sweep.board import Board
from cnnlab.sweep.folder import SweepFolder
from cnnlab.sweep.trial import Trial, of_grid, split

log = logging.getLogger(__name__)

TOO_OFTEN = 2  # starts that took the whole sweep's process down


class Pool(Protocol):
    """Where trials run."""

    size: int

    def start(self, name: str, argv: list[str], folder: Path, held: int | None) -> None:
        """Start a trial."""

    def wait(self, timeout: float) -> list[tuple[str, str | None]]:
        """Return the trials that ended within so many seconds, each with what killed it, if anything did."""

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Have all trials save and end; return what `wait` does."""


class Handed:
    """Trials handed to a launcher of Hydra's or of somebody else's, which comes back when they have ended.

    Args:
        launcher: It.
        size: How many it is handed at a time.
    """

    def __init__(self, launcher: Launcher, size: int) -> None:
        self.size = size
        self._launcher = launcher
        self._queue: dict[str, list[str]] = {}
        self._count = 0

    def start(self, name: str, argv: list[str], folder: Path, held: int | None) -> None:
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
            cause = str(runs.understood(error))
        except SystemExit as end:
            if end.code in (130, 143):
                raise Stopped(int(end.code) - 128) from end
            cause = f"sys.exit({end.code})"
        self._count += len(queue)
        return [(name, cause) for name in queue]

    def stop(self, signum: int) -> list[tuple[str, str | None]]:
        """Do nothing: they have ended."""
        return []


class Sweeper(HydraSweeper):
    """Run every combination of the values with commas, or a search, and end in a table."""

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.seed: int = config.seed
        self.config_name = config.hydra.job.config_name
        self.resuming = bool(config.resume)
        self.folder = SweepFolder(Path(config.hydra.sweep.dir).absolute())
        with open_dict(config):
            config.hydra.sweep.dir = str(self.folder.path)
        wanted = OmegaConf.to_container(config.search, resolve=True) if config.get("search") else None
        self.search = cast(dict[str, Any] | None, wanted)
        if self.search and self.search["sampler"] != "grid" and importlib.util.find_spec("optuna") is None:
            raise ConfigError(f"search.sampler={self.search['sampler']} needs Optuna: pip install 'cnnlab[search]'")
        self.hands: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    @override
    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep, or what is left of it.

        Raises:
            ConfigError: The folder holds another sweep.
            PartialError: Some trials failed.
        """
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        lines = [line for line in parser.parse_overrides(arguments) if not _is_ours(line)]
        # What varied when the sweep began varies still, even if one value is left of it, and in the same order: a
        # trial's name must stay what it is.
        known = [] if self.search else list(self.folder.record.get("keys", []))
        varies = {id(line): line.is_sweep_override() or split(str(line.input_line))[0] in known for line in lines}
        self.base = [str(line.input_line) for line in lines if not varies[id(line)]]
        self.swept = sorted(
            (line for line in lines if varies[id(line)]),
            key=lambda line: (*known, split(str(line.input_line))[0]).index(split(str(line.input_line))[0]),
        )
        if not self.folder.is_new and not self.resuming:
            raise ConfigError(f"{self.folder.path} holds a sweep already: go on with it by resume={self.folder.path}")
        try:
            with signals.handled():
                self._sweep()
        except Stopped as stop:
            print(f"cnnlab: stopped by {stop}; go on with: {self._command(resume=True)}", file=sys.stderr)
            sys.exit(stop.exit_code)
        finally:
            self.folder.release()

    def _sweep(self) -> None:
        trials = None if self.search and self.search["sampler"] != "grid" else of_grid(self._points())
        keys = list(dict.fromkeys(key for line in self.swept for key in [split(str(line.input_line))[0]]))
        if self.search:
            keys += [key for dimension in self._space() for key in _keys_of(dimension)]
            if self.search["seeds"]:
                keys.append("seed")
        config = self._plain_config()
        self.folder.check(config, self.base, keys, self.search)
        self.hold = self.folder.hold(shared=trials is None)
        self.limits = {name: config["trainer"].get(name) for name in ("max_epochs", "max_steps", "max_time")}
        self.folder.write(
            command=self._command(resume=self.resuming),
            program=program(),
            base=self.base,
            keys=list(dict.fromkeys([*keys, *self.folder.record.get("keys", [])])),
            config=config,
            objective=config["objective"],
            planned=len(trials) if trials is not None else self.search["n_trials"],  # type: ignore[index]
            trials=[{"name": trial.name, "number": trial.number, "settings": trial.settings} for trial in trials or ()],
            search=self.search,
            each=max(1, len(self._seeds())) if self.search else 1,
        )
        self.board = Board(self.folder.path, config["objective"])
        try:
            if trials is None:
                from cnnlab.sweep.search import Search

                Search(self, self._dimensions(), self._seeds()).run()
            else:
                self._grid(trials)
        finally:
            self.board.close()
            runs.failed.clear()  # each is in the table
            table = summary.write(self.folder.path)
            summary.show(table)
        if missing := table.failed + table.interrupted:
            names = ", ".join(row.name for row in missing)
            again = "" if trials is None else f"\nrun them again with: {self._command(resume=True)}"
            raise PartialError(f"{len(missing)} of {len(table.rows)} trials failed: {names}{again}")

    def _grid(self, trials: list[Trial]) -> None:
        left = [trial for trial in trials if not self.folder.trial(trial.name).is_done(self.limits)]
        if left != trials:
            log.info(f"{len(trials) - len(left)} of {len(trials)} trials are done already")
        self.board.plan(len(trials), len(trials) - len(left))
        pool = self.pool(len(left))
        queue = iter(left)
        for _ in self.run(pool, queue):
            pass

    def pool(self, trials: int, batch: int | None = None) -> Pool:
        """Return where so many trials run; launchers of others get `batch` at a time, or all."""
        if hasattr(self.hands, "pool"):
            return cast(Pool, self.hands.pool(max(trials, 1)))
        return Handed(self.hands, 1 if self.is_basic else batch or max(trials, 1))

    @property
    def is_basic(self) -> bool:
        """Whether the trials run in this process, which then ends with whatever ends one of them."""
        return type(self.hands).__name__ == "BasicLauncher"

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
                    if self._gave_up(trial):
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

    def _start(self, pool: Pool, trial: Trial) -> None:
        folder = self.folder.trial(trial.name)
        folder.begin(trial)
        place = _quoted(folder.path)
        lines = [*self.base, *trial.overrides, *trial.extra]
        if isinstance(pool, Handed):
            own = [f"hydra.sweep.dir={_quoted(self.folder.path)}", f"hydra.sweep.subdir={_quoted(trial.name)}"]
        else:
            own = [*self._flags(), f"hydra.run.dir={place}"]
            if is_run(folder.path) and folder.run:
                own += [f"resume={place}", "hydra.output_subdir=null"]
        pool.start(trial.name, [*lines, *own], folder.path, self.folder.handle)
        self.board.start(trial.name)

    def _gave_up(self, trial: Trial) -> bool:
        """Whether a trial took the process of the whole sweep down so often that it is passed over."""
        folder = self.folder.trial(trial.name)
        if not self.is_basic or folder.note.get("starts", 0) < TOO_OFTEN:
            return False
        folder.fail(
            f"it took the sweep's process down {TOO_OFTEN} times and is passed over; hydra/launcher=local can run it, "
            f"or delete {folder.path} to try again"
        )
        return True

    def _flags(self) -> list[str]:
        """Return Hydra's flags and settings of the command line that a trial needs too."""
        words = iter(sys.argv[1:])
        flags = []
        for word in words:
            if word.startswith(("--config-dir", "--config-name", "--config-path", "-cd", "-cn", "-cp")):
                flags += [word] if "=" in word else [word, next(words, "")]
            elif word.startswith(("hydra.job_logging", "hydra/job_logging", "hydra.verbose", "hydra.searchpath")):
                flags.append(word)
        return flags

    def _points(self) -> Iterator[list[str]]:
        axes = [self._values(line) for line in self.swept]
        if self.search and (seeds := self._seeds()):
            axes.append([f"seed={seed}" for seed in seeds])
        within = list(space.grid(self._space()))
        for inner in within:
            for outer in product(*axes):
                yield [*inner, *outer]

    def _values(self, line: Override) -> list[str]:
        if not line.is_sweep_override():
            return [str(line.input_line)]
        return [f"{line.get_key_element()}={text}" for text in line.sweep_string_iterator()]

    def _space(self) -> tuple[space.Dimension, ...]:
        """Return the config's search space, without the keys that the command line gives values to."""
        if self.search is None:
            return ()
        given = {split(line)[0] for line in [*self.base, *(str(line.input_line) for line in self.swept)]}
        return tuple(dimension for dimension in space.parse(self.search["space"]) if dimension.key not in given)

    def _dimensions(self) -> list[space.Dimension]:
        """Return the search space: that of the config, and what the command line sweeps over."""
        found = list(self._space())
        for line in self.swept:
            key = line.get_key_element().lstrip("+")
            if key == "seed":
                continue
            value = line.value()
            if isinstance(value, IntervalSweep):
                found.append(space.Dimension(key, key, value.start, value.end, "log" in value.tags))  # type: ignore[arg-type]
            else:
                found.append(space.Dimension(key, key, choices=dict.fromkeys(line.sweep_string_iterator(), ())))
        if not found:
            raise ConfigError("search.space is empty: give it keys, or values with commas on the command line")
        return found

    def _seeds(self) -> list[int]:
        """Return the seeds that each trial of a search is run with; none for the config's own."""
        assert self.search is not None
        swept = [split(value)[1] for line in self.swept if line.key_or_group == "seed" for value in self._values(line)]
        if swept and self.search["sampler"] == "grid":
            return []  # they are an axis of the grid already
        if swept:
            return [int(seed) for seed in swept]
        return [self.seed + index for index in range(self.search["seeds"] or 0)]

    def _plain_config(self) -> dict[str, Any]:
        """Compose the base of the sweep: the first trial, whose varied values nobody looks at."""
        first = [next(iter(self._values(line))) for line in self.swept if not isinstance(line.value(), IntervalSweep)]
        config = self.context.config_loader.load_configuration(self.config_name, [*self.base, *first], RunMode.RUN)
        content = OmegaConf.to_container(
            OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=False
        )
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}

    def _command(self, *, resume: bool) -> str:
        """Return the command line as somebody would type it: that of this sweep, or the one to go on with it."""
        given = sys.argv[1:]
        first = next((index for index, word in enumerate(given) if word.startswith("-")), len(given))
        flags, words = given[first:], given[:first]  # as the check of the command line sorts them
        if self.search:
            flags = [flag for flag in flags if flag != "--multirun"]  # which it added
        if resume:
            words = [word for word in words if not word.startswith(("resume=", "hydra.sweep.dir="))]
            path, here = self.folder.path, Path.cwd()
            place = str(path.relative_to(here) if path.is_relative_to(here) else path)
            is_plain = re.fullmatch(r"[\w./+-]+", place)
            words.append(f"resume={place if is_plain else _quoted(place)}")
        return f"{program()} {typed([*flags, *words])}"


def _is_ours(line: Override) -> bool:
    """Whether an override is about the sweep, not about its trials."""
    key = line.key_or_group
    return key in ("resume", "search") or key.startswith(("search.", "hydra.", "hydra/"))


def _keys_of(dimension: space.Dimension) -> Iterator[str]:
    yield dimension.key
    for inner in dimension.choices.values():
        for one in inner:
            yield from _keys_of(one)


def _quoted(value: object) -> str:
    return str(QuotedString(str(value), Quote.single).with_quotes())
