"""One override as text: parsed, quoted, and answered where it cannot be read."""

import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString

from cnnlab.config.tree import groups, options
from cnnlab.config.words import as_typed

MOST_PARTS = 2000  # of one override: Hydra's parser takes a second for so many, and each process parses again
MOST_BRACKETS = 500


def quote(value: object) -> str:
    """Return a value in quotes, so that Hydra reads the same text, whatever stands in it."""
    return str(QuotedString(str(value), Quote.single).with_quotes())


def as_text(value: Any) -> str:
    """Return a value as an override has it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str() if re.fullmatch(r"[\w./-]+", value) and not is_typed(value):
            return value
        case str():
            return quote(value)
        case list():
            return f"[{','.join(map(as_text, value))}]"
        case _:
            return repr(value)


def is_typed(text: str) -> bool:
    """Whether Hydra would read a text without quotes as a number, a truth value or null."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "null")
    return True


def parse(line: str) -> Override:
    """Parse an override; one like data.path=a=ü.npz, which Hydra refuses, is taken for a text in quotes.

    Raises:
        Exception: It cannot be read; not only Hydra's own errors, since odd strings break its assertions and limits.
    """
    key, equals, value = line.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise ValueError("not a key and a value")
    if sum(map(line.count, "[{(")) > MOST_BRACKETS:
        raise ValueError("nested so deep that the parser takes minutes")
    if line.count(",") > MOST_PARTS:
        raise ValueError(f"more than {MOST_PARTS} values")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(line)
    except Exception:
        if re.search(r"[][{}'\"]|\$\{|^\w+\(", value):
            raise
        return parser.parse_override(f"{key}={quote(value)}")


def parse_all(lines: Iterable[str]) -> tuple[list[Override], list[str]]:
    """Parse overrides; return those that can be read, and a line for each that can't."""
    overrides, mistakes = [], []
    for line in lines:
        try:
            overrides.append(parse(line))
        except Exception as error:  # as `parse` says
            mistakes.append(_unreadable(line, error))
    return overrides, mistakes


def value_of(key: str, lines: Iterable[str]) -> object:
    """Return the value that overrides give a key last; None where they do not."""
    overrides, _ = parse_all(line for line in lines if not line.startswith("-"))
    return next((override.value() for override in reversed(overrides) if sets(override, key)), None)


def text_of(override: Override) -> str:
    """Return an override as it was typed."""
    return str(override.input_line)


def sets(override: Override, key: str, value: object = None) -> bool:
    """Whether an override is about a key, and gives it this value if one is asked for."""
    return override.key_or_group == key and (value is None or override.value() == value)


def _unreadable(line: str, error: Exception) -> str:
    key, equals, _ = line.partition("=")
    if not key or not equals:
        meant = next((f"; did you mean {group}={line}?" for group in groups() if line in options(group)), "")
        return f"{as_typed(line)}: a setting is written KEY=VALUE{meant}"
    if called := re.search(r"while evaluating '.*?': ([^\n]*)", str(error)):
        return f"{as_typed(line)}: {as_typed(called[1])}"
    if line.count(",") > MOST_PARTS:
        return (
            f"{as_typed(key)} has more than {MOST_PARTS} values: write them into a file of "
            f"{as_typed(key.split('.')[0])}'s"
        )
    return f"{as_typed(line)} can't be read; a value with special characters needs quotes: \"{as_typed(key)}='...'\""
