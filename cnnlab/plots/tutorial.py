"""Pictures of the data and of what a network is made of."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnlab.plots.names import font, shorten_labels, text_width
from cnnlab.plots.style import BLUE, DPI, INK, Images, bare, draw_image, new_figure

_PATCHES = (BLUE, "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito's, one for each patch of the example
Plane = Float[np.ndarray, "height width channel"]


def data_overview(
    first: Images, names: Sequence[str], of_class: Sequence[Images], classes: Sequence[str], note: str = ""
) -> Figure:
    """Show the first images of a data set under their names, and below them some of each class.

    Args:
        first: The first images.
        names: Their classes' names.
        of_class: Images of each class, of which the first ten or fewer are shown.
        classes: The classes' names.
        note: What of the images is shown, if not all of it.
    """
    height, breadth = first.shape[1:3]
    # Many classes stand in several columns, with fewer images of each.
    columns, most = (1, 10) if len(classes) <= 20 else (2, 5) if len(classes) <= 60 else (3, 4)
    rows = math.ceil(len(classes) / columns)
    names_at_side = shorten_labels(classes, 14)
    short = dict(zip(classes, shorten_labels(classes, int(8 / len(first) * 72 / 5)), strict=True))
    margin = 0.15 + 0.075 * max(map(text_width, names_at_side))  # inches, as all that follows
    scale = (8 / columns - margin - 0.1) / (most * (breadth + 1))  # of a pixel
    top = 8 / len(first) * height / breadth + 0.55
    total = top + 0.5 + rows * (height + 1) * scale
    figure = Figure((8, total), dpi=DPI, facecolor="white")
    for place, (image, name) in enumerate(zip(first, names, strict=True)):
        side = 8 / len(first)
        bottom = total - 0.5 - (side - 0.1) * height / breadth
        axes = figure.add_axes(
            ((place * side + 0.05) / 8, bottom / total, (side - 0.1) / 8, (side - 0.1) * height / breadth / total)
        )
        draw_image(axes, image)
        axes.set_title(short[name], fontsize=8, pad=3, color=INK, **font())
    channels = f", {note}" if note else ""
    texts = ((f"The first {len(first)} training images{channels}", 0.05), ("Training images of each class", top + 0.1))
    for text, below in texts:
        figure.text(0.5, 1 - below / total, text, ha="center", va="top", fontsize=11, color=INK)
    for column in range(columns):
        part = slice(column * rows, (column + 1) * rows)
        sheet = np.full((rows * (height + 1), most * (breadth + 1), first.shape[3]), 255, np.uint8)
        for row, images in enumerate(of_class[part]):
            for place, image in enumerate(images[:most]):
                y, x = row * (height + 1), place * (breadth + 1)
                sheet[y : y + height, x : x + breadth] = image
        axes = figure.add_axes(
            (
                (column * 8 / columns + margin) / 8,
                0.05 / total,
                sheet.shape[1] * scale / 8,
                sheet.shape[0] * scale / total,
            )
        )
        draw_image(axes, sheet)
        rows_named = names_at_side[part]
        axes.set_yticks(np.arange(len(rows_named)) * (height + 1) + height / 2, rows_named, fontsize=9, **font())
        axes.tick_params(length=0, labelcolor=INK)
    return figure


def convolution(image: Plane, weights: Float[np.ndarray, "side side"], result: Plane, sizes: str, note: str) -> Figure:
    """Show an image, a kernel and what the one makes of the other.

    Args:
        image: Values from 0 to 255.
        weights: The kernel.
        result: Likewise; what lies outside is cut off.
        sizes: The arithmetic of the result's size.
        note: What the result's brightness is.
    """
    height, width = image.shape[:2]
    # Inches. Set by hand: the two pictures are to be as large as they can.
    tall = min(5.0, 3.05 * height / width)
    wide, foot, total = tall * width / height, 0.62, tall + 1.0
    figure = Figure((8, total), dpi=DPI, facecolor="white")
    left = figure.add_axes((0.1 / 8, foot / total, wide / 8, tall / total))
    middle = figure.add_axes((3.35 / 8, (foot + max(0, tall - 1.3) / 2) / total, 1.3 / 8, min(1.3, tall) / total))
    right = figure.add_axes(((7.9 - wide) / 8, foot / total, wide / 8, tall / total))
    draw_image(left, _pixels(image))
    left.set_title(f"Image, {width} × {height} pixels", fontsize=10, color=INK)
    side = len(weights)
    bound = np.abs(weights).max() or 1
    middle.imshow(weights, cmap="PuOr_r", vmin=-2.2 * bound, vmax=2.2 * bound)
    if side <= 7:
        for (row, column), value in np.ndenumerate(weights):
            middle.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=11 - side, color=INK)
    middle.set_title(f"Kernel, {side} × {side}", fontsize=10, color=INK)
    bare(middle)
    draw_image(right, _pixels(result))
    right.set_title(f"Result, {result.shape[1]} × {result.shape[0]} pixels", fontsize=10, color=INK)
    figure.text(0.5, 0.08 / total, f"{sizes}\n{note}", ha="center", fontsize=9, linespacing=1.5, color=INK)
    return figure


def pooling(
    example: Float[np.ndarray, "h w"],
    example_pooled: tuple[Float[np.ndarray, "h2 w2"], Float[np.ndarray, "h2 w2"]],
    image: Plane,
    image_pooled: tuple[Plane, Plane],
    size: int,
) -> Figure:
    """Show max and average pooling on a map of numbers, patch by patch, and on a picture.

    Args:
        example: The map, pooled by 2.
        example_pooled: Its maxima and its means.
        image: A picture, values from 0 to 255.
        image_pooled: Its maxima and its means.
        size: The side of the picture's patches, in pixels.
    """
    ratio = image.shape[0] / image.shape[1]
    figure = new_figure((8, 2.6 + min(5.0, 2.6 * ratio) + 0.6))
    above, below = figure.subplots(2, 3, height_ratios=[2.4, min(5.0, 2.6 * ratio)])
    halves = [length // 2 for length in example.shape]
    for axes, values, title in zip(
        above,
        (example, *example_pooled),
        (f"{example.shape[0]} × {example.shape[1]} map", "largest of each patch", "mean of each patch"),
        strict=True,
    ):
        step = 2 if values.shape == example.shape else 1
        axes.imshow(np.zeros_like(values), cmap="Greys", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            colour = _PATCHES[(row // step * halves[1] + column // step) % len(_PATCHES)]
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor=colour, alpha=0.35, edgecolor=colour))
            axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=13, color=INK)
        if step == 1:
            title = f"{values.shape[0]} × {values.shape[1]}: {title}"
        axes.set_title(title, fontsize=10, color=INK)
        axes.set(xlim=(-0.55, example.shape[1] - 0.45), ylim=(example.shape[0] - 0.45, -0.55))
        bare(axes)
        axes.spines[:].set_visible(False)
    for axes, picture, title in zip(
        below,
        (image, *image_pooled),
        ("picture", f"max pooling by {size}", f"average pooling by {size}"),
        strict=True,
    ):
        draw_image(axes, _pixels(picture))
        axes.set_title(f"{title}\n{picture.shape[1]} × {picture.shape[0]} pixels", fontsize=10, color=INK)
    return figure


def _pixels(image: Plane) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
