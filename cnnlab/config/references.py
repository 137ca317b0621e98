"""Values of a config that refer to other keys, followed without running any resolver."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.tree import Key
from cnnlab.errors import ConfigError
from cnnlab.record import Record
from cnnlab.wording import parse_duration

REFERENCE = re.compile(r"\$\{(\.*)(\w+(?:\.\w+)*)\}")
BY_BUDGET = re.compile(r"\$\{by_budget:(\{[^$&*]*\})\}")


class Unresolved(Exception):  # noqa: N818 - no error, only a value that can't be judged yet
    """A value that a resolver makes when the run starts."""


def without_hydra(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers without its `hydra` part, references as they stand."""
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def follow(config: Mapping[str, Any], key: Key, depth: int = 0) -> Any:
    """Return the value of a key with references to other keys followed.

    No resolver runs: one may read the environment or a file.

    Raises:
        KeyError: There is no such key, or a reference leads nowhere.
        Unresolved: A resolver makes the value.
    """
    value: Any = config
    for part in key:
        if isinstance(value, str) and "${" in value:
            raise Unresolved
        if not isinstance(value, Mapping):
            raise KeyError(part)
        value = value[part]
    return resolved(value, key, config, depth)


def resolved(value: Any, key: Key, config: Mapping[str, Any], depth: int = 0) -> Any:
    """Return the value that stands at a key with its references followed; raises as `follow` does."""
    if isinstance(value, list):
        return [resolved(element, (*key, str(index)), config, depth) for index, element in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    if choice := BY_BUDGET.fullmatch(value):
        return by_budget(yaml.safe_load(choice[1]), config)
    reference = REFERENCE.fullmatch(value)
    if not reference or reference[2].split(".")[0] == "hydra":
        raise Unresolved
    if depth == 20:
        raise KeyError(value)
    base = key[: -len(reference[1])] if reference[1] else ()
    return follow(config, (*base, *reference[2].split(".")), depth + 1)


def get(config: Mapping[str, Any], *key: str) -> Any:
    """Return the value of a key as `follow` does, or None where there is none to be had."""
    try:
        return follow(config, key)
    except (KeyError, Unresolved):
        return None


def by_budget(values: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """Return the value that a recipe has for the time of a run: that of the longest time which is no longer.

    In a config: `${by_budget:{1s: 16, 5min: 64}}`.

    Args:
        values: One for each of some times, as 90s, 10min or 2h.
        config: The run's, whose `budget` decides; without one, the value for the longest time is taken.

    Raises:
        ConfigError: Something else than a time stands there, or the run that `budget` names can't be read.
    """
    lengths = {time: parse_duration(time) for time in values} if isinstance(values, Mapping) else {}
    seconds = {time: length for time, length in lengths.items() if length is not None}
    if not seconds or len(seconds) < len(lengths):
        raise ConfigError(f"by_budget must have a value for each of some times, {{1s: 16, 5min: 64}}, got {values}.")
    budget = config.get("budget")
    folders: list[Any] = []
    while budget is not None and parse_duration(budget) is None:  # the folder of a run that had one
        if budget in folders:
            raise ConfigError(f"budget={budget}: that run's budget is its own.")
        folders.append(budget)
        budget = Record(Path(str(budget)).expanduser()).config.get("budget")
    longest = math.inf if budget is None else parse_duration(budget) or math.inf
    by_length = sorted(values, key=seconds.__getitem__)
    return values[[by_length[0], *(time for time in by_length if seconds[time] <= longest)][-1]]
