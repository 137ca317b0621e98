"""Names that others chose, such as classes': short enough, apart from each other, in letters that a font has."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from anyascii import anyascii
from matplotlib import font_manager


def shorten(text: str, length: int) -> str:
    """Return a name as it is drawn, its middle left out where it is too long.

    Args:
        text: The name.
        length: Letters of usual width that there is room for; Chinese, Japanese and Korean ones are twice as wide.
    """
    return shorten_all([text], length)[0]


def shorten_all(names: Sequence[str], length: int) -> list[str]:
    """Return names as they are drawn; different ones stay different wherever `length` letters can tell them apart."""
    spelled = [spell(name) for name in names]
    short = [_cut(name, length, 0.5) for name in spelled]
    # What tells names apart stands at the end of most, as in photo_1 and photo_2, or near the beginning of some.
    for share in (0.25, 0.75, 0.0, 1.0):
        cuts = dict(zip(spelled, short, strict=True))
        counts = Counter(cuts.values())
        short = [_cut(name, length, share) if counts[cuts[name]] > 1 else cuts[name] for name in spelled]
    return short


def spell(text: str) -> str:
    """Spell in Latin letters what no font at hand can draw, or would draw in the wrong order."""
    return "".join(letter if _is_drawable(letter) else _latin(letter) for letter in text)


def text_width(text: str) -> int:
    """Return how wide a name is, in letters of usual width."""
    return sum(_letter_width(letter) for letter in text)


def plain() -> dict[str, Any]:
    """Return how names are set: in any font that has their letters, never as formulas."""
    return {"family": list(_families()), "parse_math": False}


def _cut(text: str, length: int, share: float) -> str:
    """Shorten a text, leaving `share` of the letters that stay at its beginning, the rest at its end."""
    if text_width(text) <= length:
        return text
    first = round((length - 1) * share)
    start, end = _fit(text, first), _fit(text[::-1], length - 1 - first)[::-1]
    return f"{start.rstrip()}…{end.lstrip()}"


def _fit(text: str, length: int) -> str:
    """Return as much of a text's beginning as there is room for."""
    used = 0
    for place, letter in enumerate(text):
        used += _letter_width(letter)
        if used > length:
            return text[:place]
    return text


def _letter_width(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 0 if unicodedata.combining(letter) else 1


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
