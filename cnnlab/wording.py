"""How numbers and names are written where people read them; files hold numbers with all their digits."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

CONVENTION = (
    "Accuracies and other shares are in per cent, other numbers have four significant digits, epochs count from 1. "
    "In files shares are fractions, numbers have all their digits, and epochs count from 0."
)
_SHARES = ("accuracy", "calibration_error", "f1", "precision", "recall", "share")


def is_share(metric: str) -> bool:
    """Whether a metric, with or without its split, is a share of something and so written in per cent."""
    return metric.endswith(_SHARES)


def format_metric(metric: str, value: float | None) -> str:
    """Return a metric's value: a share as in 92.34%, anything else with four significant digits."""
    if value is None:
        return "–"
    return f"{value:.2%}" if is_share(metric) else f"{value:.4g}"


def format_end(metric: str, value: float) -> str:
    """Return an end of a metric's interval; Student's t knows nothing of the bounds of a share."""
    return format_metric(metric, min(1.0, max(0.0, value)) if is_share(metric) else value)


def format_difference(metric: str, difference: float, sign: str = "") -> str:
    """Return how far two values of a metric are apart: shares in points of per cent.

    Args:
        metric: The metric's name.
        difference: The one value minus the other.
        sign: `+` to write a plus sign too.
    """
    return f"{100 * difference:{sign}.2f} points" if is_share(metric) else f"{difference:{sign}.4g}"


def format_value(value: Any) -> str:
    """Return a value of a config or a record as people read it: numbers with up to six significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_setting(text: str) -> str:
    """Return a setting as it was typed, but a long number, as searches propose them, with four significant digits."""
    try:
        return f"{float(text):.4g}" if len(text) > 7 else text
    except ValueError:
        return text


def format_duration(seconds: float) -> str:
    """Return a time in words, as in 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def parse_duration(text: object) -> float | None:
    """Return the seconds of a time as 90s, 1.5min or 2h, from 1s to 1000h; None of anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|min|h)", text) if isinstance(text, str) else None
    seconds = float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]] if match else 0.0
    return seconds if 1 <= seconds <= 3_600_000 else None


def count(number: int, thing: str) -> str:
    """Return a number of things in words, as in 1 epoch or 1,200 images."""
    return f"{number:,} {thing}{'' if number == 1 else 'es' if thing.endswith('s') else 's'}"


def channels_note(channels: int) -> str:
    """Say which channels a picture of an image shows, where it cannot show all of them."""
    return "" if channels in (1, 3) else f"the first {'3' if channels > 3 else 'one'} of {channels} channels"


def shorten(text: str, length: int = 40) -> str:
    """Return a name with its middle left out where it is too long.

    Args:
        text: The name.
        length: Letters of usual width that there is room for; Chinese, Japanese and Korean ones are twice as wide.
    """
    return _cut(text, length, 0.5)


def shorten_all(names: Sequence[str], length: int) -> list[str]:
    """Shorten names; different ones stay different wherever `length` letters can tell them apart."""
    short = [shorten(name, length) for name in names]
    # What tells names apart stands at the end of most, as in photo_1 and photo_2, or near the beginning of some.
    for share in (0.25, 0.75, 0.0, 1.0):
        cuts = dict(zip(names, short, strict=True))
        counts = Counter(cuts.values())
        short = [_cut(name, length, share) if counts[cuts[name]] > 1 else cuts[name] for name in names]
    return short


def text_width(text: str) -> int:
    """Return how wide a text is, in letters of usual width."""
    return sum(map(_letter_width, text))


def _cut(text: str, length: int, share: float) -> str:
    """Shorten a text, leaving `share` of the letters that stay at its beginning, the rest at its end."""
    if text_width(text) <= length:
        return text
    first = int((length - 1) * share)
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
