"""What all pictures have in common: colours, sizes, letters, bare frames."""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator, PercentFormatter

from cnnlab.plots.names import font

BLUE = "#0072B2"
VERMILION = "#D55E00"
INK = "#333333"
PALE = "#BBBBBB"
# For things of one kind side by side, such as runs.
SERIES = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
DASHES = ("-", "--", "-.", ":")

WIDTH = 8.0  # inches
DPI = 120

Images = UInt8[np.ndarray, "n height width channel"]


def new_figure(size: tuple[float, float], *, by_hand: bool = False) -> Figure:
    """Return an empty figure of (width, height) in inches; `by_hand`: matplotlib's layout leaves its axes alone."""
    return Figure(size, dpi=DPI, layout=None if by_hand else "compressed", facecolor="white")


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def message(text: str, size: tuple[float, float] = (4, 1)) -> Figure:
    """Return a figure that says in words what there is nothing to draw of."""
    figure = new_figure(size)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=INK)
    return figure


def named_axes(axes: Axes, x: str, y: str, *, percent: bool = False) -> Axes:
    """Name the axes and take away what says nothing; whole numbers stand on the horizontal one.

    Args:
        axes: The axes.
        x: Name of the horizontal one.
        y: Name of the vertical one.
        percent: Whether shares stand on the vertical one.
    """
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(Numbers())
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1) if percent else Numbers())
    axes.grid(axis="y", color=PALE, alpha=0.4, linewidth=0.7)
    return axes


class Numbers(Formatter):
    """Label each mark with its whole value, in as many digits as tell the marks apart: no offset, no factor."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a mark that stands alone."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the marks' labels."""
        largest = max(map(abs, values), default=0.0)
        steps = [abs(second - first) for first, second in itertools.pairwise(values) if second != first]
        close = 1e-3 * min(steps, default=largest or 1.0)
        values = [0.0 if abs(value) < close else value for value in values]  # no -0
        kind = "f" if 1e-3 <= largest < 1e7 or largest == 0 else "e"
        labels: list[str] = []
        for digits in range(16):
            labels = [f"{value:,.{digits}{kind}}" for value in values]
            if np.allclose([float(label.replace(",", "")) for label in labels], values, rtol=0, atol=close):
                break
        return [label.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e") for label in labels]


def legend_above(axes: Axes) -> None:
    """Name the curves above the axes, where none of them can cross the names."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
            borderaxespad=0.2, columnspacing=1.2, handlelength=1.8,
        )  # fmt: skip


def legend_below(figure: Figure, columns: int) -> None:
    """Name the curves of the first axes below the figure: one legend for all of them, which may be wider than each."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK
        )
        for text in legend.get_texts():
            text.set(**font())


def bare(axes: Axes) -> None:
    """Take the numbers from a picture's frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(PALE)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, grey or in colour, its pixels as they are."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    bare(axes)
    axes.spines[:].set_visible(False)
