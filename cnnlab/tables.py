"""Tables that fit the terminal."""

import io
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cnnlab.console import rich_console
from cnnlab.files import printable

MAX_LETTERS = 40  # of a cell
LOG_WIDTH = 200  # where there is no terminal


def shorten(text: str, letters: int = MAX_LETTERS) -> str:
    """Return a text of so many letters at most, its middle left out: what tells names apart stands at their ends."""
    if len(text) <= letters:
        return text
    tail = (letters - 1) // 2
    return f"{text[: letters - 1 - tail]}…{text[len(text) - tail :]}"


def draw(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table that fits the terminal: long cells are shortened, the last columns left out and named below.

    Args:
        title: What stands above it.
        header: The columns' names, those that matter most first.
        lines: A cell for each column.
        width: In letters; by default the terminal's.
    """
    terminal = Console(file=sys.stdout or io.StringIO())
    width = width or (terminal.width if terminal.is_terminal else LOG_WIDTH)
    columns = [[shorten(printable(cell, keep="")) for cell in column] for column in zip(header, *lines, strict=True)]
    count, needed = 0, 1
    while count < len(columns) and (count == 0 or needed + max(map(cell_len, columns[count])) + 3 <= width):
        needed += max(map(cell_len, columns[count])) + 3
        count += 1
    grid = Table(*(Column(escape(column[0]), no_wrap=True) for column in columns[:count]))
    for cells in zip(*(column[1:] for column in columns[:count]), strict=True):
        grid.add_row(*map(escape, cells))
    console = rich_console(file=io.StringIO(), width=width, force_terminal=terminal.is_terminal, highlight=False)
    with console.capture() as capture:
        console.print(title, markup=False)
        console.print(grid)
        if count < len(columns):
            names = ", ".join(column[0] for column in columns[count:])
            console.print(f"left out for want of width: {names}", markup=False)
    return capture.get().rstrip("\n")
