"""Bounds stand in the types of a constructor's arguments alone; whoever calls it is held to them."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest

from cnnlab import trust
from cnnlab.bounds import Bounds, NonNegativeInt, PositiveInt, ShareBelowOne, within_bounds
from cnnlab.config.tree import package_targets
from cnnlab.errors import ConfigError


def bounded(kind: Any) -> Iterator[Bounds]:
    if get_origin(kind) is Annotated:
        yield kind.__metadata__[0]
    else:
        for inner in get_args(kind):
            yield from bounded(inner)


def outside(bounds: Bounds) -> float:
    """Return a number that is just out of some bounds."""
    if bounds.below is not None:
        return bounds.below
    if bounds.high is not None:
        return bounds.high + 1
    return bounds.above if bounds.above is not None else bounds.low - 1  # type: ignore[operator]


# A data module's sizes are numbers or shares; it says itself what its file is too small for.
OURS = sorted(target for target in package_targets() if target.startswith("cnnlab.") and ".data." not in target)


@pytest.mark.parametrize("target", OURS)
def test_every_class_that_a_config_may_name_checks_the_bounds_of_its_arguments(target: str):
    kind = trust.import_target(target)
    for name, parameter in inspect.signature(kind).parameters.items():
        for bounds in bounded(parameter.annotation):
            with pytest.raises(ConfigError, match=rf"\w\.{name} must be .*, got "):
                kind(**{name: outside(bounds)})


def test_numbers_in_lists_are_checked_and_what_is_within_is_handed_on():
    @within_bounds("model")
    class Network:
        def __init__(self, sizes: PositiveInt | list[PositiveInt] | None = None, *, dropout: ShareBelowOne = 0.0):
            self.given = sizes, dropout

    assert Network([1, 2], dropout=0.5).given == ([1, 2], 0.5)
    assert Network(3).given == (3, 0.0)
    assert Network().given == (None, 0.0)
    for wrong in ([1, 0], 0, (0,), range(1), np.int64(0)):
        with pytest.raises(ConfigError, match=r"model\.sizes must be at least 1, got 0\."):
            Network(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.dropout must be at least 0 and below 1, got nan\."):
        Network(dropout=float("nan"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        Network(size=1)  # type: ignore[call-arg]


def test_the_types_of_a_checked_class_are_those_that_it_was_written_with():
    @within_bounds("model")
    class Network:
        def __init__(self, depth: NonNegativeInt) -> None: ...

    assert inspect.signature(Network).parameters["depth"].annotation == NonNegativeInt
