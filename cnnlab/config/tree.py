"""The conf tree as plain data: where it stands, and what its files say about each key."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from cnnlab import trust

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""The folder that holds `conf` and `train.py`: the package itself in a wheel, its parent in a checkout."""
CONF = ROOT / "conf"

Key = tuple[str, ...]

OPTIONAL = ("experiment", "search")
"""Groups that a run can do without: a recipe changes values of others, a search is about many runs."""


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return text, yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


@cache
def main_file() -> dict[str, Any]:
    """Return conf/train.yaml without its `hydra` part."""
    return {key: value for key, value in _read(CONF / "train.yaml")[1].items() if key != "hydra"}


@cache
def _defaults() -> dict[str, str | list[str] | None]:
    entries = [entry for entry in main_file()["defaults"] if isinstance(entry, dict)]
    return {name: option for entry in entries for name, option in entry.items() if " " not in name}


@cache
def groups() -> dict[str, bool]:
    """Map each group of the defaults list to whether it takes a list of options."""
    return {name: isinstance(option, list) for name, option in _defaults().items()}


def chosen(group: str) -> list[str]:
    """List the options of a group that are taken by default."""
    option = _defaults()[group]
    return option if isinstance(option, list) else [option] if option else []


def options(group: str) -> list[str]:
    """List the options of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def _samples() -> list[dict[str, Any]]:
    """List what the files of the tree contribute to a config, each as the part of a config that it is."""
    samples = [{key: value for key, value in main_file().items() if key != "defaults"}]
    samples.append({group: {} for group in groups() if group not in OPTIONAL})
    for group in groups():
        for option in options(group):
            text, content = _read(CONF / group / f"{option}.yaml")
            # A header puts the file elsewhere: an experiment, which changes values and declares none.
            if not text.startswith("# @package"):
                for base in content.pop("defaults", ()):
                    if base in options(group):  # says which class it is about, where the file itself does not
                        inherited = _read(CONF / group / f"{base}.yaml")[1]
                        content = {key: inherited[key] for key in ("_target_",) if key in inherited} | content
                samples.append({group: content})
    return samples


@cache
def targets() -> frozenset[str]:
    """Return the classes that the files of the tree name."""
    return frozenset(target for sample in _samples() for _, target in trust.targets(sample) if isinstance(target, str))


def values_of(key: Key, config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the values of a key in the files of the tree that are about the class which `config` names."""
    for sample in _samples():
        value: Any = sample
        chosen: Any = config
        for part in key:
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
            chosen = chosen.get(part) if isinstance(chosen, Mapping) else None
            if isinstance(value, Mapping) and isinstance(chosen, Mapping):
                target = value.get("_target_")
                if target not in (None, "???") and chosen.get("_target_") not in (None, target):
                    break
        else:
            yield value


def options_with(key: Key) -> list[str]:
    """List the `group=option` whose file has a key, such as `optimizer=sgd` for (optimizer, momentum)."""
    group, *rest = key
    found = []
    for option in options(group) if group in groups() and rest else ():
        value: Any = _read(CONF / group / f"{option}.yaml")[1]
        for part in rest:
            value = value.get(part, ...) if isinstance(value, Mapping) else ...
        if value is not ...:
            found.append(f"{group}={option}")
    return found
