"""Tables on the terminal: wrapped or split where it is narrow, and never cut."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

#: Spaces between two columns.
GAP = 2


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output goes to a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: int = 1,
    width: int | None = None,
) -> None:
    """Print rows of text; columns of numbers are set to the right.

    Where the terminal is too narrow, cells are wrapped between words. What then still does not fit
    beside the first columns follows in a table of its own, below them once more. Neither a number
    nor a name is ever cut.

    Args:
        title: of the table.
        columns: names of the columns.
        rows: a cell a column.
        keys: how many of the first columns say what a row is of.
        width: of the page, characters; that of the terminal if None.
    """
    import click

    width = terminal_width() if width is None else width
    click.echo(f"{title}\n")
    for part in _parts(columns, rows, keys, width):
        _print(part, columns, rows, width)
        click.echo()


def _longest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=0)


def _sizes(columns: Sequence[str], rows: Sequence[Sequence[str]], i: int) -> tuple[int, int]:
    """The least and the natural width of a column: that of its longest word, and of its text."""
    cells = [columns[i], *(row[i] for row in rows)]
    return _longest([word for cell in cells for word in cell.split()]), _longest(cells)


def _parts(
    columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int | None
) -> list[list[int]]:
    """The columns of each table, so that each is as wide as the page if it can be."""
    if width is None:
        return [list(range(len(columns)))]
    least = [_sizes(columns, rows, i)[0] for i in range(len(columns))]
    parts = [list(range(min(keys, len(columns))))]
    for i in range(keys, len(columns)):
        taken = sum(least[k] + GAP for k in parts[-1])
        if taken + least[i] > width and len(parts[-1]) > keys:
            parts.append(list(range(keys)))
        parts[-1].append(i)
    return parts


def _print(
    part: Sequence[int], columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sizes = [_sizes(columns, rows, i) for i in part]
    widths = [natural for _, natural in sizes]
    while width is not None and sum(widths) + GAP * (len(part) - 1) > width:
        room = [
            (now - least, k) for k, (now, (least, _)) in enumerate(zip(widths, sizes, strict=True))
        ]
        most, widest = max(room)
        if most <= 0:
            break  # a name that is longer than the page; the terminal goes on in the next line
        widths[widest] -= 1
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for i, size in zip(part, widths, strict=True):
        right = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(
            Text(columns[i]), justify="right" if right else "left", min_width=size, max_width=size
        )
    for row in rows:
        table.add_row(*(Text(row[i]) for i in part))  # names are no markup
    Console(width=sum(widths) + GAP * len(widths) + 8).print(table)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.translate({ord(sign): None for sign in ".-,%"}).isdigit()
