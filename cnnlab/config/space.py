"""A search space in plain data: what may vary in a search, and between which bounds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnlab.config.lines import as_text
from cnnlab.config.words import as_typed, refusal

RANGE = {"low", "high", "log", "steps"}


@dataclass(frozen=True)
class Dimension:
    """One key that varies: between bounds, or over choices, each of which may open dimensions of its own.

    Attributes:
        key: The key or group, as on the command line.
        name: Unique in its space: the key, and the choice it hangs on if there is one.
        low: The smallest value of a range.
        high: The largest; both are included. Whole numbers if both bounds are.
        log: Whether a factor counts the same everywhere in the range, rather than a difference.
        steps: How many values a grid takes of a range.
        choices: The values, as texts of an override, with the dimensions that each opens. Empty for a range.
    """

    key: str
    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    steps: int | None = None
    choices: Mapping[str, tuple["Dimension", ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether a range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> list[str]:
        """Return the override of each value that stands for the others: bounds or choices."""
        return [f"{self.key}={value}" for value in self.choices or (as_text(self.low), as_text(self.high))]

    def grid(self) -> Iterator[list[str]]:
        """Yield the overrides of each point of a grid over this dimension and those that it opens.

        Raises:
            ConfigError: A range does not say in how many steps.
        """
        if self.choices:
            for choice, inner in self.choices.items():
                for rest in grid(inner):
                    yield [f"{self.key}={choice}", *rest]
            return
        if not self.steps:
            raise refusal(f"search.space.{self.key} needs steps for a grid: how many values between low and high")
        shares = [index / max(self.steps - 1, 1) for index in range(self.steps)]
        low, high = self.low, self.high
        values = [low ** (1 - s) * high**s if self.log else low + s * (high - low) for s in shares]
        # Three digits are as many as a name can show, and more than a grid needs.
        rounded = [round(value) if self.is_whole else float(f"{value:.3g}") for value in values]
        for value in dict.fromkeys(rounded):
            yield [f"{self.key}={as_text(value)}"]


def parse_space(space: Mapping[str, Any], within: str = "") -> tuple[Dimension, ...]:
    """Read `search.space`.

    Args:
        space: For each key a list of choices; or `low` and `high`, with `log` and `steps` if wanted; or a mapping
            from choices to the spaces that open with them.
        within: The choice that this space hangs on.

    Raises:
        ConfigError: An entry is none of these.
    """
    return tuple(_dimension(str(key), entry, within) for key, entry in space.items() if entry is not None)


def grid(dimensions: tuple[Dimension, ...]) -> Iterator[list[str]]:
    """Yield the overrides of each point of the grid over all dimensions; the last varies fastest."""
    if not dimensions:
        yield []
        return
    for point in dimensions[0].grid():
        for rest in grid(dimensions[1:]):
            yield [*point, *rest]


def _dimension(key: str, entry: Any, within: str) -> Dimension:
    name = f"{key} ({within})" if within else key
    where = f"search.space.{name}"
    if isinstance(entry, list) and entry:
        return Dimension(key, name, choices={as_text(value): () for value in entry})
    if isinstance(entry, Mapping) and entry and not RANGE & set(entry):
        inner = {str(choice): parse_space(space or {}, f"{key}={choice}") for choice, space in entry.items()}
        return Dimension(key, name, choices=inner)
    if not isinstance(entry, Mapping) or not {"low", "high"} <= set(entry):
        raise refusal(f"{where} must be a list of choices, or have low and high, got {as_typed(entry)}")
    if unknown := sorted(set(entry) - RANGE):
        raise refusal(f"{where} can have low, high, log and steps, got {', '.join(map(str, unknown))}")
    low, high, log, steps = entry["low"], entry["high"], entry.get("log", False), entry.get("steps")
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise refusal(f"{where}: low and high must be numbers, got {as_typed(bound)}")
    if not low < high:
        raise refusal(f"{where}: low must be less than high, got {as_typed(low)} and {as_typed(high)}")
    if log and low <= 0:
        raise refusal(f"{where}: with log, low must be above 0, got {as_typed(low)}")
    if steps is not None and (not isinstance(steps, int) or steps < 2):
        raise refusal(f"{where}: steps must be a whole number of at least 2, got {as_typed(steps)}")
    return Dimension(key, name, low, high, bool(log), steps)
