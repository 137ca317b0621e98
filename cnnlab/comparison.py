"""Compare runs: their settings, their results, and whether the difference is more than chance."""

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from cnnlab.answers import read_evaluation
from cnnlab.errors import ConfigError, DataError
from cnnlab.files import flatten, read_bytes
from cnnlab.record import CODE_DIFF, Record, find_run
from cnnlab.stats import Verdict, corrected, mcnemar, welch

MOST_LINES = 40
"""Of a difference of code that are shown; the rest is counted."""


class ComparedRun:
    """One of the runs that are compared.

    Args:
        name: What `record.find_run` takes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.label = name
        """Its name in tables."""
        self.checkpoint, record = find_run(name)
        if record is None:
            raise ConfigError(f"{name} stands alone: `compare` needs the run's folder around it.")
        self.record: Record = record

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the run measured: of its best state, and so nothing of another one."""
        return self.record.metrics if self.checkpoint.stem == "best" or not self.record.best.is_file() else {}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Code version and environment."""
        run = self.record.run
        git = run.get("git") or {}
        commit = f"{str(git.get('commit'))[:10]}{' and changes' if git.get('dirty') else ''}" if git else None
        return {
            "status": run.get("status"), "git commit": commit, **run.get("versions", {}),
            "device": run.get("device"), "precision": run.get("precision"),
            "parameters": run.get("num_parameters"), "seconds": run.get("seconds"),
        }  # fmt: skip

    def find_correct(self, data: Path | None, trusted: Sequence[str]) -> tuple[Bool[np.ndarray, "n"], str]:
        """Return which test images the network has right, and the images' digest; evaluates it if that was not done.

        Raises:
            DataError: The file of the images is missing.
        """
        saved = read_evaluation(self.record, self.checkpoint) if data is None else None
        if saved is None:
            from cnnlab.evaluation import evaluate

            saved = evaluate(self.name, data=data, figures=False, trusted=trusted)
        return saved.predicted == saved.targets, saved.content["data_digest"]


def find_runs(names: Sequence[str]) -> list[ComparedRun]:
    """Find the runs, and label each by the part of its path that tells it from the others.

    Raises:
        ConfigError: There is no such run, or one is named twice.
        CheckpointError: It has no checkpoint.
    """
    compared = [ComparedRun(name) for name in names]
    checkpoints = [run.checkpoint.resolve() for run in compared]
    if len(set(checkpoints)) < len(compared):
        twice = next(name for name, path in zip(names, checkpoints, strict=True) if checkpoints.count(path) > 1)
        raise ConfigError(f"{twice} is named twice: a run does not differ from itself.")
    parts = [run.record.folder.resolve().parts for run in compared]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    for run, part in zip(compared, parts, strict=True):
        file = "" if run.checkpoint.name == "best.ckpt" else f":{run.checkpoint.stem}"
        run.label = "/".join(part[shared:]) + file
    return compared


def tabulate(compared: Sequence[ComparedRun]) -> dict[str, Mapping[str, Sequence[Any]]]:
    """Return what is compared line by line: each run's value of each key, by title."""
    return {
        "Config": compare_configs(compared),
        "Environment": compare_environments(compared),
        "Metrics": compare_metrics(compared),
    }


def compare_configs(compared: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Return the config keys whose values are not all the same, with each run's value; None where it has none."""
    configs = [dict(flatten(run.record.config)) for run in compared]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def compare_environments(compared: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Return facts about code and environment, with each run's value."""
    names = dict.fromkeys(name for run in compared for name in run.facts)
    return {name: [run.facts.get(name) for run in compared] for name in names}


def compare_code(compared: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return how the code of each run differs from that of the first, by the runs' labels; nothing of those alike."""
    first, first_diff = compared[0], _read_code(compared[0])
    differences = {}
    for run in compared[1:]:
        lines = []
        commits = [str((side.record.run.get("git") or {}).get("commit")) for side in (first, run)]
        if commits[0] != commits[1]:
            lines.append(f"git diff {commits[0][:10]} {commits[1][:10]}")
        diff = list(difflib.unified_diff(first_diff, _read_code(run), first.label, run.label, lineterm="", n=0))
        lines += diff[:MOST_LINES]
        if len(diff) > MOST_LINES:
            lines.append(f"... {len(diff) - MOST_LINES} lines more: {run.record.folder / CODE_DIFF}")
        if lines:
            differences[run.label] = lines
    return differences


def _read_code(run: ComparedRun) -> list[str]:
    """Return the lines in which a run's code differed from its commit."""
    path = run.record.folder / CODE_DIFF
    return read_bytes(path).decode(errors="replace").splitlines() if path.is_file() else []


def compare_metrics(compared: Sequence[ComparedRun]) -> dict[str, list[float | None]]:
    """Return the metrics that any of the runs measured, with each run's value."""
    names = sorted({name for run in compared for name in run.metrics if name != "objective"})
    return {name: [run.metrics.get(name) for run in compared] for name in names}


def read_curves(compared: Sequence[ComparedRun]) -> dict[str, dict[str, list[float]]]:
    """Return each run's `history.csv` as columns."""
    return {
        run.label: {name: run.record.column(name) for name in run.record.history[0]}
        for run in compared if run.record.history
    }  # fmt: skip


def compare_with_first(
    compared: Sequence[ComparedRun], data: Path | None = None, trusted: Sequence[str] = ()
) -> list[Verdict]:
    """Compare each run with the first, image by image; of several, p is Holm's.

    Raises:
        DataError: A run's images are missing, or others than those of the first.
        CnnlabError: As `evaluation.evaluate`.
    """
    first, digest = compared[0].find_correct(data, trusted)
    verdicts = []
    for run in compared[1:]:
        second, second_digest = run.find_correct(data, trusted)
        if second_digest != digest:
            raise DataError(
                f"{run.label} was tested on other images than {compared[0].label}: give a file for both with --data."
            )
        verdicts.append(mcnemar(first, second))
    return corrected(verdicts)


def compare_groups(
    first: Sequence[ComparedRun],
    second: Sequence[ComparedRun],
    metric: str = "test/accuracy",
    *,
    any_length: bool = False,
) -> Verdict:
    """Compare one group of runs with another, such as five seeds of each of two recipes.

    Args:
        first: At least two runs.
        second: At least two runs.
        metric: What they are compared by.
        any_length: Whether the runs of a group may have been trained to different limits.

    Raises:
        ConfigError: A run did not measure the metric; or is in both groups; or a group has two of the same seed, or one
            that was trained to other limits.
    """
    folders = [run.record.folder.resolve() for run in first]
    if twice := next((run for run in second if run.record.folder.resolve() in folders), None):
        raise ConfigError(f"{twice.label} is a state of a run that is in the first group too: groups share no run.")
    for group in (first, second):
        _check_independent(group)
        if not any_length:
            _check_lengths(group)
    for run in (*first, *second):
        if run.metrics.get(metric) is None:
            raise ConfigError(f"{run.label} did not measure {metric}; choose another with --metric.")
    return welch(*([run.metrics[metric] for run in group] for group in (first, second)))


def _check_independent(group: Sequence[ComparedRun]) -> None:
    """Check that a group's runs are so many measurements: the same seed makes the same run again."""
    run_of_seed: dict[str, ComparedRun] = {}
    for run in group:
        # Every key of that name: runs of one seed may differ in the images that are held out.
        seeds = {key: value for key, value in flatten(run.record.config) if key.rpartition(".")[2].endswith("seed")}
        other = run_of_seed.setdefault(str(sorted(seeds.items())), run) if seeds else run
        if other is not run:
            raise ConfigError(
                f"{other.label} and {run.label} have the same seed, {seeds.get('seed')}: in a group that is one "
                "measurement, not two. Leave one of them out, or train with another seed."
            )


def _check_lengths(group: Sequence[ComparedRun]) -> None:
    """Check that a group's runs were trained to the same limits: one of them may have been resumed with others."""
    limits = [run.record.run.get("limits") for run in group]
    for run, limit in zip(group, limits, strict=True):
        usual = max(limits, key=limits.count)
        if limit != usual and limit is not None:
            changed = ", ".join(f"{key}={value}" for key, value in limit.items() if value != (usual or {}).get(key))
            raise ConfigError(
                f"{run.label} was trained to other limits than the rest of its group ({changed}): leave it out, or "
                "give --any-length."
            )
