"""Hold a composed config against the rules and the conf tree."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cnnlab import trust
from cnnlab.config.conflicts import conflicts
from cnnlab.config.references import REFERENCE, Unresolved, get, resolved
from cnnlab.config.rules import RULES, Rule, any_of, anything, filled, like, null, of_type, section
from cnnlab.config.tree import OPTIONAL, Key, groups, main_file, options, options_with, origin, values_of
from cnnlab.config.words import as_typed, nearest, nearest_key
from cnnlab.files import flatten
from cnnlab.source import Signature, signature

# To the classes of the other groups one may hand further arguments, and choose other classes.
CLOSED = ("objective", "eval", "data", "trainer", "search")
OPEN_PARTS = (("data", "train"), ("data", "val"), ("data", "test"))  # datasets of the user's own
GIVE = {
    "data.path": "FILE.npz",
    "data.train._target_": "PACKAGE.MODULE.CLASS",
    "model._target_": "PACKAGE.MODULE.CLASS",
    "model.name": "resnet18",
    "classifier.teacher": "RUN",
}
TAKEN_BY_BUILD = {
    "model": ("channels_last", "compile"),
    "optimizer": ("decay_bias_and_norm", "norm_bias_factor"),
    "schedule": ("interval", "monitor"),
}
"""Keys of a group that are not handed to its class."""
READ_BY_NAME = {
    "model": TAKEN_BY_BUILD["model"],
    "trainer": (
        "accelerator", "accumulate_grad_batches", "benchmark", "check_val_every_n_epoch", "default_root_dir",
        "deterministic", "devices", "enable_checkpointing", "enable_model_summary", "enable_progress_bar",
        "fast_dev_run", "gradient_clip_val", "limit_train_batches", "limit_val_batches", "max_epochs", "max_steps",
        "max_time", "precision", "profiler", "strategy", "val_check_interval",
    ),
}  # fmt: skip
"""Keys that no option of the group may lack; what else a constructor takes may be left to its own default."""
ASKING_NOTHING: dict[str, dict[str, Any]] = {
    "optimizer": {"fused": None},
    "loss": {"label_smoothing": 0.0, "class_weights": None},
}
"""Values that `build` leaves out where the class in the place of the option's does not take them."""


def mistakes_in(config: Mapping[str, Any], choices: Mapping[str, Any] | None = None) -> list[str]:
    """List what is wrong with a config, a line each: keys, types and ranges of values, options that exclude each other.

    Args:
        config: As plain containers.
        choices: The options that it was composed of, by group, so that a line can say where a value comes from.
    """
    mistakes = [*_missing(config), *_in_section((), config, config), *conflicts(config)]
    for group in groups():
        if group not in OPTIONAL and not _names_in((group,), config):  # where not every key is judged already
            mistakes += _wrong_arguments((group,), config.get(group), choices or {})
    return mistakes


def mistakes_at(config: Mapping[str, Any], key: Key) -> list[str]:
    """List what is wrong with the value of one key, and with what excludes it, a line each."""
    value: Any = config
    for depth, part in enumerate(key):
        if isinstance(value, list):  # whose values are judged as one
            key = key[:depth]
            break
        value = value[part]
    return [*_in_value(key, value, config), *conflicts(config)]


def unknown(key: str, config: Mapping[str, Any]) -> str:
    """Say that a config has no such key, which was probably meant, and where it does exist."""
    if key == "experiment":
        return "experiment: the file must begin with the line `# @package _global_` for its values to count"
    message = f"{key} is no key of this config"
    near = nearest_key(key, list(_known_keys((), config, config)))
    section = key.rpartition(".")[0]
    target = get(config, *section.split("."), "_target_")
    if isinstance(target, str) and not target.startswith(trust.KNOWN) and (near or "").rpartition(".")[0] != section:
        return f"{message}; an argument of a class of your own is added by a plus: +{key}="
    if elsewhere := options_with(tuple(key.split("."))):
        return f"{message}; {', '.join(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} it"
    if near:
        return f"{message}; did you mean {near}?"
    return f"{message}; `--cfg {'hydra' if key.startswith('hydra.') else 'job'}` prints them all"


def _known_keys(section: Key, content: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    names = _names_in(section, config)
    for name, value in content.items():
        key = (*section, str(name))
        if not names or name in names or section[:1] == ("hydra",) or key == ("hydra",):
            yield ".".join(key)
            if isinstance(value, Mapping):
                yield from _known_keys(key, value, config)


def _missing(config: Mapping[str, Any]) -> Iterator[str]:
    for dotted, _ in flatten(main_file(), sections=True):
        if dotted != "defaults":
            yield from _absent(tuple(dotted.split(".")), config)
    for group, names in READ_BY_NAME.items():
        section = config.get(group)
        absent = [key for key in names if isinstance(section, Mapping) and key not in section]
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            base = "default" if group == "trainer" else "custom"
            yield f"{group}.{absent[0]}{more} is missing, and a run needs it: an option begins with defaults: [{base}]"
    for group, several in groups().items():
        if group in OPTIONAL:
            continue
        yield from _absent((group,), config)
        section = config.get(group)
        for name in section if several and isinstance(section, Mapping) else ():
            yield from _absent((group, name, "_target_"), config)
        if not several:
            yield from _absent((group, "_target_"), config)


def _absent(key: Key, config: Mapping[str, Any]) -> Iterator[str]:
    *section, name = key
    holder = get(config, *section)
    if isinstance(holder, Mapping) and name not in holder:
        meant = f"; did you mean {name}=none?" if name in groups() and "none" in options(name) else ""
        yield f"{'.'.join(key)} is missing, and a run needs it{meant}"


def _names_in(section: Key, config: Mapping[str, Any]) -> set[str]:
    """Return the names that a closed section may hold, or nothing for an open one."""
    if section and (section[0] not in CLOSED or section[:2] in OPEN_PARTS):
        return set()
    return {name for value in values_of(section, config) if isinstance(value, Mapping) for name in value}


def _in_section(section: Key, content: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    names = _names_in(section, config)
    for name, value in content.items():
        key = (*section, str(name))
        if key == ("search", "space"):
            continue  # its keys are another run's, and are judged as its overrides
        if names and name not in names:
            yield unknown(".".join(key), config)
        else:
            yield from _in_value(key, value, config)


def _in_value(key: Key, value: Any, config: Mapping[str, Any]) -> Iterator[str]:
    dotted = ".".join(key)
    if value == "???":
        yield f"{dotted} must be given: {dotted}={GIVE.get(dotted, 'VALUE')}"
        return
    reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    try:
        value = resolved(value, key, config)
    except KeyError:
        yield f"{dotted}: {as_typed(value)} refers to a key that isn't there"
        return
    except Unresolved:
        return
    rule = rule_of(key, config)
    if isinstance(value, Mapping) and rule.accepts(value):
        yield from _in_section(key, value, config)
    elif reference and not rule_of(tuple(reference[2].split(".")), config).accepts(value):
        return  # and that key is told of
    elif not rule.accepts(value):
        near = nearest(value, rule.words)
        yield (
            f"{dotted} must be {rule.name}{';' if ',' in rule.name else ','} got {as_typed(value)}"
            + (f"; did you mean {near}?" if near else "")
        )


def rule_of(key: Key, config: Mapping[str, Any]) -> Rule:
    """Return the rule of a key: from the table, or else from the types that the conf tree gives to it."""
    if key[-1] == "_target_":
        return filled
    if len(key) == 2 and key[0] in ("callbacks", "logger", "metrics"):
        return section | null  # callbacks.figures=null switches one off
    defaults = list(values_of(key, config))
    if defaults and ".".join(key) in RULES:
        return RULES[".".join(key)]
    if (rule := _rule_of_argument(key, config)) is not anything:
        return rule
    return any_of(map(like, defaults)) if defaults else anything


def _rule_of_argument(key: Key, config: Mapping[str, Any]) -> Rule:
    """Return the rule that the constructor of the class beside a key makes for it."""
    called = _signature(get(config, *key[:-1], "_target_"))
    parameter = called.parameters.get(key[-1]) if called else None
    return of_type(parameter.annotation) if parameter else anything


def _signature(target: Any) -> Signature | None:
    return signature(target) if isinstance(target, str) and re.fullmatch(r"\w+(\.\w+)+", target) else None


def _wrong_arguments(key: Key, content: Any, choices: Mapping[str, Any]) -> Iterator[str]:
    """Say which arguments the classes at a key and below it do not take, and where each comes from."""
    if isinstance(content, list):
        for index, element in enumerate(content):
            yield from _wrong_arguments((*key, str(index)), element, choices)
    if not isinstance(content, Mapping):
        return
    target = content.get("_target_")
    called = _signature(target)
    if called and not called.is_open and "_args_" not in content:
        names = called.parameters.keys()
        group = ".".join(key)
        elsewhere, neutral = TAKEN_BY_BUILD.get(group, ()), ASKING_NOTHING.get(group, {})
        for name, value in content.items():
            if name in (*names, *trust.SPECIAL, *elsewhere) or value == neutral.get(name, ...):
                continue
            message = f"{group}.{name} is no argument of {target}"
            if source := origin((*key, str(name)), choices):
                yield f"{message}, but {source} sets it: take it out by ~{group}.{name}"
            elif near := nearest(name, list(names - content.keys())):
                yield f"{message}; did you mean {group}.{near}?"
            else:
                yield f"{message}, which takes {', '.join(names) or 'none'}: take it out by ~{group}.{name}"
    for name, value in content.items():
        yield from _wrong_arguments((*key, str(name)), value, choices)
