"""How runs differ: in what they were, in what they reached, and whether that difference is more than chance."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from cnnlab.errors import ConfigError, DataError
from cnnlab.ledger import flat
from cnnlab.record import Record, find, precision_of, read_json

LEVEL = 0.05
RESAMPLES = 10_000


class Verdict(NamedTuple):
    """Whether two things differ.

    Attributes:
        difference: Second minus first, of the accuracy or the metric.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: How often chance alone would make a difference at least as large.
        test: Which test says so, over what.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str

    def words(self, first: str, second: str, what: str = "accuracy") -> str:
        """Return the verdict as a sentence."""
        interval = f"{self.difference:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
        how = f"{self.test}, p = {self.p:.2g}; difference {interval}"
        if self.p >= LEVEL:
            return f"no evidence of a difference in {what} between {first} and {second} ({how})"
        return f"{second} has the {'higher' if self.difference > 0 else 'lower'} {what} than {first} ({how})"


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


def sides(names: Sequence[str], letter: str = "") -> list[Side]:
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
    configs = [dict(flat(side.record.config)) for side in compared]
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
        found[side.label] = paired(first, second)
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
        seeds = {key: value for key, value in flat(side.record.config) if key.rpartition(".")[2].endswith("seed")}
        other = known.setdefault(str(sorted(seeds.items())), side) if seeds else side
        if other is not side:
            raise ConfigError(
                f"{other.label} and {side.label} have the same seed, {seeds.get('seed')}: in a group that is one "
                "measurement, not two. Leave one of them out, or train with another seed."
            )


def paired(first: Bool[np.ndarray, "n"], second: Bool[np.ndarray, "n"]) -> Verdict:
    """Test whether two classifiers are right equally often, from which of the same images each has right.

    McNemar's exact test: of the images that only one has right, either is as likely to be the one. The interval is the
    bootstrap's over the images, of which only three kinds count.

    Source: McNemar 1947, doi:10.1007/BF02295996; Efron & Tibshirani 1993, chapter 13 (percentile interval).
    """
    count = len(first)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    drawn = np.random.default_rng(0).multinomial(
        count, [lost / count, won / count, (count - lost - won) / count], RESAMPLES
    )
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / count, [2.5, 97.5])
    p = min(1.0, 2 * _binomial_tail(min(lost, won), lost + won))
    return Verdict((won - lost) / count, float(low), float(high), p, f"McNemar's exact test over {count:,} test images")


def welch(first: Sequence[float], second: Sequence[float]) -> Verdict:
    """Test whether two groups of measurements, normally distributed, have the same mean.

    Source: Welch 1947, doi:10.1093/biomet/34.1-2.28.

    Raises:
        ConfigError: A group has fewer than two.
    """
    if min(len(first), len(second)) < 2:
        raise ConfigError("a comparison over seeds needs at least two runs on each side of --against.")
    difference = float(np.mean(second) - np.mean(first))
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (first, second)]
    error = math.sqrt(sum(parts))
    test = f"Welch's t-test over {len(first)} and {len(second)} runs"
    if error == 0:  # each group repeats one value
        return Verdict(difference, difference, difference, 1.0 if difference == 0 else 0.0, test)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, (first, second), strict=True)
    )
    half = error * _t_quantile(LEVEL, freedom)
    return Verdict(difference, difference - half, difference + half, t_tails(difference / error, freedom), test)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values that stay what they claim to be although there are several.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, values[index] * (len(values) - rank)))
        adjusted[index] = highest
    return adjusted


def t_tails(t: float, freedom: float) -> float:
    """Return how likely Student's t is at least so far from zero.

    With t = sqrt(freedom) tan(angle) the density is that of cos(angle) to the power of freedom - 1: smooth, and
    bounded.
    """
    start = math.atan(abs(t) / math.sqrt(freedom))
    angles = np.linspace(start, math.pi / 2, 2_001)
    heights = np.cos(angles).clip(min=0) ** (freedom - 1)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * float(np.trapezoid(heights, angles)))


def _t_quantile(tails: float, freedom: float) -> float:
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return high


def _binomial_tail(most: int, count: int) -> float:
    """Return the probability of at most so many heads in `count` fair throws."""
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(most + 1)]
    return float(sum(math.exp(value - count * math.log(2)) for value in logs))


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
