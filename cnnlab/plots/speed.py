"""Where the time of a training step goes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnlab.plots.style import INK, WIDTH, named_axes, new_figure

# Of the parts of a step: neighbours far apart in lightness too.
_PARTS = ("#56B4E9", "#E69F00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#BBBBBB")


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
