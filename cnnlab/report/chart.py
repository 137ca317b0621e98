"""Line charts as SVG inside a page: they take the page's colours, so that they are as good in the dark.

Matplotlib's would have colours of their own, ten times the size, and cost the page's reader half a second of import.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38


class Line(NamedTuple):
    """A curve.

    Attributes:
        name: For the key.
        x: From left to right.
        y: Values; one that is not finite leaves a gap.
        style: `a` (blue, solid), `b` (orange, dashed) or `pale`.
        dots: Whether its points are marked, where they are few.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "a"
    dots: bool = True


class Chart(NamedTuple):
    """A chart as `parts.html` draws it; places are in units of the drawing, from its upper left corner.

    Attributes:
        title: What it shows.
        x: The horizontal axis' name.
        rows: (place, label) of each line across.
        columns: (place, label) of each mark below.
        strokes: (style, points) of each unbroken piece of a curve.
        dots: (style, x, y) of each marked point.
        styles: The style of each name in the key.
        mark: (place, label, side that the label stands on, its height) of a line from top to bottom.
    """

    title: str
    x: str
    rows: Sequence[tuple[float, str]]
    columns: Sequence[tuple[float, str]]
    strokes: Sequence[tuple[str, str]]
    dots: Sequence[tuple[str, float, float]]
    styles: dict[str, str]
    mark: tuple[float, str, str, float] | None = None


def draw(
    title: str,
    curves: Sequence[Line],
    x: str,
    *,
    percent: bool = False,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
) -> Chart | None:
    """Return a chart of one or more curves, or None where none has a point.

    Args:
        title: What it shows; also the name of the vertical axis.
        curves: The curves, the first one lowest.
        x: The horizontal axis' name.
        percent: Whether values from 0 to 1 are shown as per cent.
        y_range: Bottom and top; by default from 0 to a round number above the largest value.
        mark: A place on the horizontal axis to point out, and what it is.
    """
    curves = [curve for curve in curves if any(map(math.isfinite, curve.y))]
    if not curves:
        return None
    values = [value for curve in curves for value in curve.y if math.isfinite(value)]
    places = [place for curve in curves for place in curve.x]
    low, high = y_range or (min(0.0, *values), max(0.0, *values))
    high = high if high > low else low + 1
    first, last = min(places), max(places)
    if first == last:  # a single place stands in the middle
        first, last = first - 0.5, last + 0.5
    y_ticks = ticks(low, high)
    if not y_range:
        y_ticks = y_ticks if y_ticks[-1] >= high else [*y_ticks, 2 * y_ticks[-1] - y_ticks[-2]]
        low, high = min(low, y_ticks[0]), y_ticks[-1]

    def across(value: float) -> float:
        return round(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    strokes, dots = [], []
    for curve in curves:
        for piece in _pieces(curve):
            points = [(across(place), down(value)) for place, value in piece]
            if len(points) > 1:
                strokes.append((curve.style, " ".join(f"{place},{height}" for place, height in points)))
            if len(points) == 1 or (curve.dots and len(points) <= 30 and curve.style != "pale"):
                dots += [(curve.style, *point) for point in points]
    whole = all(float(place).is_integer() for place in places)
    return Chart(
        title, x,
        rows=[(down(tick), f"{100 * tick:.6g}%" if percent else number(tick)) for tick in y_ticks],
        columns=[(across(tick), number(tick)) for tick in ticks(first, last, whole=whole)],
        strokes=strokes, dots=dots,
        styles={curve.name: curve.style for curve in curves},  # several curves may share a name
        mark=_point_out(*mark, curves, across, down) if mark else None,
    )  # fmt: skip


def _point_out(
    x: float, label: str, curves: Sequence[Line], across: Callable[[float], float], down: Callable[[float], float]
) -> tuple[float, str, str, float]:
    """Return a chart's `mark`: its label stands where no curve is, above those that end low, as losses do."""
    points = [point for curve in curves for point in zip(curve.x, curve.y, strict=True)]
    heights = [down(y) for place, y in points if place >= x and math.isfinite(y)]
    ends_low = bool(heights) and sum(heights) / len(heights) > (TOP + HEIGHT - BOTTOM) / 2
    side = "end" if across(x) > WIDTH / 2 else "start"
    return across(x), label, side, TOP + 10 if ends_low else HEIGHT - BOTTOM - 4


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return up to six round numbers from `low` to `high`; with `whole`, none that has a fraction."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / 6))
    step = next(step * factor for factor in (1, 2, 5, 10, 20, 50) if span / (step * factor) <= 5)
    step = max(1.0, step) if whole else step
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [round(place * step, 12) for place in places] or [low]


def number(value: float) -> str:
    """Return a tick's label."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and unit > 1e3):
            return f"{value / unit:.4g}{word}"
    return f"{value:,.6g}"


def _pieces(curve: Line) -> list[list[tuple[float, float]]]:
    points = zip(curve.x, curve.y, strict=True)
    return [list(piece) for finite, piece in groupby(points, key=lambda point: math.isfinite(point[1])) if finite]
