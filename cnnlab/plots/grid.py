"""Images in rows, each under a title; below them a note says what of the images is shown, if not all of it."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnlab.plots.names import font, shorten_labels
from cnnlab.plots.style import INK, VERMILION, WIDTH, Images, message, new_figure

# Images a row, and in inches: a line of a title, and the space around image and title.
_ROW = 10
_FEW = 8
_LINE = 0.17
_PAD = 0.05


def image_row(images: Images, titles: Sequence[str], note: str = "") -> Figure:
    """Show images side by side (in rows of ten, if there are more), each under its title."""
    return image_grid(images, titles, _ROW, note)


def image_grid(images: Images, titles: Sequence[str] | None = None, columns: int = _FEW, note: str = "") -> Figure:
    """Show images in rows of `columns`."""
    titles = [""] * len(images) if titles is None else titles
    lines = sorted({line for title in titles for line in title.split("\n")})
    short = dict(zip(lines, shorten_labels(lines, _letters(len(images), columns)), strict=True))
    return _grid(images, ["\n".join(short[line] for line in title.split("\n")) for title in titles], columns, note)


def predictions_row(
    images: Images,
    predicted: Integer[np.ndarray, "n"],
    targets: Integer[np.ndarray, "n"],
    classes: Sequence[str],
    note: str = "",
) -> Figure:
    """Show images under their predicted class; wrong ones have a cross, a frame, and the right class."""
    names = shorten_labels(classes, _letters(len(images), _ROW))
    titles = [
        names[guess] if guess == target else f"✗ {names[guess]}\nis {names[target]}"
        for guess, target in zip(predicted, targets, strict=True)
    ]
    return _grid(images, titles, _ROW, note, np.asarray(predicted) != np.asarray(targets))


def worst_mistakes(
    images: Images,
    predicted: Integer[np.ndarray, "n"],
    targets: Integer[np.ndarray, "n"],
    confidence: Float[np.ndarray, "n"],
    classes: Sequence[str],
    count: int = 16,
    note: str = "",
) -> Figure:
    """Show the wrongly classified images on which the network was surest, the surest first.

    Args:
        images: Images of any kind, rightly classified ones among them.
        predicted: The predicted class of each.
        targets: The right class of each.
        confidence: The probability that the network gave to its prediction, 0 to 1.
        classes: The classes' names.
        count: How many mistakes to show at most.
        note: What of the images is shown, if not all of it.
    """
    confidence = np.asarray(confidence)
    wrong = np.flatnonzero(np.asarray(predicted) != np.asarray(targets))
    if len(wrong) == 0:
        return message(f"No mistakes in {len(images):,} images.")
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    names = shorten_labels(classes, _letters(len(worst), _FEW))
    titles = [
        f"✗ {names[predicted[index]]}\nis {names[targets[index]]}\n{confidence[index]:.1%} sure" for index in worst
    ]
    return _grid(images[worst], titles, _FEW, note)


def _cell(count: int, columns: int) -> float:
    """Return the width of an image with the space around it, in inches."""
    return min(1.25, WIDTH / min(columns, max(1, count)))


def _letters(count: int, columns: int) -> int:
    """Return how many letters there is room for over an image: each takes about 5 points, an inch has 72.

    Two less, so that a title and its neighbour, or a cross before it, do not touch.
    """
    return int(_cell(count, columns) * 72 / 5) - 2


def _grid(
    images: Images, titles: Sequence[str], columns: int, note: str, framed: Bool[np.ndarray, "n"] | None = None
) -> Figure:
    if len(images) == 0:
        return message("No images.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell = _cell(len(images), columns)
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    side = cell - 2 * _PAD
    high = side * images.shape[1] / images.shape[2]
    pitch = high + lines * _LINE + 2 * _PAD
    foot = _LINE if note else 0
    width, height = columns * cell, rows * pitch + foot
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
            place = (left + side / 2, bottom + high + 4 / 72)
            axes.text(*place, title, fontsize=8, ha="center", va="baseline", color=INK, **font())
    if note:
        axes.text(_PAD, 0.4 * _LINE, note, fontsize=8, color=INK)
    return figure
