"""What a config that somebody else wrote may have built: classes that are known to be harmless, and nothing else."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from cnnlab.errors import CheckpointError, CnnlabError, ConfigError, UnsafeError, first_line, is_out_of_memory
from cnnlab.files import flatten

KNOWN = (
    "cnnlab.", "torch.nn.", "torch.optim.", "torchmetrics.classification.", "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.", "pytorch_lightning.Trainer",
)  # fmt: skip
"""Where the classes stand that cnnlab's own configs name, and their like."""


SPECIAL = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
"""Keys of a section that are no arguments."""


_vouched: set[str] = set()


class Kind(NamedTuple):
    """What may stand in a group.

    Attributes:
        places: Where its classes are defined.
        base: What they are derived from, by name, since nothing is imported for it; empty for any class.
    """

    places: tuple[str, ...]
    base: str = ""


MODULE = Kind(("cnnlab.model.", "torch.nn.", "torchmetrics.classification."), "torch.nn.modules.module.Module")
KINDS = {
    "data": Kind(("cnnlab.data.module.ImageData.", "cnnlab.data.datasets.Datasets.")),
    "augment": Kind(("cnnlab.augment.",)),
    "model": MODULE,
    "init": Kind(("cnnlab.init.",)),
    "loss": Kind(("cnnlab.loss.", "torch.nn.modules.loss."), "torch.nn.modules.module.Module"),
    "metrics": Kind(("cnnlab.metrics.BalancedAccuracy.", "torchmetrics.classification."), "torchmetrics.metric.Metric"),
    "classifier": Kind(("cnnlab.classifier.Classifier.", "cnnlab.distillation.Distillation.")),
    "optimizer": Kind(("cnnlab.optimizer.", "torch.optim."), "torch.optim.optimizer.Optimizer"),
    "schedule": Kind(("cnnlab.schedule.", "torch.optim.lr_scheduler.")),
    "trainer": Kind(("pytorch_lightning.trainer.trainer.Trainer.",)),
    "callbacks": Kind(
        ("cnnlab.callbacks.", "pytorch_lightning.callbacks."), "pytorch_lightning.callbacks.callback.Callback"
    ),
    "logger": Kind(("pytorch_lightning.loggers.",), "pytorch_lightning.loggers.logger.Logger"),
}

# These remove the files that a checkpoint names, write files of a name of their own, or send what they see to others.
NEVER = (
    "pytorch_lightning.callbacks.model_checkpoint.", "pytorch_lightning.callbacks.on_exception_checkpoint.",
    "pytorch_lightning.callbacks.spike.", "pytorch_lightning.loggers.comet.", "pytorch_lightning.loggers.litlogger.",
    "pytorch_lightning.loggers.mlflow.", "pytorch_lightning.loggers.neptune.", "pytorch_lightning.loggers.wandb.",
    "cnnlab.callbacks.prune.",
)  # fmt: skip


def vouch(classes: Iterable[str]) -> None:
    """Take classes for harmless in this process: those that the user's own `conf` names."""
    _vouched.update(classes)


def vouches() -> bool:
    """Whether this process takes any class for harmless that is none of cnnlab's and its libraries'."""
    return bool(_vouched)


def check(config: Any, key: str, trusted: Sequence[str] = ()) -> None:
    """Check every `_target_` in a part of a config that comes from a run's folder or a checkpoint.

    A name on the list is not enough, since a module's names lead to all that it imports (`cnnlab.run.os.system`):
    what it leads to must be a class of the group's kind, and one that is defined where the list says.

    Args:
        config: The part, as plain containers.
        key: Where it stands: the group, and what is below it.
        trusted: Packages and modules that the person at the keyboard vouches for.

    Raises:
        UnsafeError: Something else is named, or a value would be computed when it is read.
    """
    for place, value in flatten({key: config}, lists=True):
        if isinstance(value, str) and "${" in value:
            raise UnsafeError(f"{place}={value[:100]} would be computed when it is read, and was not.")
    for place, target in targets(config, key):
        _check_target(target, place, trusted)


def build(section: Any, key: str, trusted: Sequence[str] = (), **offered: Any) -> Any:
    """Build what a stranger's file describes: a class, called with the values beside its name.

    No config library has a part in it: nothing is resolved, and nothing is called but what was checked. `_args_` and
    `_partial_` mean what they do for Hydra.

    Args:
        section: Of `files.plain`; sections of their own may be among the values.
        key: Where it stands: the group, and what is below it.
        trusted: Packages and modules that the person at the keyboard vouches for.
        offered: Arguments that the file does not hold, for a constructor that names them.

    Raises:
        UnsafeError: A class is not one that may stand there.
        CheckpointError: A class does not take the values.
    """
    if isinstance(section, list):
        return [build(element, f"{key}.{index}", trusted) for index, element in enumerate(section)]
    if not isinstance(section, dict):
        return section
    values = {name: build(value, f"{key}.{name}", trusted) for name, value in section.items() if name not in SPECIAL}
    if "_target_" not in section:
        return values
    _check_target(section["_target_"], f"{key}._target_", trusted)
    try:
        constructor = import_target(section["_target_"])
        accepted = accepted_arguments(constructor)
        values |= {name: value for name, value in offered.items() if name in accepted}
        if "pretrained" in accepted:  # the checkpoint brings the weights: none are fetched
            values["pretrained"] = False
        positional = build(section.get("_args_", []), f"{key}._args_", trusted)
        if positional and section["_target_"].startswith("cnnlab."):
            raise UnsafeError(f"{key}._args_ must be empty: cnnlab's classes take their arguments by name.")
        if section.get("_partial_"):
            return partial(constructor, *positional, **values)
        return constructor(*positional, **values)
    except ConfigError as error:
        raise CheckpointError(f"{key}: {error}") from error
    except (CnnlabError, MemoryError):
        raise
    except Exception as error:  # a class of torch's raises what it comes across, for values of chance
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{key}: {section['_target_']} can't be built: {first_line(error)}") from error


def _check_target(target: Any, place: str, trusted: Sequence[str]) -> None:
    if isinstance(target, str) and (target in _vouched or any(target.startswith(f"{name}.") for name in trusted)):
        return
    if not _is_harmless(target, KINDS.get(place.partition(".")[0])):
        package = target.split(".")[0] if isinstance(target, str) else "PACKAGE"
        raise UnsafeError(
            f"{place}={str(target)[:100]} is none of the classes that a run's folder may name there. If you know "
            f"where the run comes from: trusted=[{package}] (train.py), --trust {package} (commands)."
        )


def import_target(target: str) -> Any:
    """Return what a `_target_` names; modules are imported where an attribute is missing, as Hydra does.

    Raises:
        ImportError, AttributeError, ValueError: There is no such thing. Whatever else an import raises comes through.
    """
    first, *rest = target.split(".")
    thing: Any = importlib.import_module(first)
    for depth, part in enumerate(rest, 2):
        if not hasattr(thing, part):
            importlib.import_module(".".join(target.split(".")[:depth]))
        thing = getattr(thing, part)
    return thing


def accepted_arguments(target: Callable[..., Any]) -> set[str]:
    """Return the names that a constructor takes, with those that it hands on to its base class by `**options`."""
    names: set[str] = set()
    for place in target.__mro__ if isinstance(target, type) else (target,):
        if isinstance(target, type) and "__init__" not in vars(place):
            continue
        parameters = inspect.signature(place).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def targets(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of every `_target_` in a part of a config that stands at `key`."""
    for place, value in flatten({key: config} if key else config, lists=True):
        parts = place.split(".")
        if "_target_" in parts:
            end = parts.index("_target_") + 1
            # What stands inside a mapping or a list there names nothing.
            yield ".".join(parts[:end]), value if end == len(parts) else None


def _is_harmless(target: Any, kind: Kind | None) -> bool:
    if kind is None or not isinstance(target, str) or not target.startswith(KNOWN):
        return False
    try:
        thing = import_target(target)
    except (ImportError, AttributeError, ValueError):
        return False
    if not isinstance(thing, type) or _name(thing).startswith(NEVER):
        return False
    bases = map(_name, thing.__mro__)
    return f"{_name(thing)}.".startswith(kind.places) and (not kind.base or kind.base in bases)


def _name(thing: type) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
