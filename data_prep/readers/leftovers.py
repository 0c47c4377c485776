"""Files that operating systems leave beside recordings, which are no part of them.

A Mac writes `._x` beside every `x` on a disk that is not its own, and `__MACOSX` into archives;
file managers keep their views of a folder in files of their own.
"""

from __future__ import annotations

from pathlib import Path

#: Names as they are compared, in small letters; others begin with a dot, `._x` and `.DS_Store` too.
_NAMES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"})
_NAMES |= {"system volume information", "lost+found", "@eadir"}


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or is left by an operating system."""
    return name.startswith(".") or name.lower() in _NAMES


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What `folder` holds that matches a glob pattern, sorted, without what systems left there."""
    return [path for path in sorted(folder.glob(pattern)) if not is_leftover(path.name)]
