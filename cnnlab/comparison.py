"""How runs differ: in what they were, in what they reached, and whether that difference is more than chance."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from cnnlab.errors import ConfigError, DataError
from cnnlab.files import flatten, read_json
from cnnlab.record import Record, find, precision_of
from cnnlab.stats import Verdict, holm, mcnemar, welch


class Side:
    """One of the runs that are compared.

    Args:
        named: What `record.find` takes.
        label: What it is called in tables.
    """

    def __init__(self, named: str, label: str) -> None:
        self.named = named
        self.label = label
        self.checkpoint, record = find(named)
        if record is None:
            raise ConfigError(f"{named} stands alone: `compare` needs the run's folder around it.")
        self.record: Record = record

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Code version and environment."""
        run = self.record.run
        git = run.get("git") or {}
        commit = f"{str(git.get('commit'))[:10]}{' and changes' if git.get('dirty') else ''}" if git else None
        return {
            "status": run.get("status"), "git commit": commit, **_mapping(run.get("versions")),
            "device": run.get("device"), "precision": run.get("precision"),
            "parameters": run.get("num_parameters"), "seconds": run.get("seconds"),
        }  # fmt: skip

    def right(self, data: Path | None, trusted: Sequence[str]) -> tuple[Bool[np.ndarray, "n"], str]:
        """Return which test images it classifies rightly, and the digest of these; evaluated now if it was not yet.

        Raises:
            DataError: The images are not there.
        """
        path = self.record.folder / "evaluation.json"
        if data is None and self.checkpoint.name == "best.ckpt" and self._holds(path):
            saved = read_json(path)
            try:
                with np.load(path.with_suffix(".npz"), allow_pickle=False) as answers:
                    return answers["predicted"] == answers["targets"], str(saved["data_digest"])
            except (OSError, KeyError, ValueError):
                pass  # damaged, or half copied: made again
        from cnnlab.evaluation import evaluate

        done = evaluate(self.named, data=data, figures=False, trusted=trusted)
        return done.predicted == done.targets, done.content["data_digest"]

    def _holds(self, path: Path) -> bool:
        """Whether an earlier evaluation is that of the run as it stands, by the run's own settings."""
        saved = read_json(path)
        config = self.record.config
        own = {
            "format": 1,
            "split": "test",
            "tta": _mapping(config.get("eval")).get("tta", "none"),
            "precision": precision_of(config),
        }
        if any(saved.get(name) != value for name, value in own.items()):
            return False
        made_from = [self.checkpoint, *(place for place in [Path(str(saved.get("data")))] if place.is_file())]
        return all(path.stat().st_mtime_ns >= place.stat().st_mtime_ns for place in made_from)


def sides(names: Sequence[str]) -> list[Side]:
    """Find the runs; each is labelled by what its folder's name does not share with the others'.

    Raises:
        ConfigError: There is no such run, or one is named twice.
        CheckpointError: It has no checkpoint.
    """
    found = [Side(name, "") for name in names]
    checkpoints = [side.checkpoint.resolve() for side in found]
    if len(set(checkpoints)) < len(found):
        twice = next(name for name, path in zip(names, checkpoints, strict=True) if checkpoints.count(path) > 1)
        raise ConfigError(f"{twice} is named twice: a run does not differ from itself.")
    parts = [side.record.folder.resolve().parts for side in found]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    for side, part in zip(found, parts, strict=True):
        file = "" if side.checkpoint.name == "best.ckpt" else f":{side.checkpoint.stem}"
        side.label = "/".join(part[shared:]) + file
    return found


def differences(compared: Sequence[Side]) -> dict[str, list[Any]]:
    """Return the config keys whose values are not all the same, with each run's value; None where it has none."""
    configs = [dict(flatten(side.record.config)) for side in compared]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def environments(compared: Sequence[Side]) -> dict[str, list[Any]]:
    """Return code version and environment of each run."""
    names = dict.fromkeys(name for side in compared for name in side.facts)
    return {name: [side.facts.get(name) for side in compared] for name in names}


def metrics(compared: Sequence[Side]) -> dict[str, list[float | None]]:
    """Return the metrics that any of the runs measured."""
    names = sorted({name for side in compared for name in side.record.metrics if name != "objective"})
    return {name: [side.record.metrics.get(name) for side in compared] for name in names}


def curves(compared: Sequence[Side]) -> dict[str, dict[str, list[float]]]:
    """Return each run's `history.csv` as columns."""
    found = {}
    for side in compared:
        rows = side.record.history
        if rows:
            found[side.label] = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    return found


def against_first(
    compared: Sequence[Side], data: Path | None = None, trusted: Sequence[str] = ()
) -> dict[str, Verdict]:
    """Hold each run against the first one, image by image; with several, p is Holm's.

    Raises:
        DataError: A run's images are not there, or they are not those of the first.
        CnnlabError: As `evaluation.evaluate`.
    """
    first, digest = compared[0].right(data, trusted)
    found = {}
    for side in compared[1:]:
        second, other = side.right(data, trusted)
        if other != digest:
            raise DataError(
                f"{side.label} was tested on other images than {compared[0].label}: give a file for both with --data."
            )
        found[side.label] = mcnemar(first, second)
    adjusted = holm([verdict.p for verdict in found.values()])
    note = "" if len(found) == 1 else ", Holm's correction"
    return {
        label: verdict._replace(p=p, test=verdict.test + note)
        for (label, verdict), p in zip(found.items(), adjusted, strict=True)
    }


def of_groups(first: Sequence[Side], second: Sequence[Side], metric: str = "test/accuracy") -> Verdict:
    """Hold one group of runs against another, such as five seeds of each of two recipes.

    Raises:
        ConfigError: A run did not measure the metric; or is in both groups; or a group has a single run, or two of the
            same seed.
    """
    folders = [side.record.folder.resolve() for side in (*first, *second)]
    if twice := next(
        (side for side, folder in zip(second, folders[len(first) :], strict=True) if folder in folders[: len(first)]),
        None,
    ):
        raise ConfigError(f"{twice.label} is a state of a run that is in the first group too: groups share no run.")
    if min(len(first), len(second)) < 2:
        raise ConfigError("a comparison over seeds needs at least two runs on each side of --against.")
    for group in (first, second):
        _check_independent(group)
    values = []
    for group in (first, second):
        measured = [side.record.metrics.get(metric) for side in group]
        for side, value in zip(group, measured, strict=True):
            if not isinstance(value, int | float):
                raise ConfigError(f"{side.label} did not measure {metric}; choose another with --metric.")
        values.append([float(value) for value in measured if value is not None])
    return welch(*values)


def _check_independent(group: Sequence[Side]) -> None:
    """Check that a group's runs are so many measurements: the same seed makes the same run again."""
    known: dict[str, Side] = {}
    for side in group:
        # Everything of that name: runs may have one seed and other images held out.
        seeds = {key: value for key, value in flatten(side.record.config) if key.rpartition(".")[2].endswith("seed")}
        other = known.setdefault(str(sorted(seeds.items())), side) if seeds else side
        if other is not side:
            raise ConfigError(
                f"{other.label} and {side.label} have the same seed, {seeds.get('seed')}: in a group that is one "
                "measurement, not two. Leave one of them out, or train with another seed."
            )


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
