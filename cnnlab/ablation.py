"""Which of a recipe's settings matter: each is left out in turn, back to its default, with the same seeds.

`ablate` returns what `ablation.json` holds:

| key | holds |
|---|---|
| `format` | 1: the version of this layout |
| `recipe`, `metric`, `seeds` | the overrides, what was compared, how many seeds |
| `value` | mean of the whole recipe |
| `settings` | those that harm first, then those that help, then those without evidence, the largest effect first: |
| `setting`, `overrides` | its key; what leaves it out |
| `answer` | `harms`, `helps` or `no evidence` |
| `difference`, `low`, `high` | the recipe less that without it, and its 95 % interval, signed so that more is better |
| `p`, `holm` | of the paired t-test; the same corrected for the number of settings |
| `values` | of the recipe without it, a number a seed |
| `left_alone` | settings that the rest of the recipe cannot do without, and what was wrong |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from cnnlab.config import chosen, composed, unjudged
from cnnlab.config.lines import as_text
from cnnlab.decision import RefusedError, train_seed
from cnnlab.errors import ConfigError
from cnnlab.files import flatten, look_up
from cnnlab.identity import IRRELEVANT
from cnnlab.record import without
from cnnlab.stats import LEVEL, holm, paired

SECTIONS = (
    "data", "augment", "model", "init", "loss", "classifier", "optimizer", "schedule", "eval", "trainer", "callbacks",
    "init_from",
)  # fmt: skip
FIXED = (
    *IRRELEVANT, "trainer.max_*", "trainer.min_*", "trainer.limit_*", "trainer.accelerator", "trainer.devices",
    "trainer.strategy", "trainer.num_nodes", "trainer.*val*", "callbacks.checkpoint*",
)  # fmt: skip
"""Settings that say how long a run trains, where, and what is recorded; they are left out only if they are named."""
OF_DATA = ("data.batch_size", "data.sampler", "data.drop_last")
"""Settings of the data that belong to a recipe, and not to the task."""


class Setting(NamedTuple):
    """A setting of a recipe, and the overrides that make the recipe without it."""

    key: str
    overrides: tuple[str, ...]


def settings_of(recipe: Sequence[str], drop: Sequence[str] = ()) -> tuple[list[Setting], dict[str, str]]:
    """Return the settings of a recipe that differ from the defaults of `conf`.

    A section with another class, such as another optimizer, is one setting with all its values.

    Args:
        recipe: Overrides.
        drop: Only these keys.

    Returns:
        The settings; and those that the rest of the recipe cannot do without, each with the reason.

    Raises:
        ConfigError: The recipe is wrong, or a key of `drop` has its default or cannot be left out.
    """
    composed(recipe)  # refuses what is wrong
    config, default = unjudged(recipe), unjudged(())
    keys = [key for key in _differences(config, default) if _is_of_recipe(key)]
    settings, left_alone = [], {}
    for key in drop or keys:
        if look_up(config, *key.split(".")) == look_up(default, *key.split(".")):
            raise ConfigError(f"--drop {key} must be a setting that differs from its default: {', '.join(keys)}.")
        overrides = _without(recipe, key, default)
        try:
            composed(overrides)
        except ConfigError as error:
            if drop:
                raise ConfigError(f"--drop {key} cannot be left out alone: {error}") from error
            left_alone[key] = str(error)
        else:
            settings.append(Setting(key, tuple(overrides)))
    if not settings:
        raise ConfigError("RECIPE must set something that can be left out; it has the defaults of conf.")
    return settings, left_alone


def ablate(
    recipe: Sequence[str],
    settings: Sequence[Setting],
    metric: str,
    folder: Path,
    *,
    seeds: int = 5,
    larger_is_better: bool = True,
    left_alone: Mapping[str, str] | None = None,
    after_each: Callable[[str, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the recipe and the recipe without each setting, and compare; runs that exist are not trained again.

    Args:
        recipe: Overrides, without the seed.
        settings: What to leave out in turn.
        metric: What is compared.
        folder: Where the runs stand.
        seeds: Of each; 2 or more.
        larger_is_better: Whether more of the metric is better.
        left_alone: What cannot be left out, with the reason. A setting whose runs are refused joins it.
        after_each: Called with setting, seed and value after each run.

    Raises:
        ConfigError: There are too few seeds, or the metric is not measured.
        CnnlabError: A run failed; the message is its own.
    """
    if seeds < 2:
        raise ConfigError(f"--seeds must be at least 2, got {seeds}.")
    values: dict[str, list[float]] = {key: [] for key in ("recipe", *(setting.key for setting in settings))}
    left_alone = dict(left_alone or {})
    step = 0.0
    for seed in range(seeds):
        for key, overrides in (("recipe", recipe), *settings):
            if key in left_alone:
                continue
            name = "recipe" if key == "recipe" else f"without-{key}"
            try:
                value, step = train_seed(overrides, seed, metric, folder, name)
            except RefusedError as error:
                if key == "recipe" or len(values) == 2:
                    raise
                left_alone[key] = str(error)
                del values[key]
                continue
            values[key].append(value)
            if after_each is not None:
                after_each(key, seed, value)
    sign = 1 if larger_is_better else -1
    return {
        "format": 1,
        "recipe": list(recipe),
        "metric": metric,
        "seeds": seeds,
        "value": sum(values["recipe"]) / seeds,
        "settings": compare(values.pop("recipe"), values, {s.key: s.overrides for s in settings}, sign, step),
        "left_alone": left_alone,
    }


def compare(
    whole: Sequence[float],
    without: Mapping[str, Sequence[float]],
    overrides: Mapping[str, Sequence[str]],
    sign: int = 1,
    step: float = 0.0,
) -> list[dict[str, Any]]:
    """Compare a recipe with itself without each setting, by pairs of seeds.

    Args:
        whole: The recipe's values, one a seed.
        without: Those without each setting, in the same order.
        overrides: Of each setting, for the table.
        sign: -1 where less is better.
        step: In which the values come, such as one image of those counted.
    """
    verdicts = {
        key: paired([sign * (value - other) for value, other in zip(whole, others, strict=True)], step / 6**0.5)
        for key, others in without.items()
    }
    corrected = dict(zip(verdicts, holm([verdict.p for verdict in verdicts.values()]), strict=True))
    rows = [
        {
            "setting": key,
            "overrides": list(overrides[key]),
            "answer": "no evidence" if corrected[key] >= LEVEL else "helps" if verdict.difference > 0 else "harms",
            "difference": verdict.difference, "low": verdict.low, "high": verdict.high,
            "p": verdict.p, "holm": corrected[key], "values": list(without[key]),
        }
        for key, verdict in verdicts.items()
    ]  # fmt: skip
    order = ("harms", "helps", "no evidence")
    return sorted(rows, key=lambda row: (order.index(row["answer"]), -abs(row["difference"])))


def _differences(config: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys in which a config is not the default; a section of another class as one key."""
    for name in {**config, **default}:
        key, value, other = f"{prefix}{name}", config.get(name), default.get(name)
        if value == other:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping) and value.get("_target_") == other.get("_target_"):
            yield from _differences(value, other, f"{key}.")
        else:
            yield key


def _is_of_recipe(key: str) -> bool:
    section = key.partition(".")[0]
    if section == "data":
        return key in OF_DATA
    return section in SECTIONS and not any(fnmatchcase(key, kind) for kind in FIXED)


def _without(recipe: Sequence[str], key: str, default: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a recipe in which a key, and all below it, has its default."""
    lines = without(recipe, [key])
    goal = look_up(default, *key.split("."))
    if isinstance(goal, Mapping) and "_target_" in goal and "." not in key:
        lines.append(f"{key}={','.join(chosen(key))}")
    value = look_up(unjudged(lines), *key.split("."))
    section, _, name = key.rpartition(".")
    if value is not None and section and name not in (look_up(default, *section.split(".")) or {}):
        return [*lines, f"~{key}"]
    before, after = (dict(flatten({key: content})) for content in (value, goal))
    lines += [f"~{name}" for name in before if name not in after]
    lines += [f"+{name}={as_text(content)}" for name, content in after.items() if name not in before]
    return lines + [
        f"{name}={as_text(content)}" for name, content in after.items() if before.get(name, content) != content
    ]
