"""Arrays to matplotlib figures, all in one style: no files, no torch, no pyplot, no state kept.

Figures are 8 inches (960 pixels) wide or less where their content allows, so that text stays readable when a
README shows them at 800. Colours are Okabe and Ito's, which colour-blind readers tell apart; what a colour
says, a mark, a line style or a word says too.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from cnnlab.plots.style import (
    BLUE,
    INK,
    PALE,
    SERIES,
    VERMILION,
    WIDTH,
    Images,
    named_axes,
    new_figure,
    plain,
    shortened,
)

# Of the parts of a step: neighbours far apart in lightness too.
_PARTS = ("#56B4E9", "#E69F00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#BBBBBB")

# Pictures a row, and in inches: a line of a title, and the space around picture and title.
_ROW = 10
_LINE = 0.17
_PAD = 0.05
# Values of a setting that stand side by side.
_FEW = 8
# Beyond this many points a curve is no better for more of them, only slower and larger.
_POINTS = 2000


def image_row(images: Images, titles: Sequence[str]) -> Figure:
    """Show images side by side (in rows of ten, if there are more), each under its title."""
    return _grid(images, titles, _ROW)


def image_grid(images: Images, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Show images in rows of `columns`."""
    return _grid(images, [""] * len(images) if titles is None else titles, columns)


def predictions_row(
    images: Images,
    predicted: Integer[np.ndarray, "n"],
    targets: Integer[np.ndarray, "n"],
    classes: Sequence[str],
) -> Figure:
    """Show images under their predicted class; wrong ones have a cross, a frame, and the right class."""
    titles = [
        classes[guess] if guess == target else f"✗ {classes[guess]}\nis {classes[target]}"
        for guess, target in zip(predicted, targets, strict=True)
    ]
    return _grid(images, titles, _ROW, np.asarray(predicted) != np.asarray(targets))


def worst_mistakes(
    images: Images,
    predicted: Integer[np.ndarray, "n"],
    targets: Integer[np.ndarray, "n"],
    confidence: Float[np.ndarray, "n"],
    classes: Sequence[str],
    count: int = 16,
) -> Figure:
    """Show the wrongly classified images on which the network was surest, the surest first.

    Args:
        images: Images of any kind, rightly classified ones among them.
        predicted: The predicted class of each.
        targets: The right class of each.
        confidence: The probability that the network gave to its prediction, 0 to 1.
        classes: The classes' names.
        count: How many mistakes to show at most.
    """
    confidence = np.asarray(confidence)
    wrong = np.flatnonzero(np.asarray(predicted) != np.asarray(targets))
    if len(wrong) == 0:
        return _message(f"No mistakes in {len(images):,} images.")
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    titles = [
        f"✗ {classes[predicted[index]]}\nis {classes[targets[index]]}\n{confidence[index]:.1%} sure" for index in worst
    ]
    return _grid(images[worst], titles, columns=8)


def loss_curve(
    losses: Float[np.ndarray, "n"] | Sequence[float], title: str = "Global loss for the CNN model"
) -> Figure:
    """Show the training loss of every iteration, and its moving mean. Values that aren't finite are left out.

    Of more than 2000 iterations, the smallest and the largest loss in each of 1000 equal parts are drawn.
    """
    losses = np.asarray(losses, dtype=float)
    finite = np.isfinite(losses)
    if not finite.any():
        return _message("No loss recorded.", (6, 4))
    losses = np.where(finite, losses, np.nan)
    lost = len(losses) - int(finite.sum())
    figure = new_figure((6, 4))
    axes = named_axes(figure.subplots(), "Iteration", "Training loss")
    axes.set_title(title, fontsize=11, color=INK)
    window = len(losses) // 40
    axes.plot(
        *_envelope(losses),
        color=PALE if window > 1 else BLUE,
        linewidth=0.7 if window > 1 else 1.8,
        marker="." if len(losses) == 1 else None,
        label="each iteration" + (f" ({lost:,} not finite)" if lost else ""),
    )
    if window > 1:
        axes.plot(*_moving_mean(losses, window), color=BLUE, linewidth=1.8, label=f"mean of {window:,} iterations")
    _from_zero(axes)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(axes, "upper right")
    return figure


def learning_curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Show loss and accuracy by epoch, for training and validation, as far as they were recorded.

    Args:
        history: Columns of `history.csv`: `epoch` (from 0; drawn from 1, as people count), `train/loss`, `val/loss`,
            `train/accuracy` (0 to 1) and `val/accuracy`. All but `epoch` may be absent or hold NaN.
    """
    figure = new_figure((WIDTH, 3.2))
    epochs = np.asarray(history["epoch"], dtype=float) + 1
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        named_axes(axes, "Epoch", metric.capitalize())
        for split, label, style in (
            ("train", "training", {"color": BLUE, "marker": "o"}),
            ("val", "validation", {"color": VERMILION, "marker": "s", "linestyle": "--"}),
        ):
            values = np.asarray(history.get(f"{split}/{metric}", []), dtype=float)
            if not np.isfinite(values).any():
                continue
            shown = np.isfinite(values)
            axes.plot(
                epochs[shown],
                values[shown],
                label=label,
                linewidth=1.8,
                markersize=4 if shown.sum() <= 40 else 0,
                **style,
            )
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        else:
            _from_zero(axes)
        _legend(axes, "lower right" if metric == "accuracy" else "upper right")
    return figure


def confusion_matrix(matrix: Integer[np.ndarray, "target predicted"], classes: Sequence[str]) -> Figure:
    """Show what the images of each class were taken for: shares of the row as shades, and counts if they fit.

    The shades follow the square root of the share, since a good network's mistakes are a few per cent.
    """
    num = len(classes)
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    roomy = num <= 20
    size = 9 if roomy else 6
    # Names at each row and column, as far as they stay apart.
    ticks = range(0, num, math.ceil(num / 140))
    names = [shortened(classes[tick], 18) for tick in ticks]

    # Inches. Set by hand: matplotlib's own layout takes seconds to find room for a hundred names.
    grid = min(5.4, max(2.5, 0.6 * num)) if roomy else min(18, 0.13 * num)
    name = 0.1 + 0.58 * size / 72 * max(map(len, names))
    left, right, bottom, top = name + 0.35, 0.95, name * (0.75 if roomy else 1) + 0.35, 0.1
    width, height = left + grid + right, bottom + grid + top
    figure = new_figure((width, height), by_hand=True)
    axes = figure.add_axes((left / width, bottom / height, grid / width, grid / height))
    scale = figure.add_axes(((left + grid + 0.15) / width, bottom / height, 0.15 / width, 2.5 / height))

    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, fontsize=size, **slant if roomy else {"rotation": 90}, **plain())
    axes.set_yticks(ticks, names, fontsize=size, **plain())
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(PALE)
    figure.text((left + grid / 2) / width, 0.05 / height, "Predicted class", ha="center", color=INK)
    figure.text(0.05 / width, (bottom + grid / 2) / height, "True class", va="center", rotation=90, color=INK)
    if roomy:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.3 else INK if count else PALE
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=8 if num <= 12 else 6.5,
                color=colour,
            )
    bar = figure.colorbar(picture, cax=scale, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    bar.ax.tick_params(color=PALE, labelcolor=INK, labelsize=8)
    bar.set_label("Share of the true class", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    return figure


def compared_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[int]) -> Figure:
    """Show the curves of several runs over each other: validation where it was measured, else training.

    Args:
        histories: Columns of `history.csv` by the run's name, see `learning_curves`.
        groups: For each run the group whose colour and line style it has.
    """
    measured = any(np.isfinite(np.asarray(history.get("val/loss", []), float)).any() for history in histories.values())
    split, word = ("val", "Validation") if measured else ("train", "Training")
    rows = math.ceil(len(histories) / 3)
    figure = new_figure((WIDTH, 3.2 + 0.22 * rows))
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
        named_axes(axes, "Epoch", f"{word} {metric}")
        for (name, history), group in zip(histories.items(), groups, strict=True):
            values = np.asarray(history.get(f"{split}/{metric}", []), dtype=float)
            if not np.isfinite(values).any():
                continue
            shown = np.isfinite(values)
            # What tells runs apart stands at the end of their folders' names.
            tail = name if len(name) <= 36 else f"…{name[-35:]}"
            epochs = np.asarray(history["epoch"], dtype=float) + 1
            axes.plot(
                epochs[shown], values[shown], label=shortened(tail, 36), linewidth=1.6,
                color=SERIES[group % len(SERIES)], linestyle=("-", "--", "-.", ":")[group % 4],
                marker="osD^v"[group % 5], markersize=4 if shown.sum() <= 40 else 0,
            )  # fmt: skip
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK
        )
        for text in legend.get_texts():
            text.set(**plain())
    return figure


def reliability(bins: Sequence[Mapping[str, Any]], error: float) -> Figure:
    """Show how often the network is right where it says that it is so sure: on the diagonal it knows itself.

    Args:
        bins: Equal parts of the scale of probability: `low`, `high`, `count`, and the mean `confidence` and the
            `accuracy` of the images in it, None where there are none.
        error: The mean distance from the diagonal, weighted by `count`.
    """
    figure = new_figure((5.5, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    named_axes(upper, "", "Accuracy")
    named_axes(lower, "Probability of the predicted class", "Images")
    upper.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    filled = [part for part in bins if part["count"]]
    places = [part["confidence"] for part in filled]
    # The gap between said and found is drawn, so that it need not be guessed from two lines.
    for part in filled:
        upper.plot([part["confidence"]] * 2, [part["confidence"], part["accuracy"]], color=VERMILION, linewidth=1.2)
    upper.plot(places, [part["accuracy"] for part in filled], color=BLUE, marker="o", linewidth=1.8, label="network")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"Calibration error {error:.3f}", fontsize=11, color=INK)
    upper.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    lower.bar(
        [part["low"] for part in bins], [part["count"] for part in bins],
        [part["high"] - part["low"] for part in bins], align="edge", color=BLUE, edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (upper, lower):
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    upper.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def step_parts(measured: Mapping[str, Any]) -> Figure:
    """Show what a training step's time goes into, beside the steps that it was held against.

    Args:
        measured: What `cnnlab benchmark --json` writes: `parts_ms`, `step_ms`, `against`.
    """
    others = measured["against"]
    bars = ["cnnlab", *others]
    figure = new_figure((WIDTH, 1.5 + 0.5 * len(bars)))
    axes = named_axes(figure.subplots(), f"Milliseconds a step of {measured['batch_size']} images", "")
    axes.grid(visible=False)
    start = 0.0
    for (name, part), colour in zip(measured["parts_ms"].items(), _PARTS, strict=True):
        axes.barh(0, part, left=start, height=0.6, color=colour, edgecolor="white", label=f"{name} {part:.2f}")
        start += part
    ends = [(measured["step_ms"], "")]
    for row, other in enumerate(others.values(), start=1):
        axes.barh(row, other["step_ms"], height=0.6, color="#888888")
        ends.append((other["step_ms"], f" (ratio {other['ratio']:.2f})"))
    for row, (length, note) in enumerate(ends):
        place = (max(length, start) if row == 0 else length, row)
        axes.annotate(f"{length:.2f}{note}", place, (4, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(range(len(bars)), bars)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max([start, *(other["step_ms"] for other in others.values())]))
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.legend(ncols=4, frameon=False, fontsize=8, labelcolor=INK, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def to_array(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Render a figure as pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _message(text: str, size: tuple[float, float] = (4, 1)) -> Figure:
    figure = new_figure(size)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=INK)
    return figure


def _grid(images: Images, titles: Sequence[str], columns: int, framed: Bool[np.ndarray, "n"] | None = None) -> Figure:
    if len(images) == 0:
        return _message("No images.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell = min(1.25, WIDTH / columns)
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    side = cell - 2 * _PAD
    high = side * images.shape[1] / images.shape[2]
    pitch = high + lines * _LINE + 2 * _PAD
    width, height = columns * cell, rows * pitch
    # One pair of axes, in inches from the corner: with a pair for each image, drawing takes two to three times as long.
    figure = new_figure((width, height), by_hand=True)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    framed = np.zeros(len(images), bool) if framed is None else framed
    for number, (image, title, frame) in enumerate(zip(images, titles, framed, strict=True)):
        row, column = divmod(number, columns)
        left, bottom = column * cell + _PAD, height - (row + 1) * pitch + _PAD
        axes.imshow(
            image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto",
            extent=(left, left + side, bottom, bottom + high),
        )  # fmt: skip
        if frame:
            axes.add_patch(Rectangle((left, bottom), side, high, fill=False, edgecolor=VERMILION, linewidth=2.5))
        if title:
            # About 5 points a letter, 72 points an inch.
            text = "\n".join(shortened(line, int(cell * 72 / 5)) for line in title.split("\n"))
            place = (left + side / 2, bottom + high + 4 / 72)
            axes.text(*place, text, fontsize=8, ha="center", va="baseline", color=INK, **plain())
    return figure


def _from_zero(axes: Axes) -> None:
    """Let the y axis include zero, so that a height tells how large a loss is."""
    if len(axes.lines) > 0:
        axes.update_datalim([(axes.dataLim.x0, 0)])
        axes.set_ylim(axes.dataLim.y0 * 1.05, axes.dataLim.y1 * 1.05 or 1)


def _legend(axes: Axes, place: Literal["upper right", "lower right"]) -> None:
    if len(axes.lines) > 0:
        axes.legend(loc=place, frameon=False, fontsize=9, labelcolor=INK)


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
    known = np.isfinite(values)
    counts = np.concatenate([[0], np.cumsum(known)])
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    first = np.maximum(places - window // 2, 0)
    last = np.minimum(places - window // 2 + window, len(values))
    count = counts[last] - counts[first]
    means = np.full(len(places), np.nan)
    np.divide(sums[last] - sums[first], count, out=means, where=count > 0)
    return places + 1, means


# --- sweeps ---------------------------------------------------------------------------------------------------

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
        _ticks(axes, places, ticks, log)
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


def _ticks(axes: Axes, places: np.ndarray, names: Mapping[str, float], log: bool) -> None:
    if names:
        longest = max(map(len, names))
        slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if longest > 6 else {}
        axes.set_xticks(list(names.values()), [shortened(name, 24) for name in names], fontsize=8, **slant, **plain())
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
