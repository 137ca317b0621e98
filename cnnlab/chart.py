"""Line charts as SVG inside a page: they take the page's colours, so that they are as good in the dark."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cnnlab.page import Html, joined, tag

_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 38


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


def lines(
    title: str, curves: Sequence[Line], x: str, *, percent: bool = False, y_range: tuple[float, float] | None = None
) -> Html:
    """Return a chart of one or more curves, or nothing where none has a point.

    Args:
        title: What it shows; also the name of the vertical axis.
        curves: The curves, the first one lowest.
        x: The horizontal axis' name.
        percent: Whether values from 0 to 1 are shown as per cent.
        y_range: Bottom and top; by default from 0 to the largest value.
    """
    curves = [curve for curve in curves if any(map(math.isfinite, curve.y))]
    if not curves:
        return Html()
    values = [value for curve in curves for value in curve.y if math.isfinite(value)]
    places = [place for curve in curves for place in curve.x]
    low, high = y_range or (min(0.0, *values, 0.0), max(0.0, *values, 0.0))
    high = high if high > low else low + 1
    first, last = min(places), max(places)
    if first == last:  # a single place stands in the middle
        first, last = first - 0.5, last + 0.5
    y_ticks = ticks(low, high)
    high = high if y_range else max(high, y_ticks[-1])

    def across(value: float) -> float:
        return round(_LEFT + (value - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT), 1)

    def down(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = []
    for tick in y_ticks:
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=down(tick), y2=down(tick)))
        label = f"{tick:.0%}" if percent else number(tick)
        parts.append(tag("text", label, x=_LEFT - 6, y=down(tick) + 4, text_anchor="end"))
    parts += [
        tag("text", number(tick), x=across(tick), y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")
        for tick in ticks(first, last, whole=all(float(place).is_integer() for place in places))
    ]
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(tag("text", x, x=middle, y=_HEIGHT - 6, text_anchor="middle"))
    for curve in curves:
        for piece in _pieces(curve):
            points = [(across(place), down(value)) for place, value in piece]
            if len(points) > 1:
                parts.append(tag("polyline", class_=curve.style, points=" ".join(f"{a},{b}" for a, b in points)))
            if len(points) == 1 or (curve.dots and len(points) <= 30 and curve.style != "pale"):
                parts += [tag("circle", class_=f"dots-{curve.style}", cx=a, cy=b, r=2.5) for a, b in points]
    styles = {curve.name: curve.style for curve in curves}  # several curves may share a name
    keys = [tag("span", _sample(style), name, class_="key") for name, style in styles.items() if len(styles) > 1]
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label=f"{title} by {x}: {', '.join(styles)}",
    )  # fmt: skip
    return tag("figure", tag("figcaption", title, *keys), drawing, class_="chart")


def ticks(low: float, high: float, whole: bool = False, most: int = 6) -> list[float]:
    """Return up to `most` round numbers from `low` to `high`; with `whole`, none that has a fraction."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20, 50) if span / (step * factor) <= most - 1)
    step = max(1.0, step) if whole else step
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [round(place * step, 12) for place in places] or [low]


def number(value: float) -> str:
    """Return a tick's label."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and unit > 1e3):
            return f"{value / unit:.4g}{word}"
    return f"{value:,.6g}"


def side_by_side(*charts: Html) -> Html:
    """Return charts beside each other where there is room."""
    there = [chart for chart in charts if chart]
    return tag("div", joined(there), class_="charts") if there else Html()


def _pieces(curve: Line) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(curve.x, curve.y, strict=True):
        if math.isfinite(value):
            pieces[-1].append((place, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _sample(style: str) -> Html:
    stroke = tag("line", class_=style, x1=0, x2=24, y1=5, y2=5)
    return tag("svg", stroke, viewBox="0 0 24 10", aria_hidden="true")
