"""Pictures of a network: its layers, its filters, what goes through it, what trains it."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cnnlab.plots.names import font, shorten_label, shorten_labels
from cnnlab.plots.style import (
    BLUE,
    INK,
    PALE,
    VERMILION,
    WIDTH,
    bare,
    draw_image,
    named_axes,
    new_figure,
)

_FILTERS = 64  # that are drawn in colour at most
_COLUMNS = 8  # filters, or maps, in a row
Maps = Float[np.ndarray, "channel height width"]


def filters(weights: Float[np.ndarray, "out in height width"], layer: str) -> Figure:
    """Show a convolution's filters: in colour where they read colours, else a row of planes for each.

    Each filter is scaled by itself, zero is mid-grey.

    Args:
        weights: The convolution's weights.
        layer: Its name.
    """
    count, inputs, height, width = weights.shape
    first = weights[:_FILTERS]
    note = f" (the first {len(first)})" if len(first) < count else ""
    title = f"{layer}: {count} filters of {height} × {width} over {inputs} channel{'s' * (inputs > 1)}{note}"
    bound = np.maximum(np.abs(first).max((1, 2, 3), keepdims=True), 1e-12)
    scaled = 0.5 + first / bound / 2
    if inputs in (1, 3):
        columns = min(_COLUMNS, len(first))
        rows = math.ceil(len(first) / columns)
        cell = min(1.25, WIDTH / columns)
        figure = new_figure((max(columns * cell, 5.0), rows * (cell + 0.22) + 0.4))
        spots = figure.subplots(rows, columns, squeeze=False).flat
        for number, (axes, values) in enumerate(zip(spots, scaled, strict=False)):
            axes.imshow(values.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(str(number), fontsize=8, pad=2, color=INK)
            bare(axes)
        for axes in list(spots):
            axes.remove()
    else:
        columns = min(inputs, 32)
        tiles = scaled[:32, :columns]
        sheet = np.full((len(tiles) * (height + 1) + 1, columns * (width + 1) + 1), 1.0)
        for row, filtered in enumerate(tiles):
            for column, plane in enumerate(filtered):
                top, left = row * (height + 1) + 1, column * (width + 1) + 1
                sheet[top : top + height, left : left + width] = plane
        if len(tiles) < count or columns < inputs:
            title = title.removesuffix(note) + f" (the first {len(tiles)} × {columns})"
        breadth = min(7.2, 0.5 * columns)
        figure = new_figure((max(breadth + 0.8, 5.0), breadth * sheet.shape[0] / sheet.shape[1] + 0.8))
        axes = figure.subplots()
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel("Input channel", color=INK)
        axes.set_ylabel("Filter", color=INK)
        for planes, side, set_ticks in ((columns, width, axes.set_xticks), (len(tiles), height, axes.set_yticks)):
            numbers = range(0, planes, 4)
            set_ticks([number * (side + 1) + (side + 1) / 2 for number in numbers], [str(number) for number in numbers])
        axes.tick_params(length=0, labelcolor=INK, labelsize=8)
        axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10, color=INK, **font())
    return figure


def activations(
    image: UInt8[np.ndarray, "height width channel"],
    layers: Sequence[tuple[str, Maps]],
    heat: Float[np.ndarray, "height width"],
    verdict: str,
    heat_layer: str,
    note: str = "",
) -> Figure:
    """Show an image, where the network looked, and each layer's first feature maps, each map scaled by itself.

    Args:
        image: The image.
        layers: Name and maps of each layer.
        heat: How much each pixel spoke for the class, 0 to 1.
        verdict: The class, and how sure the network is.
        heat_layer: The layer that `heat` comes from.
        note: Which layers are left out.
    """
    rows = len(layers)
    cell = 6.4 / _COLUMNS
    figure = new_figure((8, 2.5 + rows * (cell + 0.06) + (0.3 if note else 0)))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.4, rows * (cell + 0.06))).flat
    first, second, third = above.subplots(1, 3)
    draw_image(first, image)
    first.set_title("image", fontsize=10, color=INK)
    second.imshow(heat, cmap="cividis", vmin=0, vmax=1)
    bare(second)
    second.set_title(f"speaks for it, at {shorten_label(heat_layer, 22)}", fontsize=10, color=INK, **font())
    draw_image(third, np.rint(image * (0.3 + 0.7 * heat[:, :, None])).astype(np.uint8))
    third.set_title(shorten_label(verdict, 26), fontsize=10, color=INK, **font())
    if note:
        figure.supxlabel(note, fontsize=9, color=INK)
    if not rows:
        return figure
    labels = shorten_labels([name for name, _ in layers], 20)
    for line, label, (_, maps) in zip(below.subplots(rows, _COLUMNS, squeeze=False), labels, layers, strict=True):
        for number, axes in enumerate(line):
            if number >= len(maps):
                axes.remove()
                continue
            axes.imshow(maps[number], cmap="viridis", interpolation="nearest")
            bare(axes)
            axes.spines[:].set_visible(False)
        size = " × ".join(map(str, maps.shape))
        if len(maps) > _COLUMNS:
            size += f"\n{_COLUMNS} of {len(maps)} maps"
        line[0].set_ylabel(f"{label}\n{size}", rotation=0, ha="right", va="center", fontsize=8, color=INK, **font())
    return figure


def augmented(
    originals: UInt8[np.ndarray, "n height width channel"],
    epochs: Sequence[UInt8[np.ndarray, "n height width channel"]],
    names: Sequence[str],
    steps: str,
    note: str = "",
) -> Figure:
    """Show images as they are, and beside them what training sees of them, epoch by epoch.

    Args:
        originals: The images.
        epochs: The same images in each epoch.
        names: Their classes' names.
        steps: The names of the augmentations.
        note: What of the images is shown, if not all of it.
    """
    height, width = originals.shape[1:3]
    columns = 1 + len(epochs)
    cell = 7.2 / columns * height / width
    figure = new_figure((8, len(originals) * (cell + 0.05) + 0.75))
    spots = figure.subplots(len(originals), columns, squeeze=False)
    for row, (original, name) in enumerate(zip(originals, names, strict=True)):
        for column, image in enumerate((original, *(epoch[row] for epoch in epochs))):
            axes = spots[row, column]
            draw_image(axes, image)
            if row == 0:
                axes.set_title("original" if column == 0 else f"epoch {column}", fontsize=9, pad=4, color=INK)
        spots[row, 0].set_ylabel(shorten_label(name, 12), fontsize=9, color=INK, **font())
    figure.suptitle(shorten_label(f"What the network sees: {steps}", 90), fontsize=11, color=INK, **font())
    if note:
        figure.supxlabel(note, fontsize=9, color=INK)
    return figure


def schedule(epochs: Float[np.ndarray, "n"], lrs: Float[np.ndarray, "n"], steps: int | None, title: str) -> Figure:
    """Show the learning rate over a run.

    Args:
        epochs: Where, in epochs from the beginning.
        lrs: The learning rate there.
        steps: Optimizer steps of the whole run, if that is known: a second axis.
        title: What is drawn.
    """
    figure = new_figure((8, 3.2))
    axes = named_axes(figure.subplots(), "Epoch", "Learning rate")
    axes.plot(epochs, lrs, color=BLUE, linewidth=1.8)
    axes.set_xlim(0, epochs[-1] or 1)
    axes.set_ylim(0, lrs.max() * 1.2 or 1)
    peak = int(lrs.argmax())
    if lrs.max() > lrs.min():
        axes.plot(epochs[peak], lrs[peak], "o", color=VERMILION, markersize=5)
        share = epochs[peak] / epochs[-1]
        axes.annotate(
            f"highest: {lrs[peak]:.3g}", (epochs[peak], lrs[peak]), xytext=(0, 6), textcoords="offset points",
            ha="left" if share < 0.1 else "right" if share > 0.9 else "center", fontsize=9, color=INK,
        )  # fmt: skip
    if steps and epochs[-1]:
        rate = steps / epochs[-1]
        above = axes.secondary_xaxis("top", functions=(lambda epoch: epoch * rate, lambda step: step / rate))
        above.set_xlabel("Step", color=INK)
        above.tick_params(color=PALE, labelcolor=INK)
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        above.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11, color=INK, **font())
    return figure


def layers(
    names: Sequence[str],
    shapes: Sequence[str],
    parameters: Sequence[int],
    flops: Sequence[int],
    totals: tuple[int, int],
) -> Figure:
    """Show where a network has its parameters and its work: a row a layer.

    Args:
        names: The layers' names.
        shapes: Of their outputs.
        parameters: Of each.
        flops: Likewise, for one image.
        totals: Parameters and operations of the whole network.
    """
    figure = new_figure((8, 0.9 + 0.24 * len(names)))
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))
    for axes, values, colour, title in (
        (left, parameters, BLUE, f"Parameters: {totals[0]:,}"),
        (right, flops, VERMILION, f"FLOPs an image: {short(totals[1])}"),
    ):
        axes.barh(places, values, color=colour, height=0.7)
        most = max(values, default=0) or 1
        for place, value in zip(places, values, strict=True):
            axes.text(value + most * 0.02, place, short(value), va="center", fontsize=8, color=INK if value else PALE)
        axes.set_xlim(0, most * 1.2)
        axes.set_xticks([])
        axes.set_title(title, fontsize=10, color=INK)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(PALE)
        axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    labels = [f"{name}   {shape}" for name, shape in zip(shorten_labels(names, 34), shapes, strict=True)]
    left.set_yticks(places, labels, **font())
    left.set_ylim(len(names) - 0.4, -0.6)
    return figure


def short(number: float) -> str:
    """Return a number as people say it: 1.3 M."""
    for unit, word in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{word}"
    return f"{number:g}"
