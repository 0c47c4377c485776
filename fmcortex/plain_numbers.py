"""Numbers in text, as tables hold them, and nothing that only looks like one.

Python's own `int` and `float` take `2_3` for 23, `007` for 7 and digits of any script; in a table
these are names, of a layer, a session or a mouse.
"""

from __future__ import annotations

import re

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def whole(text: str) -> int | None:
    """The whole number that `text` is; None if it is none."""
    return int(text) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """The finite number that `text` is; None if it is none."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if abs(value) != float("inf") else None
