"""A search: Optuna proposes what the next trial is, from the trials so far."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cnnlab.config.space import Dimension
from cnnlab.errors import ConfigError
from cnnlab.study import NAME, open_study
from cnnlab.sweep.runner import Runner
from cnnlab.sweep.trial import Trial, folder_name

log = logging.getLogger(__name__)

JOURNAL = "study.journal"


@dataclass
class Search:
    """Run a study in a sweep's folder: begin it, resume it, or join it from another machine.

    Args:
        runner: Runs its trials.
        options: The config's `search`.
        dimensions: What varies.
        seeds: The seeds that each proposal is run with; none for the config's own.
        seed: Decides what chance proposes.
        hold: The name under which this process holds the sweep's folder.
    """

    runner: Runner
    options: dict[str, Any]
    dimensions: Sequence[Dimension]
    seeds: Sequence[int]
    seed: int
    hold: str

    def __post_init__(self) -> None:
        self.folder = self.runner.folder
        self.objective: dict[str, Any] = self.folder.record["objective"]
        if self.options["pruner"] != "none" and not self.objective["metric"].startswith(("val/", "train/")):
            raise ConfigError(
                f"search.pruner={self.options['pruner']} needs an objective that is measured every epoch, on train/ or "
                f"val/; objective.metric is {self.objective['metric']}"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.journal = self.folder.path / JOURNAL
        self.study = open_study(self.journal, direction="maximize" if self.objective["mode"] == "max" else "minimize")
        self._each = max(1, len(self.seeds))
        self._queued: list[Trial] = []
        self._open: dict[int, list[Trial]] = {}  # by the study's trial: its runs that are not queued yet
        self._values: dict[int, list[float]] = {}
        self._until = time.monotonic() + (self.options["timeout"] or float("inf"))

    def run(self) -> None:
        """Run trials until the study has `search.n_trials`, or its time is up."""
        existing = [trial for trial in self._study_trials() if trial.state != TrialState.RUNNING]
        self._queued += self._damaged(existing)
        count = (self.options["n_trials"] - len(existing)) * self._each + len(self._queued)
        pool = self.runner.pool(count, self.options["batch"])
        self.runner.board.plan(self.options["n_trials"] * self._each, len(existing) * self._each, pool.size)
        for trial, status in self.runner.run(pool, self._queue()):
            self._tell(trial, status)

    def _queue(self) -> Iterator[Trial | None]:
        while True:
            if not self._queued and time.monotonic() < self._until:
                with self.folder.alone():
                    self._ask()
            if self._queued:
                yield self._queued.pop(0)
            elif self._open:
                yield None
            else:
                return

    def _ask(self) -> None:
        """Take over a trial that nobody works on any more, or begin a new one if the study is to have more."""
        existing = self._study_trials()
        for frozen in existing:
            if frozen.state == TrialState.RUNNING and frozen.number not in self._open:
                owner = frozen.user_attrs.get("owner", "")
                if owner and self.folder.is_held(owner):
                    continue
                overrides = frozen.user_attrs.get("overrides")
                if overrides is None:  # killed while it was made
                    self.study.tell(frozen.number, state=TrialState.FAIL)
                    continue
                self._begin(frozen.number, frozen._trial_id, overrides)
                return
        if len(existing) < self.options["n_trials"]:
            self.study.sampler = self._sampler(len(existing))
            trial = self.study.ask()
            overrides = list(_suggested(trial, self.dimensions))
            trial.set_user_attr("overrides", overrides)
            self._begin(trial.number, trial._trial_id, overrides)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of the study's next trial, seeded by the trial's number.

        One sampler for all trials would start anew in each process, and each process would propose the same.
        """
        seed = self.seed + 1000 * number
        if self.options["sampler"] == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.options["startup"], multivariate=True, constant_liar=True
        )

    def _begin(self, number: int, trial_id: int, overrides: Sequence[str]) -> None:
        self.study._storage.set_trial_user_attr(trial_id, "owner", self.hold)
        runs = self._runs(number, overrides)
        self._open[number], self._values[number] = runs[1:], []
        self._queued.append(runs[0])

    def _runs(self, number: int, overrides: Sequence[str]) -> list[Trial]:
        """Return the runs of a trial of the study, one for each seed."""
        points = [(*overrides, f"seed={seed}") for seed in self.seeds] or [tuple(overrides)]
        runs = [
            Trial(folder_name(point, f"{number:03d}"), point, number * self._each + index)
            for index, point in enumerate(points)
        ]
        if self.options["pruner"] != "none":  # by its first seed
            runs[0] = replace(runs[0], extra=tuple(self._pruning(number)))
        return runs

    def _damaged(self, trials: Sequence[FrozenTrial]) -> Iterator[Trial]:
        """Yield the runs whose results the study knows, and whose folders have lost them."""
        for trial in trials:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                for run in self._runs(trial.number, trial.user_attrs["overrides"]):
                    folder = self.folder.trial(run.name)
                    if folder.path.exists() and (folder.objective is None or not folder.note):
                        yield run

    def _pruning(self, number: int) -> Iterator[str]:
        settings = {
            "_target_": "cnnlab.callbacks.Prune",
            "journal": f"'{self.journal}'",
            "study": NAME,
            "number": number,
            "monitor": self.objective["metric"],
            **{name: self.options[name] for name in ("pruner", "startup", "min_epochs", "reduction")},
        }
        for name, value in settings.items():
            yield f"++callbacks.prune.{name}={value}"

    def _tell(self, run: Trial, status: str) -> None:
        """Tell the study how a trial ended, after the last of its runs."""
        number = run.number // self._each
        folder = self.folder.trial(run.name)
        value = folder.objective
        pruned = next(t for t in self._study_trials() if t.number == number).user_attrs.get("pruned")
        if number not in self._open:  # a damaged one, whose result the study knows
            folder.write(pruned=pruned)
        elif status == "interrupted":
            self._open.pop(number)  # the next start resumes it
        elif status != "completed" or value is None:
            self._open.pop(number)
            self.study.tell(number, state=TrialState.FAIL)
        elif pruned is not None:
            folder.write(pruned=pruned)
            self._open.pop(number)
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self._values[number].append(value)
            self._queued += self._open[number]
            self._open[number] = []
            if len(self._values[number]) == self._each:
                self._open.pop(number)
                self.study.tell(number, sum(self._values[number]) / len(self._values[number]))

    def _study_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def _suggested(trial: optuna.Trial, dimensions: Sequence[Dimension]) -> Iterator[str]:
    for dimension in dimensions:
        name, key = dimension.name, dimension.key
        if dimension.choices:
            chosen = str(trial.suggest_categorical(name, list(dimension.choices)))
            yield f"{key}={chosen}"
            yield from _suggested(trial, dimension.choices[chosen])
        elif dimension.is_whole:
            yield f"{key}={trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)}"
        else:
            yield f"{key}={trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)!r}"
