"""Names that others chose, such as classes': short enough, apart from each other, in letters that a font has."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from anyascii import anyascii
from matplotlib import font_manager

from cnnlab import wording
from cnnlab.wording import text_width

__all__ = ["font", "shorten_label", "shorten_labels", "spell", "text_width"]


def shorten_label(text: str, length: int) -> str:
    """Return a name as it is drawn, its middle left out where it is wider than `length` letters."""
    return wording.shorten(spell(text), length)


def shorten_labels(names: Sequence[str], length: int) -> list[str]:
    """Return names as they are drawn; different ones stay different wherever `length` letters can tell them apart."""
    return wording.shorten_all([spell(name) for name in names], length)


def spell(text: str) -> str:
    """Spell in Latin letters what no font at hand can draw, or would draw in the wrong order."""
    return "".join(letter if _is_drawable(letter) else _latin(letter) for letter in text)


def font() -> dict[str, Any]:
    """Return how names are set: in any font that has their letters, never as formulas."""
    return {"family": list(_families()), "parse_math": False}


def _latin(letter: str) -> str:
    return anyascii(letter) or ("" if unicodedata.category(letter).startswith("M") else "?")


def _is_drawable(letter: str) -> bool:
    # matplotlib sets letters from left to right, which turns Arabic and Hebrew around.
    return ord(letter) in _letters() and unicodedata.bidirectional(letter) not in ("R", "AL", "AN")


@cache
def _families() -> tuple[str, ...]:
    installed = font_manager.get_font_names()
    wanted = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei")
    return tuple(family for family in wanted if family in installed)


@cache
def _letters() -> frozenset[int]:
    paths = [font_manager.findfont(family) for family in _families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))
