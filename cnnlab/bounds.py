"""Types of constructor arguments that say between which bounds a value lies.

The check of the command line reads them from a class's source, also from one of your own:

    class Grey(Augmentation):
        def __init__(self, share: Share = 0.5) -> None: ...
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number: `low` and `high` are included, `above` and `below` are not."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None


PositiveInt = Annotated[int, Bounds(low=1)]
NonNegativeInt = Annotated[int, Bounds(low=0)]
Seed = Annotated[int, Bounds(low=0, high=2**32 - 1)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(low=0)]
Share = Annotated[float, Bounds(low=0, high=1)]
ShareBelowOne = Annotated[float, Bounds(low=0, below=1)]
PositiveShare = Annotated[float, Bounds(above=0, high=1)]
