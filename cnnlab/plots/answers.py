"""How a network's answers agree with the labels: confusion matrix and calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from cnnlab.plots.names import font, shorten_labels, text_width
from cnnlab.plots.style import BLUE, INK, PALE, VERMILION, legend_above, named_axes, new_figure


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
    short = shorten_labels(classes, 18)
    names = [short[tick] for tick in ticks]

    # Inches. Set by hand: matplotlib's own layout takes seconds to find room for a hundred names.
    grid = min(5.4, max(2.5, 0.6 * num)) if roomy else min(18, 0.13 * num)
    name = 0.1 + 0.58 * size / 72 * max(map(text_width, names))
    left, right, bottom, top = name + 0.35, 0.95, name * (0.75 if roomy else 1) + 0.35, 0.1
    width, height = left + grid + right, bottom + grid + top
    figure = new_figure((width, height), by_hand=True)
    axes = figure.add_axes((left / width, bottom / height, grid / width, grid / height))
    scale = figure.add_axes(((left + grid + 0.15) / width, bottom / height, 0.15 / width, 2.5 / height))

    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, fontsize=size, **slant if roomy else {"rotation": 90}, **font())
    axes.set_yticks(ticks, names, fontsize=size, **font())
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


def reliability(bins: Sequence[Mapping[str, Any]], error: float) -> Figure:
    """Show how often the network is right where it says that it is so sure: on the diagonal it knows itself.

    Args:
        bins: Equal parts of the scale of probability: `low`, `high`, `count`, and the mean `confidence` and the
            `accuracy` of the images in it, None where there are none.
        error: The mean distance from the diagonal, weighted by `count`.
    """
    figure = new_figure((5.5, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    named_axes(upper, "", "Accuracy", percent=True)
    named_axes(lower, "Probability of the predicted class", "Images")
    upper.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    filled = [part for part in bins if part["count"]]
    places = [part["confidence"] for part in filled]
    # The gap between said and found is drawn, so that it need not be guessed from two lines.
    for part in filled:
        upper.plot([part["confidence"]] * 2, [part["confidence"], part["accuracy"]], color=VERMILION, linewidth=1.2)
    upper.plot(places, [part["accuracy"] for part in filled], color=BLUE, marker="o", linewidth=1.8, label="network")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    figure.suptitle(f"Calibration error {error:.2%}", fontsize=11, color=INK)
    legend_above(upper)
    lower.bar(
        [part["low"] for part in bins], [part["count"] for part in bins],
        [part["high"] - part["low"] for part in bins], align="edge", color=BLUE, edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (upper, lower):
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure
