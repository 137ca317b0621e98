"""What a value of the config may be: the kinds of rule, and the table of keys."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cnnlab.bounds import Bounds
from cnnlab.record import PRECISIONS, SHORT_PRECISIONS, is_run
from cnnlab.wording import parse_duration


@dataclass(frozen=True)
class Rule:
    """A set of values: its name in words, its test, and the words in it where they can be listed.

    `a | b` allows the values of both.
    """

    name: str
    accepts: Callable[[object], bool]
    words: tuple[str, ...] = ()
    schema: Mapping[str, Any] = field(default_factory=dict)  # as JSON schema has it; empty allows anything

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(
            f"{self.name}, or {other.name}",
            lambda value: self.accepts(value) or other.accepts(value),
            self.words + other.words,
            {"anyOf": [self.schema, other.schema]} if self.schema and other.schema else {},
        )


def whole(low: int | None = None, high: int | None = None) -> Rule:
    """Allow whole numbers, bounds included."""
    name = "a whole number"
    if high is not None:
        name += f" from {low} to {high}"
    elif low is not None:
        name += f" of at least {low}"
    number = real(low, high)
    return Rule(
        name,
        lambda value: isinstance(value, int) and number.accepts(value),
        schema={**number.schema, "type": "integer"},
    )


def real(
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Rule:
    """Allow finite numbers; `low` and `high` are included, `above` and `below` are not."""
    words = {"of at least": low, "above": above, "of at most": high, "below": below}
    name = " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)
    bounds = Bounds(low, high, above, below)
    limits = {"minimum": low, "maximum": high, "exclusiveMinimum": above, "exclusiveMaximum": below}
    return Rule(
        f"a number {name}".rstrip(),
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and -sys.float_info.max <= value <= sys.float_info.max
            and value in bounds
        ),
        schema={"type": "number"} | {name: bound for name, bound in limits.items() if bound is not None},
    )


def one_of(*values: str | int, note: str = "") -> Rule:
    """Allow the values given; `note` says what they mean."""
    return Rule(
        ("one of " if len(values) > 1 else "") + ", ".join(dict.fromkeys(map(str, values))) + note,
        lambda value: isinstance(value, str | int) and not isinstance(value, bool) and value in values,
        tuple(value for value in values if isinstance(value, str)),
        {"enum": list(values)},
    )


def matching(pattern: str, name: str) -> Rule:
    """Allow texts that a regular expression matches as a whole."""
    return Rule(
        name,
        lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None,
        schema={"type": "string", "pattern": f"^({pattern})$"},
    )


def each(rule: Rule, length: int | None = None) -> Rule:
    """Allow lists, of `length` values if given, every one of which follows a rule."""
    return Rule(
        f"a list of {'' if length is None else f'{length} '}values, each {rule.name}",
        lambda value: (
            isinstance(value, list)
            and (length is None or len(value) == length)
            and all(rule.accepts(element) for element in value)
        ),
        schema={"type": "array", "items": rule.schema}
        | ({} if length is None else {"minItems": length, "maxItems": length}),
    )


def any_of(rules: Iterable[Rule]) -> Rule:
    """Allow what one of the rules allows; those of one name count once."""
    return reduce(or_, {rule.name: rule for rule in rules}.values())


def names_run(value: object) -> bool:
    """Whether a value is the folder of a run."""
    try:
        return isinstance(value, str) and is_run(Path(value).expanduser())
    except (OSError, RuntimeError):  # no name that a file could have
        return False


null = Rule("null", lambda value: value is None, schema={"type": "null"})
anything = Rule("anything", lambda value: True)
flag = Rule("true or false", lambda value: isinstance(value, bool), schema={"type": "boolean"})
text = Rule(
    "a text (in quotes if it reads as something else)", lambda value: isinstance(value, str), schema={"type": "string"}
)
filled = Rule(
    "a text that is not empty",
    lambda value: isinstance(value, str) and value.strip() != "",
    schema={"type": "string", "pattern": r"\S"},
)
run = Rule("a run (its folder, a checkpoint, last or best)", filled.accepts, schema=filled.schema)
section = Rule("a group of keys", lambda value: isinstance(value, Mapping), schema={"type": "object"})


def like(value: object) -> Rule:
    """Return the rule that the type of a default makes: for a whole number any whole number, and so on.

    Null is allowed beside it. A text that reads as a number is one (to YAML 1e-3 is a text). A default of
    null, one that is still to be given and one that is taken from elsewhere allow anything.
    """
    match value:
        case bool():
            return flag | null
        case int():
            return whole() | null
        case float():
            return real() | null
        case str() if re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", value, re.IGNORECASE):
            return real() | null
        case str() if "${" not in value and value != "???":
            return text | null
        case [first, *rest] if all(type(element) is type(first) for element in rest):
            return like(first) | each(like(first))
        case list():
            return Rule("a list", lambda value: isinstance(value, list), schema={"type": "array"}) | null
        case Mapping():
            return section
        case _:
            return anything


PLAIN = {bool: flag, int: whole(), float: real(), str: text, Path: text, type(None): null}


def of_type(kind: Any) -> Rule:
    """Return the rule that the type of an argument makes; a type that says nothing to a config allows anything."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _within(*arguments) if arguments[0] in (int, float) else of_type(arguments[0])
    if origin in (Union, UnionType):
        # An object that may stand in the place of a plain value can only be given by its class.
        return any_of(section if rule is anything else rule for rule in map(of_type, arguments))
    if origin is Literal:
        words = [value for value in arguments if isinstance(value, str | int) and not isinstance(value, bool)]
        choices = [one_of(*words)] if words else []
        choices += [flag] if any(isinstance(value, bool) for value in arguments) else []
        return any_of(choices + ([null] if None in arguments else []))
    if not isinstance(origin, type) or origin in PLAIN:
        return PLAIN.get(origin, anything)
    if issubclass(origin, Mapping):
        return section
    if origin is tuple and arguments and arguments[-1] is not ...:
        alike = all(part == arguments[0] for part in arguments)
        return each(of_type(arguments[0]) if alike else anything, len(arguments))
    if issubclass(origin, Iterable):
        return each(of_type(arguments[0]) if arguments else anything)
    return anything


def _within(kind: type, bounds: Bounds) -> Rule:
    if kind is float:
        return real(bounds.low, bounds.high, bounds.above, bounds.below)
    low = bounds.low if bounds.above is None else math.floor(bounds.above) + 1
    high = bounds.high if bounds.below is None else math.ceil(bounds.below) - 1
    return whole(None if low is None else math.ceil(low), None if high is None else math.floor(high))


_batches = whole(0) | Rule("a share from 0.0 to 1.0", real(0, 1).accepts, schema=real(0, 1).schema)
_time = matching(r"\d+:\d+:\d+:\d+", "a time as DD:HH:MM:SS")
_budget = Rule(
    "a time from 1s to 1000h as 90s, 10min or 2h, or the folder of a run that had one",
    lambda value: parse_duration(value) is not None or names_run(value),
    schema=filled.schema,
)
_mode = one_of("auto", "max", "min")


# What annotations cannot say. A key that is not here follows its class's annotation, or else the type of its default in
# the conf tree.
RULES: dict[str, Rule] = {
    "seed": whole(0, 2**32 - 1),
    "objective.metric": filled,
    "objective.mode": _mode,
    "objective.over": each(matching(r"[\w.]+", "a key")),
    "classifier.teacher": run,
    "matmul_precision": one_of("highest", "high", "medium"),
    "eval.resize": whole(1) | null,
    "eval.tta": one_of("none", "mirror", "mirror_translate"),
    "init_from": run | null,
    "resume": run | null,
    "debug": flag,
    "reuse": flag,
    "tags": each(filled | whole()),
    "note": text | null,
    "trusted": each(matching(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "a package or module")),
    "budget": _budget | null,
    "on_divergence": one_of("stop", "rollback"),
    # search
    "search.sampler": one_of("tpe", "random", "grid"),
    "search.pruner": one_of("asha", "median", "none"),
    "search.n_trials": whole(1),
    "search.timeout": real(above=0) | null,
    "search.seeds": whole(2) | null,
    "search.startup": whole(1),
    "search.min_epochs": whole(1),
    "search.reduction": whole(2),
    "search.batch": whole(1),
    # data
    "data.path": filled,
    "data.train": section,
    "data.val": section | null,
    "data.test": section | null,
    # model: what build takes itself
    "model.channels_last": flag,
    "model.compile": flag | one_of("default", "reduce-overhead", "max-autotune"),
    # optimizer
    "optimizer.lr": real(above=0),
    "optimizer.weight_decay": real(0),
    "optimizer.momentum": real(0, below=1),
    "optimizer.betas": each(real(0, below=1), 2),
    "optimizer.alpha": real(0, below=1),
    "optimizer.eps": real(0),
    "optimizer.decay_bias_and_norm": flag,
    "optimizer.norm_bias_factor": real(above=0),
    # schedule: what Lightning asks of one of torch's
    "schedule.interval": one_of("epoch", "step"),
    "schedule.monitor": filled,
    "schedule.mode": _mode,
    # callbacks
    "callbacks.checkpoint.monitor": filled | null,
    "callbacks.checkpoint.mode": _mode,
    "callbacks.early_stopping.monitor": filled,
    "callbacks.early_stopping.mode": _mode,
    # trainer: flags of Lightning's whose annotations allow what it then refuses
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu") | section,
    "trainer.strategy": matching(
        r"auto|single_\w+|ddp\w*|fsdp\w*|deepspeed\w*|xla\w*", "a name such as auto, ddp or fsdp"
    )
    | section,
    "trainer.devices": whole(1)
    | one_of(-1, "auto")
    | Rule(
        "a list of indices",
        lambda value: value != [] and each(whole(0)).accepts(value),
        schema={**each(whole(0)).schema, "minItems": 1},
    )
    | matching(r"-1|[1-9]\d*|\d+,|\d+(,\d+)+", "a text such as '0,1'"),
    "trainer.num_nodes": whole(1),
    "trainer.precision": one_of("auto", *PRECISIONS, *SHORT_PRECISIONS, 16, 32, 64) | null,
    "trainer.fast_dev_run": flag | whole(0),
    "trainer.max_epochs": whole(1) | one_of(-1, note=" for no limit") | null,
    "trainer.min_epochs": whole(0) | null,
    "trainer.max_steps": whole(1) | one_of(-1, note=" for no limit"),
    "trainer.min_steps": whole(0) | null,
    "trainer.max_time": _time | section | null,
    "trainer.limit_train_batches": _batches | null,
    "trainer.limit_val_batches": _batches | null,
    "trainer.limit_test_batches": _batches | null,
    "trainer.limit_predict_batches": _batches | null,
    "trainer.overfit_batches": _batches,
    "trainer.val_check_interval": whole(1)
    | Rule("a share of an epoch up to 1.0", real(above=0, high=1).accepts, schema=real(above=0, high=1).schema)
    | _time
    | section
    | null,
    "trainer.check_val_every_n_epoch": whole(1) | null,
    "trainer.num_sanity_val_steps": whole(-1) | null,
    "trainer.log_every_n_steps": whole(0) | null,
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": real(0) | null,
    "trainer.gradient_clip_algorithm": one_of("norm", "value") | null,
    "trainer.profiler": one_of("simple", "advanced", "pytorch", "xla") | section | null,
    "trainer.reload_dataloaders_every_n_epochs": whole(0),
    "trainer.default_root_dir": filled | null,
    "trainer.model_registry": filled | null,
}
