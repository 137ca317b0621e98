"""Whether one recipe is better than another: paired seeds of both, trained until the answer is certain, and no longer.

`decide` returns what `decision.json` holds:

| key | holds |
|---|---|
| `format` | 1: the version of this layout |
| `answer` | `better`, `worse`, `no difference` or `undecided`: what the second recipe is, compared with the first |
| `sentence` | the same in words |
| `first`, `second` | the overrides of each, without the seed |
| `metric`, `margin`, `alpha` | what was compared; the difference that does not matter; the error rate |
| `difference`, `low`, `high` | mean of the second less the first, and its interval, signed so that more is better |
| `new_images` | `answer`, `low`, `high` for other images of the same kind, and `images`, how many were at hand; null
  where the metric is no accuracy, or the runs' answers are not to be had |
| `pairs` | `seed`, `first`, `second`: the values |
"""

import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from cnnlab.config import composed, project, quote, unjudged
from cnnlab.config.resume import changes
from cnnlab.console import Waiting
from cnnlab.errors import CnnlabError, ConfigError, DamagedError, DivergedError, MachineError
from cnnlab.files import finite, read_bytes, write_text
from cnnlab.identity import IRRELEVANT
from cnnlab.objective import direction
from cnnlab.record import LIMITS, RUNS, Record, is_run, without
from cnnlab.run import importing
from cnnlab.stats import LEVEL, confidence_sequence

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float

Answer = Literal["better", "worse", "no difference", "undecided"]
FEWEST = 3
"""Pairs before the first answer: two differences are too often equal by chance, as accuracies come in steps."""
OF_ONE_RUN = ("seed", "resume", "reuse", "hydra.run.dir", "callbacks.prune")
"""What a run was begun with that is no part of its recipe; a search has its trials pruned."""

_config_of = cache(unjudged)


class RefusedError(CnnlabError):
    """A recipe that no run can be made of: its settings are refused together, or the training diverges."""


class Pair(NamedTuple):
    """The metric of one seed of both recipes, and the step in which it comes, such as one image of those counted."""

    seed: int
    first: float
    second: float
    step: float = 0.0


class Decision(NamedTuple):
    """What some pairs say: see the module for the names."""

    answer: Answer
    difference: float
    low: float
    high: float
    pairs: tuple[Pair, ...]


def decide(
    pairs: Iterator[Pair],
    *,
    larger_is_better: bool = True,
    margin: float = 0.002,
    alpha: float = LEVEL,
    max_seeds: int = 40,
    after_each: Callable[[Decision], None] | None = None,
) -> Decision:
    """Ask for one pair after the other until the answer is certain.

    The interval of the mean difference may be looked at after every pair (`stats.confidence_sequence`): over a whole
    decision it ever leaves out the true difference with probability `alpha` at most, if the differences of pairs are
    normally distributed.

    Args:
        pairs: Trains the next pair when it is asked for it.
        larger_is_better: Whether more of the metric is better.
        margin: Differences up to this size do not matter.
        alpha: The error rate.
        max_seeds: Pairs after which it is given up.
        after_each: Called with the state after each pair.

    Raises:
        ConfigError: A number is out of its range.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha must be above 0 and below 1, got {alpha}.")
    if margin < 0:
        raise ConfigError(f"--margin must be at least 0, got {margin}.")
    if max_seeds < FEWEST:
        raise ConfigError(f"--max-seeds must be at least {FEWEST}, got {max_seeds}.")
    sign = 1 if larger_is_better else -1
    seen: list[Pair] = []
    decision = Decision("undecided", math.nan, -math.inf, math.inf, ())
    for pair in pairs:
        seen.append(pair)
        differences = [sign * (each.second - each.first) for each in seen]
        # Two values rounded to steps differ by a rounding error of this standard deviation.
        low, high = confidence_sequence(differences, alpha, pair.step / math.sqrt(6))
        answer: Answer = judge(low, high, margin) if len(seen) >= FEWEST else "undecided"
        decision = Decision(answer, statistics.fmean(differences), low, high, tuple(seen))
        if after_each is not None:
            after_each(decision)
        if answer != "undecided" or len(seen) >= max_seeds:
            break
    return decision


def judge(low: float, high: float, margin: float) -> Answer:
    """Return what an interval of a difference says."""
    if -margin <= low and high <= margin:
        return "no difference"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def widen(decision: Decision, by_image: "Float[np.ndarray, 'n']", margin: float, alpha: float) -> dict[str, Any]:
    """Return what a decision is on other images of the same kind: `answer`, `low`, `high`, `images`.

    The true difference on other images is that on these images, which the seeds tell, and what the choice of the images
    does. A quarter of `alpha` goes to a normal interval over images, the rest to that over seeds. Its variance is that
    of the images' mean differences: it holds some of the seeds' variance too, and so is rather too wide.

    Args:
        decision: What the pairs say about these images.
        by_image: Of each image, how much more often the second recipe has it right than the first, over all pairs.
        margin: The difference that does not matter.
        alpha: The error rate.
    """
    count = len(by_image)
    differences = [pair.second - pair.first for pair in decision.pairs]
    low, high = confidence_sequence(differences, 0.75 * alpha, decision.pairs[-1].step / math.sqrt(6))
    reach = statistics.NormalDist().inv_cdf(1 - alpha / 8) * float(by_image.std(ddof=1)) / math.sqrt(count)
    # Where no image differs, of others at most so many do: (1 - share)^count = alpha / 8.
    reach = max(reach, 1 - (alpha / 8) ** (1 / count))
    low, high = low - reach, high + reach
    return {"answer": judge(low, high, margin), "low": low, "high": high, "images": count}


def differences_by_image(folder: Path, pairs: Sequence[Pair], metric: str) -> "Float[np.ndarray, 'n'] | None":
    """Return how much more often the second recipe has each image right than the first, over all pairs.

    None where the metric is no accuracy, or answers of the best states are not to be had or not those measured.
    """
    import numpy as np

    split, _, name = metric.partition("/")
    if name != "accuracy" or split not in ("val", "test") or not pairs:
        return None
    sums: Any = 0
    for pair in pairs:
        for recipe_name, value, sign in (("first", pair.first, -1), ("second", pair.second, 1)):
            try:
                right = _right_images(folder / f"{recipe_name}-seed={pair.seed}", split)
            except CnnlabError:  # such as a network of the user's own, which is not imported unasked
                return None
            if abs(right.mean() - value) > 0.5 / len(right) or (np.ndim(sums) and len(sums) != len(right)):
                return None
            sums = sums + sign * right.astype(float)
    return np.asarray(sums) / len(pairs)


def _right_images(folder: Path, split: str) -> "Bool[np.ndarray, 'n']":
    """Return which images of a split a run's best state has right; evaluates it where that was not done."""
    from cnnlab.answers import read_evaluation

    record = Record(folder)
    evaluation = read_evaluation(record, record.best, split)
    if evaluation is None:
        with Waiting.start(f"evaluating {folder.name}"):
            with importing():
                from cnnlab.evaluation import evaluate
            evaluation = evaluate(str(folder), split=cast(Any, split), figures=False)
    return evaluation.predicted == evaluation.targets


def describe(
    decision: Decision,
    *,
    first: Sequence[str],
    second: Sequence[str],
    metric: str,
    margin: float,
    alpha: float,
    new_images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `decision.json`."""
    words = {
        "better": f"B is better than A in {metric}",
        "worse": f"B is worse than A in {metric}",
        "no difference": f"A and B differ by no more than {margin:g} in {metric}",
        "undecided": f"undecided: whether A and B differ by more than {margin:g} in {metric} is not certain",
    }
    ends = f"interval {decision.low:+.4f} to {decision.high:+.4f}, which may be looked at at any time"
    interval = f"{decision.difference:+.4f}, {ends if math.isfinite(decision.low) else 'no interval yet'}"
    sentence = (
        f"{words[decision.answer]} ({len(decision.pairs)} pairs of seeds; B over A {interval}; error rate {alpha:.3g})."
    )
    if new_images:
        span = f"is between {new_images['low']:+.4f} and {new_images['high']:+.4f}: {new_images['answer']}"
        sentence += (
            f" So it is on these {new_images['images']:,} images; on others of their kind, B over A "
            f"{span if math.isfinite(new_images['low']) else 'takes more pairs to tell'}."
        )
    return finite({
        "format": 1,
        "answer": decision.answer,
        "sentence": sentence,
        "first": list(first),
        "second": list(second),
        "metric": metric,
        "margin": margin,
        "alpha": alpha,
        "difference": decision.difference,
        "low": decision.low,
        "high": decision.high,
        "new_images": new_images,
        "pairs": [{"seed": pair.seed, "first": pair.first, "second": pair.second} for pair in decision.pairs],
    })  # fmt: skip


def recipe(words: Sequence[str]) -> list[str]:
    """Return the overrides of a recipe: those given, or those that the run was begun with whose folder is given."""
    if len(words) == 1 and (is_run(Path(words[0])) or "=" not in words[0]):
        if not is_run(Path(words[0])):
            raise ConfigError(f"{words[0]} must be a run's folder; overrides are given by --a and --b.")
        words = Record(Path(words[0])).overrides
    return without(words, OF_ONE_RUN)


def folder_of(kind: str, recipes: Sequence[Any]) -> Path:
    """Return where the runs of some recipes stand by default: the same recipes, the same folder."""
    return RUNS / kind / hashlib.sha256(json.dumps(recipes).encode()).hexdigest()[:8]


def train_pairs(first: Sequence[str], second: Sequence[str], metric: str, folder: Path) -> Iterator[Pair]:
    """Train one seed of both recipes after the other; what exists is not trained again, what was stopped is resumed.

    Raises:
        CnnlabError: A run failed; the message is its own.
    """
    for seed in itertools.count():
        before, _ = train_seed(first, seed, metric, folder, "first")
        yield Pair(seed, before, *train_seed(second, seed, metric, folder, "second"))


def train_seed(overrides: Sequence[str], seed: int, metric: str, folder: Path, name: str) -> tuple[float, float]:
    """Train a recipe with a seed, unless the folder holds that run, and return a metric of it.

    Args:
        overrides: The recipe.
        seed: The seed.
        metric: The metric's name.
        folder: Where the runs stand.
        name: The recipe's, in that of the run's folder.

    Returns:
        The value, and the step in which it comes: one image of those counted, or 0.

    Raises:
        ConfigError: The metric is not measured, or the folder holds a run of another recipe.
        CnnlabError: The run failed; the message is its own.
    """
    place = folder / f"{name}-seed={seed}"
    if is_run(place):
        config = _config_of(tuple(overrides)) | {"seed": seed}
        limits = [f"trainer.{limit}" for limit in LIMITS] if config.get("budget") is not None else []
        if differing := changes(Record(place).config, config, (*IRRELEVANT, *limits)):
            raise ConfigError(f"{place} holds a run of another recipe ({differing[0]}): give another --folder.")
    _train([*overrides, f"seed={seed}"], place)
    record = Record(place)
    value = record.metrics.get(metric)
    if not isinstance(value, int | float):
        raise ConfigError(f"--metric {metric} is not measured by {shlex.join(overrides)}.")
    images = (record.run.get("images") or {}).get(metric.partition("/")[0])
    return float(value), 1 / images if images and metric.endswith("accuracy") else 0.0


def compared_metric(overrides: Sequence[str], metric: str | None) -> tuple[str, bool]:
    """Return the metric to compare, by default the recipe's objective, and whether more of it is better.

    Raises:
        ConfigError: The recipe is wrong, or nothing says whether more is better.
    """
    config: Any = dict(composed(overrides))
    metric = metric or str(config["objective"]["metric"])
    better = direction(metric, config)
    if better is None:
        raise ConfigError(f"--metric {metric}: nothing says whether more of it is better; choose another.")
    return metric, better == "max"


def share_alpha(ledger: Path, alpha: float) -> float:
    """Return what a ledger leaves the next decision of a campaign: over all of them the error rate is `alpha`.

    The k-th decision gets 6 / (π k)² of it, shares that add up to one.

    Raises:
        ConfigError: The file is no ledger.
    """
    count = len(_entries(ledger)) + 1
    return alpha * 6 / (math.pi * count) ** 2


def note_in_ledger(ledger: Path, entry: Mapping[str, Any]) -> None:
    """Add a decision to a ledger: a JSON object a line."""
    lines = [json.dumps(each) for each in [*_entries(ledger), entry]]
    write_text(ledger, "\n".join(lines) + "\n")


def _entries(ledger: Path) -> list[Any]:
    try:
        text = read_bytes(ledger).decode()
    except FileNotFoundError:
        return []
    except (DamagedError, MachineError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ledger {ledger} cannot be read: {error}") from error
    try:
        return [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise ConfigError(f"--ledger {ledger} must hold a JSON object a line: {error}") from error


def _train(overrides: Sequence[str], folder: Path) -> None:
    record = Record(folder)
    if record.run.get("status") == "completed":
        return
    begun = is_run(folder) and bool(record.run)
    arguments = [f"resume={quote(folder)}"] if begun else [*overrides, "reuse=true", f"hydra.run.dir={quote(folder)}"]
    command = [sys.executable, "-c", "from cnnlab.cli import app; app()", "train", *arguments, *project.words()]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        with Waiting.start(f"training {folder.name}"):
            _, errors = child.communicate()
    except BaseException:  # a signal of ours: the run saves, and is resumed by the same command
        child.send_signal(signal.SIGTERM)
        child.communicate()
        raise
    if child.returncode:
        prefix = "cnnlab: error: "
        lines = [line.removeprefix(prefix) for line in errors.splitlines() if line.startswith(prefix)]
        hopeless = child.returncode in (ConfigError.exit_code, DivergedError.exit_code)
        kind = RefusedError if hopeless else CnnlabError
        error = kind("\n".join(lines[-2:]) or f"{folder} ended with {child.returncode}")
        error.exit_code = child.returncode
        raise error
