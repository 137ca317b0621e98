"""Tables that fit the terminal: the columns that matter stay, long cells are shortened, what is left out is named."""

import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnnlab.files import printable
from cnnlab.wording import shorten

LEAST_WIDTH = 12
GAP = 2  # between columns: the padding, and what the box draws


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its head.
        cells: Its texts.
        number: Whether it holds numbers, which are set to the right and never shortened.
        least: Characters to which a longer text may be shortened.
    """

    name: str
    cells: Sequence[str]
    number: bool = False
    least: int = LEAST_WIDTH

    @property
    def width(self) -> int:
        """The characters that its longest text takes on a terminal."""
        from rich.cells import cell_len

        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def least_width(self) -> int:
        """The characters to which it may be shortened."""
        return self.width if self.number else min(self.width, max(self.least, len(self.name)))


def fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """Choose the columns that fit a width, and shorten their cells.

    Args:
        columns: Those that matter most first.
        width: Of the terminal, in characters.

    Returns:
        The columns that are shown, and the names of the others.
    """
    fitting: list[Column] = []
    widths: list[int] = []
    dropped = []
    for column in columns:
        if not fitting or sum(widths) + GAP * len(widths) + column.least_width <= width:
            fitting.append(column)
            widths.append(column.least_width)
        else:
            dropped.append(column.name)
    spare = width - sum(widths) - GAP * (len(widths) - 1)
    while spare > 0 and (short := [index for index, column in enumerate(fitting) if widths[index] < column.width]):
        # The column that is furthest from its full width gets the next character.
        widths[max(short, key=lambda index: fitting[index].width / widths[index])] += 1
        spare -= 1
    widths[0] = min(widths[0], width)
    cut = [
        replace(column, name=shorten(column.name, size), cells=[shorten(cell, size) for cell in column.cells])
        for column, size in zip(fitting, widths, strict=True)
    ]
    return cut, dropped


def draw(
    columns: Sequence[Column], *, title: str = "", wide: bool = False, elsewhere: str = "--wide and --json"
) -> str:
    """Return a table as text: of the terminal's width on a terminal; in a file, or if it is `wide`, every cell whole.

    Args:
        columns: Those that matter most first.
        title: Stands above.
        wide: Whether to show all of it, however wide that is.
        elsewhere: Where the reader finds what was left out.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column as Head
    from rich.table import Table

    # A cell may be a stranger's: no line breaks, nothing that commands the terminal.
    columns = [
        replace(column, name=printable(column.name, ""), cells=[printable(cell, "") for cell in column.cells])
        for column in columns
    ]
    terminal = Console(file=sys.stdout)
    dropped: list[str] = []
    if terminal.is_terminal and not wide:
        columns, dropped = fit(columns, terminal.width)
    heads = [
        Head(escape(column.name), justify="right" if column.number else "left", no_wrap=True) for column in columns
    ]
    table = Table(*heads, box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), show_edge=False, pad_edge=False)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(escape, row))
    width = sum(column.width + GAP for column in columns)
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal.is_terminal, highlight=False)
    with console.capture() as capture:
        console.print(table)
    parts = [title] if title else []
    parts += [line.rstrip() for line in capture.get().splitlines()]
    if dropped:
        parts.append(textwrap.fill(f"not shown: {', '.join(dropped)} ({elsewhere})", terminal.width))
    return "\n".join(parts)


def print_table(
    columns: Sequence[Column], *, title: str = "", wide: bool = False, elsewhere: str = "--wide and --json"
) -> None:
    """Print a table on standard output, see `draw`."""
    print(draw(columns, title=title, wide=wide, elsewhere=elsewhere))
