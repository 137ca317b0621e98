"""What a sweep's table adds up to: whether the winner's lead is more than chance, and which setting mattered."""

import importlib.util
from typing import Any, NamedTuple

from cnnlab.files import look_up
from cnnlab.stats import corrected, welch, wilson
from cnnlab.sweep.table import Group, Table
from cnnlab.wording import format_difference, format_setting

MIN_TRIALS = 12  # to say which setting mattered
GOOD = 0.25  # the share of the trials that count as good
LOG_RATIO = 20  # numbers that span more than this are weighed on a log scale


class Pooled(NamedTuple):
    """An accuracy over the validation images of all folds, each of which is counted once.

    Attributes:
        accuracy: The share that was classified rightly.
        images: How many there are.
        low: Lower end of its 95 % interval (Wilson).
        high: Upper end.
    """

    accuracy: float
    images: int
    low: float
    high: float


def lead(table: Table) -> str | None:
    """Say whether the winner's lead over the runner-up is more than chance; None without a runner-up."""
    if len(table.groups) < 2:
        return None
    best, second = table.groups[:2]
    names = _name(second, best), _name(best, second)
    if best.mean == second.mean:
        return f"{names[1]} and {names[0]} are equally good"
    if min(len(best.rows), len(second.rows)) < 2:
        ahead = format_difference(table.metric, abs(best.mean - second.mean))
        return (
            f"{names[1]} leads {names[0]} by {ahead}: whether that is more than chance can't be told from one run of "
            "either; repeat both with several seeds (seed=0,1,2,3,4)"
        )
    verdicts = [
        welch(_values(group), _values(best)) for group in table.groups[1:] if len(group.rows) > 1
    ]  # the first is the runner-up's
    return corrected(verdicts)[0].words(*names, table.metric)


def importance(table: Table) -> dict[str, float]:
    """Return each setting's share in what made a trial one of the best quarter, the largest first.

    Empty where fewer than twelve trials were completed, where only one setting varied, or without Optuna.

    Source: Watanabe et al. 2023, "PED-ANOVA", arXiv:2304.10255, as Optuna has it.
    """
    rows = [row for group in table.groups for row in group.rows]
    columns = {
        key: [row.settings[key] for row in rows]
        for key in table.keys
        if key not in table.over and all(key in row.settings for row in rows)
    }
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    is_enough = len(rows) >= MIN_TRIALS and len(columns) > 1 and len({row.objective for row in rows}) > 1
    if not is_enough or importlib.util.find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scales = {key: _scale(column) for key, column in columns.items()}
    study = optuna.create_study(direction="maximize" if table.sign > 0 else "minimize")
    for index, row in enumerate(rows):
        values = {key: scales[key][1][index] for key in columns}
        distributions = {key: scale[0] for key, scale in scales.items()}
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=row.objective))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def pooled(table: Table, group: Group) -> Pooled | None:
    """Return the accuracy over the validation images of all folds; None where they are no whole set of folds."""
    folds = look_up(table.record["config"], "data", "folds")
    numbers = [row.settings.get("data.fold") for row in group.rows]
    counts = [row.images.get("val", 0) for row in group.rows]
    if not isinstance(folds, int) or table.metric != "val/accuracy" or not all(counts):
        return None
    passes = len(numbers) // folds  # over the images, as with several seeds
    if len(set(numbers)) != folds or any(numbers.count(number) != passes for number in numbers):
        return None
    images = round(sum(counts) / passes)
    right = sum(row.metrics["val/accuracy"] * row.images["val"] for row in group.rows) / passes
    return Pooled(right / images, images, *wilson(round(right), images))


def _values(group: Group) -> list[float]:
    return [row.objective for row in group.rows if row.objective is not None]


def _name(group: Group, other: Group) -> str:
    """Return the settings that tell a group from another."""
    differing = {key: value for key, value in group.settings.items() if other.settings.get(key) != value}
    return " ".join(f"{key.rpartition('.')[2]}={format_setting(value)}" for key, value in differing.items())


def _scale(texts: list[str]) -> tuple[Any, list[Any]]:
    """Return the distribution that a setting's values were drawn from, as far as they show it, and the values."""
    import optuna

    try:
        numbers = [float(text) for text in texts]
        low, high = min(numbers), max(numbers)
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low >= LOG_RATIO), numbers
    except (OverflowError, ValueError):
        return optuna.distributions.CategoricalDistribution(sorted(set(texts))), texts
