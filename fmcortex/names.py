"""What may be a name: whatever reads one from a manifest, table, archive or registry asks here.

A name becomes part of paths, URLs, sample keys and metrics. So it is plain text that no file
system, shell or URL takes for anything else, and that cannot climb out of the folder it is put in.
Archives are read member by member; none is extracted to the paths that it holds itself.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from fmcortex.errors import DataError

_PART = "[A-Za-z0-9][A-Za-z0-9._-]*"
#: The longest name: suffixes of files and of temporary files fit beside it into 255 bytes.
LONGEST = 128

_NAME = re.compile(_PART)
_PATH = re.compile(f"{_PART}(/{_PART})*")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

#: Names that a checkpoint's files have for something else than a session.
SHARED = "shared"
OPTIMIZER = ".optimizer"

_ALLOWED = (
    f"names are letters, digits, '.', '_' and '-', at most {LONGEST}, and start with a letter or"
    " digit"
)


def is_name(text: str) -> bool:
    """Whether `text` may be the name of a session, a video, a column or a file."""
    return len(text) <= LONGEST and _NAME.fullmatch(text) is not None


def is_inside(path: str) -> bool:
    """Whether a path of any characters, with `/` between its parts, stays in its folder."""
    return "\0" not in path and not any(part in ("", ".", "..") for part in path.split("/"))


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be a name.

    Args:
        name: as it was read.
        what: it is the name of, and where it was read.

    Raises:
        DataError: naming both.
    """
    if not is_name(name):
        raise DataError(f"{what} {_shown(name)}: {_ALLOWED}")


def check_session(name: str, what: str) -> None:
    """Refuse what cannot be the name of a recording session.

    Raises:
        DataError: it is no name, or one that the files of a checkpoint need.
    """
    check_name(name, what)
    if name == SHARED or name.endswith(OPTIMIZER):
        raise DataError(
            f"{what} {name!r}: checkpoints have files of that name; a session may not be called"
            f" {SHARED!r} nor end in {OPTIMIZER!r}: rename it"
        )


def check_key(key: str, what: str) -> None:
    """Refuse what cannot be a training trial's name.

    Raises:
        DataError: naming `what`.
    """
    if not _KEY.fullmatch(key):
        # webdataset ends a sample's key at its first dot.
        raise DataError(
            f"{what} {_shown(key)}: names are letters, digits, '_' and '-', at most 64,"
            " and start with a letter or digit"
        )


def _shown(name: str) -> str:
    """A name for a message of one line, whatever is in it."""
    return repr(name if len(name) <= LONGEST else f"{name[:40]}...")


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{_shown(text)}: {_ALLOWED}")
    return text


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError(f"{_shown(text)}: not a path of names inside the folder")
    return text


def _inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError(f"{_shown(path)}: not a path inside the folder")
    return path


#: Of a document: a name.
Name = Annotated[str, AfterValidator(_name)]
#: Of a document: a path of names.
Path = Annotated[str, AfterValidator(_path)]
#: Of a document: a path of any characters that stays in its folder, as a source's files have them.
InsidePath = Annotated[str, AfterValidator(_inside)]
