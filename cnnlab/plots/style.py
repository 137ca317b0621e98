"""What all pictures have in common: colours, sizes, letters, bare frames."""

import io
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

BLUE = "#0072B2"
VERMILION = "#D55E00"
INK = "#333333"
PALE = "#BBBBBB"
# For things of one kind side by side, such as runs.
SERIES = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)

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


def named_axes(axes: Axes, x: str, y: str) -> Axes:
    """Name the axes and take away what says nothing; whole numbers stand on the horizontal one."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=PALE, alpha=0.4, linewidth=0.7)
    return axes


def bare(axes: Axes) -> None:
    """Take the numbers from a picture's frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(PALE)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, grey or in colour, its pixels as they are."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    bare(axes)
    axes.spines[:].set_visible(False)


def two_halves(figure: Figure, heights: tuple[float, float]) -> tuple[SubFigure, SubFigure]:
    """Cut a figure in two, one half above the other."""
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=heights)).flat
    return above, below


def shortened(text: str, length: int) -> str:
    """Shorten a name, and spell out characters that no font at hand can draw."""
    text = text if len(text) <= length else text[: length - 1].rstrip() + "…"
    return "".join(
        letter if ord(letter) in _drawable() else letter.encode("unicode_escape").decode() for letter in text
    )


def plain() -> dict[str, Any]:
    """Return how names that others chose are set: in any font that has their letters, never as formulas."""
    return {"family": list(_families()), "parse_math": False}


@cache
def _families() -> tuple[str, ...]:
    installed = font_manager.get_font_names()
    wanted = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei")
    return tuple(family for family in wanted if family in installed)


@cache
def _drawable() -> frozenset[int]:
    paths = [font_manager.findfont(family) for family in _families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))
