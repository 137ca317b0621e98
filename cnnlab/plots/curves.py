"""What happened during training, by iteration and by epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnlab.plots.names import font, shorten_label, shorten_labels, text_width
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
    message,
    named_axes,
    new_figure,
)

# Beyond this many points a curve is no better for more of them, only slower and larger.
_POINTS = 2000


def loss_curve(losses: Float[np.ndarray, "n"] | Sequence[float], network: str = "") -> Figure:
    """Show the training loss of every iteration, and its moving mean. Values that aren't finite are left out.

    Of more than 2000 iterations, the smallest and the largest loss in each of 1000 equal parts are drawn.

    Args:
        losses: The loss of each iteration, from the first.
        network: The network's name, for the title.
    """
    losses = np.asarray(losses, dtype=float)
    finite = np.isfinite(losses)
    if not finite.any():
        return message("No loss recorded.", (6, 4))
    losses = np.where(finite, losses, np.nan)
    lost = len(losses) - int(finite.sum())
    figure = new_figure((6, 4))
    axes = named_axes(figure.subplots(), "Iteration", "Training loss")
    _title(figure, "Training loss", network)
    window = len(losses) // 40
    axes.plot(
        *_envelope(losses),
        color=PALE if window > 1 else BLUE,
        linewidth=0.7 if window > 1 else 1.8,
        marker="." if len(losses) == 1 else None,
        label="each iteration" + (f" ({lost:,} without a finite loss)" if lost else ""),
    )
    if window > 1:
        axes.plot(*_moving_mean(losses, window), color=BLUE, linewidth=1.8, label=f"mean of {window:,} iterations")
    _from_zero(axes)
    legend_above(axes)
    return figure


def learning_rate_curve(rates: Float[np.ndarray, "n"] | Sequence[float], network: str = "") -> Figure:
    """Show the learning rate of every iteration, as it was used.

    Args:
        rates: The rate of each iteration, from the first.
        network: The network's name, for the title.
    """
    rates = np.asarray(rates, dtype=float)
    if not np.isfinite(rates).any():
        return message("No learning rate recorded.", (6, 3))
    figure = new_figure((6, 3))
    axes = named_axes(figure.subplots(), "Iteration", "Learning rate")
    _title(figure, "Learning rate", network)
    axes.plot(*_envelope(rates), color=BLUE, linewidth=1.8, marker="." if len(rates) == 1 else None)
    _from_zero(axes)
    return figure


def learning_curves(
    history: Mapping[str, Sequence[float]], network: str = "", best: Mapping[str, Any] | None = None
) -> Figure:
    """Show loss and accuracy by epoch, for training and validation, as far as they were recorded.

    Args:
        history: Columns of `history.csv`: `epoch` (from 0; drawn from 1, as people count), `train/loss`, `val/loss`,
            `train/accuracy` (0 to 1) and `val/accuracy`. All but `epoch` may be absent or hold NaN.
        network: The network's name, for the title.
        best: The state that was kept, as in run.json: its `epoch`, from 0, is marked.
    """
    figure = new_figure((WIDTH, 3.4))
    _title(figure, "Learning curves", network)
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        named_axes(axes, "Epoch", metric.capitalize(), percent=metric == "accuracy")
        for split, label, style in (
            ("train", "training", {"color": BLUE, "marker": "o"}),
            ("val", "validation", {"color": VERMILION, "marker": "s", "linestyle": "--"}),
        ):
            _plot_by_epoch(axes, history, f"{split}/{metric}", label=label, linewidth=1.8, **style)
        if best and isinstance(best.get("epoch"), int):
            epoch = best["epoch"] + 1
            axes.axvline(epoch, color=INK, linewidth=1, linestyle=":", zorder=0, label=f"best: epoch {epoch}")
        if metric == "loss":
            _from_zero(axes)
    legend_below(figure, 3)
    return figure


def compared_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[int]) -> Figure:
    """Show the curves of several runs over each other: validation where it was measured, else training.

    Args:
        histories: Columns of `history.csv` by the run's name, see `learning_curves`.
        groups: For each run the group whose colour and line style it has.
    """
    validated = any(np.isfinite(np.asarray(history.get("val/loss", []), float)).any() for history in histories.values())
    split, word = ("val", "Validation") if validated else ("train", "Training")
    labels = shorten_labels(list(histories), 36)
    # About 105 letters fit into the picture's width.
    columns = min(3, max(1, 105 // (max(map(text_width, labels), default=0) + 8)))
    rows = math.ceil(len(histories) / columns)
    figure = new_figure((WIDTH, 3.2 + 0.22 * rows))
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        named_axes(axes, "Epoch", f"{word} {metric}", percent=metric == "accuracy")
        for label, history, group in zip(labels, histories.values(), groups, strict=True):
            _plot_by_epoch(
                axes, history, f"{split}/{metric}", label=label, linewidth=1.6, marker="osD^v"[group % 5],
                color=SERIES[group % len(SERIES)], linestyle=DASHES[group % len(DASHES)],
            )  # fmt: skip
    legend_below(figure, columns)
    return figure


def _plot_by_epoch(axes: Axes, history: Mapping[str, Sequence[float]], column: str, **style: Any) -> None:
    """Draw what was measured of a column by epoch, counted from 1; marked where the points are few."""
    values = np.asarray(history.get(column, []), dtype=float)
    measured = np.isfinite(values)
    if measured.any():
        epochs = np.asarray(history["epoch"], dtype=float) + 1
        axes.plot(epochs[measured], values[measured], markersize=4 if measured.sum() <= 40 else 0, **style)


def _title(figure: Figure, what: str, network: str) -> None:
    figure.suptitle(shorten_label(f"{what}, {network}" if network else what, 60), fontsize=11, color=INK, **font())


def _from_zero(axes: Axes) -> None:
    """Let the y axis include zero, so that a height tells how large a loss is."""
    if len(axes.lines) > 0:
        axes.update_datalim([(axes.dataLim.x0, 0)])
        axes.set_ylim(axes.dataLim.y0 * 1.05, axes.dataLim.y1 * 1.05 or 1)


def _envelope(values: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """Return (iteration, value) of each point, or of the extremes of equal parts if there are too many."""
    if len(values) <= _POINTS:
        return np.arange(1, len(values) + 1), values
    length = math.ceil(2 * len(values) / _POINTS)
    parts = np.full((math.ceil(len(values) / length), length), np.nan)
    parts.flat[: len(values)] = values
    starts = np.arange(len(parts)) * length + 1
    extremes = np.stack([np.fmin.reduce(parts, axis=1), np.fmax.reduce(parts, axis=1)], axis=1)
    return np.repeat(starts, 2), extremes.ravel()


def _moving_mean(values: Float[np.ndarray, "n"], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (iteration, mean of the finite values around it) at up to `_POINTS` places."""
    places = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))
    finite = np.isfinite(values)
    counts = np.concatenate([[0], np.cumsum(finite)])
    sums = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    first = np.maximum(places - window // 2, 0)
    last = np.minimum(places - window // 2 + window, len(values))
    count = counts[last] - counts[first]
    means = np.full(len(places), np.nan)
    np.divide(sums[last] - sums[first], count, out=means, where=count > 0)
    return places + 1, means
