"""What a config that somebody else wrote may have built: classes that are known to be harmless, and nothing else."""

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cnnlab.errors import UnsafeError

KNOWN = (
    "cnnlab.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.",
)
EXACTLY = ("pytorch_lightning.Trainer",)


def check(config: Any, key: str, trusted: Sequence[str] = ()) -> None:
    """Check every `_target_` in a part of a config that comes from a run's folder or a checkpoint.

    A name on the list is not enough, since a module's names lead to all that it imports (`cnnlab.run.os.system`):
    what it leads to must be a class, and one that is defined where the list says.

    Args:
        config: The part, as plain containers.
        key: Where it stands, for the message.
        trusted: Packages and modules that the person at the keyboard vouches for.

    Raises:
        UnsafeError: Something else is named, or a value would be computed when it is read.
    """
    for place, target in _targets(config, key):
        if any(target.startswith(f"{package}.") for package in trusted):
            continue
        if not _is_harmless(target):
            package = target.split(".")[0] if isinstance(target, str) else "PACKAGE"
            raise UnsafeError(
                f"{place}={str(target)[:100]} is none of the classes that a run's folder may name. If you know where "
                f"the run comes from: trusted=[{package}] (train.py), --trust {package} (commands)."
            )


def _targets(config: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "_target_":
                yield f"{key}._target_", value
            else:
                yield from _targets(value, f"{key}.{name}")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _targets(value, f"{key}.{index}")
    elif isinstance(config, str) and "${" in config:
        raise UnsafeError(f"{key}={config[:100]} would be computed when it is read, and was not.")


def _is_harmless(target: Any) -> bool:
    if target in EXACTLY:
        return True
    if not isinstance(target, str) or not target.startswith(KNOWN):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return True  # there is no such thing: whoever builds it will say so
    return isinstance(found, type) and f"{found.__module__}.".startswith(KNOWN)
