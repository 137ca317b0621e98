"""The trials of a sweep or a search, and which settings mattered."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cnnlab.plots.style import BLUE, INK, PALE, VERMILION, WIDTH, named_axes, new_figure, plain, shortened

# Values of a setting that stand side by side.
_FEW = 8
_BEST = (BLUE, VERMILION, "#009E73", "#CC79A7")
_STYLES = ("-", "--", "-.", ":")


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
    spots = figure.subplots(rows, columns, squeeze=False).flat
    values = np.asarray(objective, dtype=float)
    for key, texts in settings.items():
        axes = named_axes(next(spots), shortened(key, 40), name if key == next(iter(settings)) else "")
        places, ticks, log = _scale(texts)
        axes.scatter(places, values, s=18, color=BLUE, alpha=0.55, linewidths=0)
        distinct = np.unique(places)
        if len(distinct) < len(places):
            medians = [float(np.median(values[places == place])) for place in distinct]
            axes.plot(distinct, medians, color=VERMILION, linewidth=1.6, marker="_", label="median")
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        _ticks(axes, ticks, log)
    for axes in spots:
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
    axes = named_axes(figure.subplots(), "Epoch", name)
    for trial, (epochs, values) in curves.items():
        if trial not in best:
            axes.plot(epochs, values, color=PALE, linewidth=0.8, marker="." if len(epochs) == 1 else None)
    for trial, colour, style in zip(best, _BEST, _STYLES, strict=False):
        if trial in curves:
            epochs, values = curves[trial]
            axes.plot(
                epochs, values, color=colour, linestyle=style, linewidth=1.8, label=shortened(trial, 60),
                marker="." if len(epochs) == 1 else None,
            )  # fmt: skip
    if len(curves) > len(best):
        axes.plot([], [], color=PALE, linewidth=0.8, label=f"{len(curves) - len(best)} others")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def parallel_coordinates(
    settings: Mapping[str, Sequence[str]], objective: Sequence[float], name: str, larger_is_better: bool = True
) -> Figure:
    """Show each trial as a line through its settings to its objective; the better, the darker and thicker."""
    columns = [*((key, *_scale(texts)) for key, texts in settings.items()), (name, np.asarray(objective), {}, False)]
    figure = new_figure((WIDTH, 4.4))
    axes = figure.subplots()
    heights = []
    for place, (key, places, ticks, log) in enumerate(columns):
        scaled = np.log10(places) if log else np.asarray(places, dtype=float)
        low, high = float(scaled.min()), float(scaled.max())
        heights.append((scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5))
        axes.axvline(place, color=PALE, linewidth=0.8, zorder=1)
        marks = ticks if ticks else {f"{(10**end if log else end):.3g}": end for end in (low, (low + high) / 2, high)}
        for text, value in marks.items():
            height = (value - low) / (high - low) if high > low else 0.5
            axes.text(
                place + 0.02, height, shortened(text, 16), fontsize=8, color=INK, va="center", zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}, **plain(),
            )  # fmt: skip
        axes.text(place, 1.07, shortened(key, 22), fontsize=9, color=INK, ha="center", **plain())
    order = np.argsort(objective if larger_is_better else -np.asarray(objective), kind="stable")
    for rank, trial in enumerate(order):
        share = (rank + 1) / len(order)
        axes.plot(
            range(len(columns)), [height[trial] for height in heights], zorder=2,
            color=VERMILION if rank == len(order) - 1 else BLUE, alpha=0.12 + 0.75 * share**2,
            linewidth=2.4 if rank == len(order) - 1 else 0.6 + 1.0 * share,
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.15, len(columns) - 0.6), ylim=(-0.06, 1.06))
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
    axes = named_axes(figure.subplots(), f"{unit} since the sweep began", name)
    times = times * factor
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.scatter(times, values, s=18, color=BLUE, alpha=0.6, linewidths=0, label="a trial")
    axes.step(times, best, where="post", color=VERMILION, linewidth=1.8, label="best so far")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Show how much of the objective's variance each setting explains, as a search found it (shares of 1)."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure((WIDTH * 0.75, 0.9 + 0.35 * len(ordered)))
    axes = named_axes(figure.subplots(), "Share of the objective's variance", "")
    axes.barh([shortened(key, 40) for key, _ in ordered], [share for _, share in ordered], color=BLUE, height=0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", visible=False)
    return figure


def _scale(texts: Sequence[str]) -> tuple[np.ndarray, dict[str, float], bool]:
    """Return each value's place on an axis, the names of the places if they have some, and whether to use logs.

    Words and few different numbers, as in a grid, stand side by side, numbers in their order.
    """
    names = list(dict.fromkeys(texts))
    try:
        numbers = np.asarray([float(text) for text in texts])
    except ValueError:
        numbers = None
    if numbers is not None and len(names) <= _FEW:
        names.sort(key=float)
    elif numbers is not None:
        return numbers, {}, bool(numbers.min() > 0 and numbers.max() / numbers.min() >= 20)
    return np.asarray([names.index(text) for text in texts], float), {n: float(i) for i, n in enumerate(names)}, False


def _ticks(axes: Axes, names: Mapping[str, float], log: bool) -> None:
    if names:
        longest = max(map(len, names))
        slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if longest > 6 else {}
        axes.set_xticks(list(names.values()), [shortened(name, 24) for name in names], fontsize=8, **slant, **plain())
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
