"""The conf tree as plain data: where it stands, and what its files say about each key."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from cnnlab import trust
from cnnlab.config.project import CONF, folders, own_folders
from cnnlab.files import holds

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
    return sorted({path.stem for folder in folders() for path in (folder / group).glob("*.yaml")})


def own_options(group: str) -> list[str]:
    """List the options of a group that stand in the user's own folders."""
    return sorted({path.stem for folder in own_folders() for path in (folder / group).glob("*.yaml")})


def own_classes() -> set[str]:
    """Return the classes that the files of the user's own folders name."""
    classes = set()
    for path in (path for folder in own_folders() for path in folder.rglob("*.yaml")):
        with suppress(yaml.YAMLError, OSError, UnicodeError):  # whoever composes the file says what is wrong
            classes |= {str(target) for _, target in trust.targets(_read(path)[1])}
    return classes


def content(group: str, option: str) -> dict[str, Any]:
    """Return what an option contributes to its group: its file over the options that its defaults list begins with.

    An own file that is no YAML contributes nothing: whoever composes it says what is wrong.
    """
    return _content(find_file(f"{group}/{option}"), group, _state())


def find_file(name: str) -> Path:
    """Return the file of an option, `group/option`, or of a main config: the user's own before the package's."""
    return next(path for folder in folders() if (path := folder / f"{name}.yaml").is_file())


@cache
def _content(path: Path, group: str, state: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    try:
        values = dict(_read(path)[1])
    except (yaml.YAMLError, ValueError, TypeError):
        return {}
    merged: dict[str, Any] = {}
    for base in values.pop("defaults", None) or ():
        if isinstance(base, str) and base != path.stem and base in options(group):
            merged = _merged(merged, content(group, base))
    return _merged(merged, values)


def _state() -> tuple[tuple[str, int], ...]:
    """Return the user's own files with the times of their last change, so that a later call reads what changed."""
    return tuple((str(path), path.stat().st_mtime_ns) for folder in own_folders() for path in folder.glob("*/*.yaml"))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


@cache
def _samples(state: tuple[tuple[str, int], ...]) -> list[dict[str, Any]]:
    """List what the files of the tree contribute to a config, each as the part of a config that it is."""
    samples = [{key: value for key, value in main_file().items() if key != "defaults"}]
    samples.append({group: {} for group in groups() if group not in OPTIONAL})
    for group in groups():
        # Recipes change values and declare none.
        samples += [{group: content(group, option)} for option in options(group) if group != "experiment"]
    return samples


@cache
def package_targets() -> frozenset[str]:
    """Return the classes that the package's own files name."""
    contents = [_content(path, path.parent.name, ()) for group in groups() for path in (CONF / group).glob("*.yaml")]
    return frozenset(
        target for part in contents for _, target in trust.targets(part) if isinstance(target, str) and target != "???"
    )


def values_of(key: Key, config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the values of a key in the files of the tree that are about the class which `config` names."""
    for sample in _samples(_state()):
        value: Any = sample
        within: Any = config
        for part in key:
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
            within = within.get(part) if isinstance(within, Mapping) else None
            if isinstance(value, Mapping) and isinstance(within, Mapping):
                target = value.get("_target_")
                if target not in (None, "???") and within.get("_target_") not in (None, target):
                    break
        else:
            yield value


def origin(key: Key, choices: Mapping[str, Any]) -> str | None:
    """Return the chosen `group=option` whose file gives a key its value; a recipe goes before the other options."""
    for group, inner in (("experiment", key), (key[0], key[1:])):
        option = choices.get(group)
        if isinstance(option, str) and option in options(group) and holds(content(group, option), *inner):
            return f"{group}={option}"
    return None


def options_with(key: Key) -> list[str]:
    """List the `group=option` whose file has a key, such as `optimizer=sgd` for (optimizer, momentum)."""
    group, *rest = key
    if group not in groups() or not rest:
        return []
    return [f"{group}={option}" for option in options(group) if holds(content(group, option), *rest)]
