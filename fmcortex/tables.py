"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; columns whose first cell is a number are set to the right."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        first = rows[0][i] if rows else ""
        numeric = first.replace(".", "").replace("-", "").isdigit() or first == "-"
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # In a log a table keeps its width instead of losing columns.
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)
