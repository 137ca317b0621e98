"""The trials of a sweep or a search, and which settings mattered."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cnnlab.plots.names import font, shorten_label, shorten_labels
from cnnlab.plots.style import (
    BLUE,
    DASHES,
    INK,
    PALE,
    SERIES,
    VERMILION,
    WIDTH,
    legend_above,
    legend_below,
    named_axes,
    new_figure,
)
from cnnlab.wording import format_metric, is_share

# Numbers that stand side by side: so many of them at most, and of so many letters.
_FEW = 8
_DIGITS = 7

# An effect so many times as large as the middle one would take a picture for itself.
_HUGE = 6


def objective_by_value(settings: Mapping[str, Sequence[str]], objective: Sequence[float], name: str) -> Figure:
    """Show a sweep's objective against each setting that varied: a dot a trial, a line through the medians.

    Args:
        settings: The values of each setting, as they were typed, one a trial.
        objective: The objective of each trial.
        name: What it is called.
    """
    columns = min(len(settings), 3)
    rows = math.ceil(len(settings) / columns)
    figure = new_figure((max(4.5, WIDTH / 3 * columns), 3.0 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    values = np.asarray(objective, dtype=float)
    for number, (key, texts) in enumerate(settings.items()):
        y = name if number % columns == 0 else ""
        axes = named_axes(next(panels), shorten_label(key, 40), y, percent=is_share(name))
        scale = _scale(texts)
        axes.scatter(scale.places, values, s=18, color=BLUE, alpha=0.55, linewidths=0, label="a trial")
        distinct = np.unique(scale.places)
        if len(distinct) < len(scale.places):
            medians = [float(np.median(values[scale.places == place])) for place in distinct]
            # Between values without an order there is nothing that a line could say.
            axes.plot(
                distinct, medians, color=VERMILION, linewidth=1.6 if scale.ordered else 0, marker="_",
                markersize=9, markeredgewidth=2, label="median",
            )  # fmt: skip
            legend_above(axes)
        _label(axes, scale)
    for axes in panels:
        axes.remove()
    return figure


def trial_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str, best: Sequence[str]
) -> Figure:
    """Show the learning curves of all trials, the best of them named.

    Args:
        curves: (epochs, values) of each trial.
        name: What the values are.
        best: The trials to name, the best first; four at most.
    """
    figure = new_figure((WIDTH, 4.2))
    axes = named_axes(figure.subplots(), "Epoch", name, percent=is_share(name))
    # A trial that was stopped after one epoch is a point, and no line.
    for trial, (epochs, values) in curves.items():
        if trial not in best:
            axes.plot(epochs, values, color=PALE, linewidth=0.8, marker="." if len(epochs) == 1 else None)
    labels = dict(zip(best, shorten_labels(best, 60), strict=True))
    for trial, colour, style in zip(best, SERIES, DASHES, strict=False):
        if trial in curves:
            epochs, values = curves[trial]
            axes.plot(
                epochs, values, color=colour, linestyle=style, linewidth=1.8, label=labels[trial],
                marker="o" if len(epochs) == 1 else None,
            )  # fmt: skip
    others = len(set(curves) - set(best))
    if others:
        axes.plot([], [], color=PALE, linewidth=0.8, label=f"{others} other{'s' * (others > 1)}")
    legend_below(figure, 1)
    return figure


def parallel_coordinates(settings: Mapping[str, Sequence[str]], objective: Sequence[float], name: str) -> Figure:
    """Show each trial as a line through its settings to its objective; the better, the darker and thicker.

    Args:
        settings: The values of each setting, as they were typed, one a trial, the best first.
        objective: The objective of each trial.
        name: What it is called.
    """
    values = np.asarray(objective, dtype=float)
    scales = [*((key, _scale(texts)) for key, texts in settings.items()), (name, _Scale(values, {}, False, True))]
    figure = new_figure((WIDTH, 4.4))
    axes = figure.subplots()
    heights = []
    for place, (key, scale) in enumerate(scales):
        scaled = np.log10(scale.places) if scale.log else scale.places
        low, high = float(scaled.min()), float(scaled.max())
        heights.append((scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5))
        axes.axvline(place, color=PALE, linewidth=0.8, zorder=1)
        marks = scale.names or {
            format_metric(name if place == len(settings) else "", 10**end if scale.log else end): end
            for end in dict.fromkeys((low, (low + high) / 2, high))
        }
        for text, value in zip(shorten_labels(list(marks), 16), marks.values(), strict=True):
            height = (value - low) / (high - low) if high > low else 0.5
            axes.text(
                place + 0.02, height, text, fontsize=8, color=INK, va="center", zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}, **font(),
            )  # fmt: skip
        axes.text(place, 1.07, shorten_label(key, 22), fontsize=9, color=INK, ha="center", **font())
    for rank in reversed(range(len(values))):
        share = 1 - rank / len(values)
        axes.plot(
            range(len(scales)), [height[rank] for height in heights], zorder=2,
            color=BLUE if rank else VERMILION, alpha=0.12 + 0.75 * share**2,
            linewidth=0.6 + 1.0 * share if rank else 2.4,
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.15, len(scales) - 0.6), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)
    axes.set_xlabel("A line a trial: the better, the darker; the best in orange", fontsize=9, color=INK)
    return figure


def objective_by_time(
    minutes: Sequence[float], objective: Sequence[float], name: str, larger_is_better: bool = True
) -> Figure:
    """Show each trial's objective when it ended, and the best so far."""
    order = np.argsort(minutes, kind="stable")
    times, values = np.asarray(minutes, dtype=float)[order], np.asarray(objective, dtype=float)[order]
    best = np.maximum.accumulate(values) if larger_is_better else np.minimum.accumulate(values)
    figure = new_figure((WIDTH * 0.75, 3.6))
    unit, factor = ("Seconds", 60) if times[-1] < 2 else ("Minutes", 1)
    axes = named_axes(figure.subplots(), f"{unit} since the sweep began", name, percent=is_share(name))
    times = times * factor
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.scatter(times, values, s=18, color=BLUE, alpha=0.6, linewidths=0, label="a trial")
    axes.step(times, best, where="post", color=VERMILION, linewidth=1.8, label="best so far")
    legend_above(axes)
    return figure


def importance_bars(shares: Mapping[str, float]) -> Figure:
    """Show each setting's share in what made a trial one of the best quarter (shares of 1)."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure((WIDTH * 0.75, 0.9 + 0.35 * len(ordered)))
    axes = named_axes(figure.subplots(), "Share in what made a trial one of the best quarter", "")
    places = range(len(ordered))
    axes.barh(places, [share for _, share in ordered], color=BLUE, height=0.6)
    axes.set_yticks(places, shorten_labels([key for key, _ in ordered], 40), **font())
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", visible=False)
    return figure


def forest(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Show what each setting of a recipe adds, with its interval: a row a setting, the first above.

    Args:
        rows: `setting`, `answer` (`helps`, `harms` or `no evidence`), `difference`, `low`, `high`, more being better.
        metric: What the differences are of.
    """
    share = is_share(metric)
    scale = 100 if share else 1
    figure = new_figure((WIDTH * 0.8, 1.2 + 0.38 * len(rows)))
    axes = named_axes(figure.subplots(), "", "")
    axes.axvline(0, color=INK, linewidth=0.8)
    styles = {"helps": (BLUE, "o"), "harms": (VERMILION, "s"), "no evidence": (PALE, "D")}
    for answer, (colour, marker) in styles.items():
        chosen = [(place, row) for place, row in enumerate(rows) if row["answer"] == answer]
        middles = np.array([row["difference"] for _, row in chosen]) * scale
        ends = [[scale * abs(row["difference"] - row[end]) for _, row in chosen] for end in ("low", "high")]
        if chosen:
            axes.errorbar(
                middles, [place for place, _ in chosen], xerr=ends, fmt=marker, color=colour, markersize=6,
                linewidth=1.6, capsize=3, label=answer,
            )  # fmt: skip
    # One huge effect would leave the others no room: it stands at the edge, in numbers.
    reach = [scale * max(abs(row["low"]), abs(row["high"])) for row in rows]
    edge = 1.15 * max(value for value in reach if value <= (_HUGE * np.median(reach) or max(reach)))
    if max(reach) > edge:
        axes.set_xlim(-edge, edge)
    for place, row in enumerate(rows):
        middle, low, high = (scale * row[name] for name in ("difference", "low", "high"))
        if abs(middle) > edge:
            side = math.copysign(1, middle)
            axes.annotate(
                f"{middle:+.4g} ({low:+.4g} to {high:+.4g})", (side * edge, place), (side * -24, 0),
                textcoords="offset points", ha="right" if side > 0 else "left", va="center", color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                arrowprops={"arrowstyle": "->", "color": styles[row["answer"]][0], "linewidth": 1.6},
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), shorten_labels([row["setting"] for row in rows], 40), **font())
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel(f"Added to {metric}{', in points' if share else ''} (95% interval)", color=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PALE, alpha=0.4, linewidth=0.7)
    legend_above(axes)
    return figure


class _Scale(NamedTuple):
    """Where a setting's values stand on an axis.

    Attributes:
        places: Of each trial's value.
        names: The places that have a name, by that name; none where the values are numbers on a line.
        log: Whether the axis is logarithmic.
        ordered: Whether a larger place is more of something.
    """

    places: np.ndarray
    names: dict[str, float]
    log: bool
    ordered: bool


def _scale(texts: Sequence[str]) -> _Scale:
    """Lay out a setting's values: words side by side, and so the few numbers of a grid; other numbers on a line."""
    names = list(dict.fromkeys(texts))
    try:
        numbers = np.asarray([float(text) for text in texts])
    except ValueError:
        numbers = None
    # Numbers that a search proposed have all their digits; those of a grid were typed by a person.
    typed = len(names) <= _FEW and max(map(len, names)) <= _DIGITS
    if numbers is not None and np.isfinite(numbers).all() and not typed:
        return _Scale(numbers, {}, bool(numbers.min() > 0 and numbers.max() / numbers.min() >= 20), True)
    if numbers is not None:
        names.sort(key=float)
    places = np.asarray([names.index(text) for text in texts], float)
    return _Scale(places, {name: float(place) for place, name in enumerate(names)}, False, numbers is not None)


def _label(axes: Axes, scale: _Scale) -> None:
    if scale.names:
        names = shorten_labels(list(scale.names), 24)
        turned = max(map(len, names)) > 6
        slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(list(scale.names.values()), names, fontsize=8, **slant, **font())
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif scale.log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
