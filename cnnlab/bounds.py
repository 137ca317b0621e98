"""Types of constructor arguments that say between which bounds a value lies.

The check of the command line reads them from a class's source, also from one of your own:

    class Grey(Augmentation):
        def __init__(self, share: Share = 0.5) -> None: ...

cnnlab's own constructors check them too, for whoever calls them from Python: `within_bounds`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cnnlab.errors import ConfigError

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number: `low` and `high` are included, `above` and `below` are not."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"from {self.low} to {self.high}"
        parts = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in parts.items() if bound is not None)


PositiveInt = Annotated[int, Bounds(low=1)]
NonNegativeInt = Annotated[int, Bounds(low=0)]
Seed = Annotated[int, Bounds(low=0, high=2**32 - 1)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(low=0)]
Share = Annotated[float, Bounds(low=0, high=1)]
ShareBelowOne = Annotated[float, Bounds(low=0, below=1)]
PositiveShare = Annotated[float, Bounds(above=0, high=1)]


def within_bounds(place: str) -> Callable[[Class], Class]:
    """Have the constructor of the decorated class check its numbers against the bounds in their types.

    Args:
        place: Where the class stands in a config, such as `augment.cutout`, for the message.

    Raises:
        ConfigError: In the constructor: a number is out of its bounds.
    """

    def decorate(kind: Class) -> Class:
        construct = vars(kind)["__init__"]
        signature = inspect.signature(construct)

        @functools.wraps(construct)
        def checked(*args: Any, **kwargs: Any) -> None:
            with suppress(TypeError):  # arguments that the constructor does not take, it refuses itself
                for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
                    for bounds, number in _bounded(signature.parameters[name].annotation, value):
                        if number not in bounds:
                            raise ConfigError(f"{place}.{name} must be {bounds}, got {number}.")
            construct(*args, **kwargs)

        kind.__init__ = checked  # type: ignore[misc]
        return kind

    return decorate


def _bounded(kind: Any, value: Any) -> Iterator[tuple[Bounds, Any]]:
    """Yield the numbers of an argument, each with the bounds that its type has for it."""
    if get_origin(kind) is Annotated:
        if isinstance(value, Real):  # numpy's are, too
            yield kind.__metadata__[0], value
        return
    for inner in get_args(kind):  # the types of a union, or that of a list's elements
        for element in value if isinstance(value, Sequence) else [value]:
            yield from _bounded(inner, element)
