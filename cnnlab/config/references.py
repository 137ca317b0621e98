"""Values of a config that refer to other keys, followed without running any resolver."""

import re
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.tree import Key

REFERENCE = re.compile(r"\$\{(\.*)(\w+(?:\.\w+)*)\}")


class Unresolved(Exception):  # noqa: N818 - no error, only a value that can't be judged yet
    """A value that a resolver makes when the run starts."""


def without_hydra(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as plain containers without its `hydra` part, references as they stand."""
    if isinstance(config, DictConfig):
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    return {str(key): value for key, value in config.items() if key != "hydra"}


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
