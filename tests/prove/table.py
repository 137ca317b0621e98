"""What a proof prints: what was tried, how often it held, and a figure."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Broken(Exception):  # noqa: N818 - no error of the code, a promise that does not hold
    """A promise that was found not to hold."""


class Row(NamedTuple):
    """One line of a proof."""

    promise: str
    tried: int
    held: int
    figure: str = ""


def show(title: str, rows: Iterator[Row]) -> int:
    """Print the rows of a proof up to the first promise that is broken; return the exit code."""
    table = Table("promise", "tried", "held", "figure", title=title)
    console, code = Console(), 0
    try:
        for row in rows:
            console.print(f"{row.promise}: {row.held} of {row.tried}", highlight=False, markup=False)
            table.add_row(row.promise, str(row.tried), str(row.held), row.figure)
            if row.held < row.tried or not row.tried:
                raise Broken(f"{row.promise}: held {row.held} of {row.tried} times")
    except Broken as broken:
        code = 1
        table.add_row(f"BROKEN: {broken}", "", "", "")
    console.print(table)
    return code


def expect(holds: object, what: str) -> None:
    """Raise `Broken` unless something holds."""
    if not holds:
        raise Broken(what)


def counted(promise: str, tries: Iterator[str], figure: Callable[[list[str]], str] | str = "") -> Row:
    """Return the row of a promise whose tries raise `Broken` where it does not hold; each yields what it saw."""
    seen = list(tries)
    return Row(promise, len(seen), len(seen), figure if isinstance(figure, str) else figure(seen))
