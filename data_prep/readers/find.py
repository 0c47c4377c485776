"""Finding the sessions in a source folder, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.readers.digital_twin import DigitalTwinReader
from data_prep.readers.leftovers import entries
from data_prep.readers.nwb import NwbReader
from data_prep.readers.protocol import Reader
from data_prep.readers.sensorium2022 import Sensorium2022Reader
from data_prep.readers.sensorium2023 import Sensorium2023Reader
from data_prep.readers.signals import SignalsReader
from data_prep.settings import PrepSettings
from fmcortex.errors import DataError
from fmcortex.names import check_session
from fmcortex.place import local_path

#: For each layout: its reader, and what of which one at least tells a session of the layout.
_LAYOUTS: dict[str, tuple[Callable[[Path, PrepSettings], Reader], tuple[str, ...]]] = {
    "signals": (SignalsReader, ("session.json",)),
    "nwb": (NwbReader, ("*.nwb", "nwb.json")),
    "sensorium2022": (Sensorium2022Reader, ("data/images/",)),
    "sensorium2023": (lambda folder, _: Sensorium2023Reader(folder), ("data/", "meta/")),
    "digital_twin": (
        lambda folder, _: DigitalTwinReader(folder),
        ("units/", "stimuli/", "samples/", "training/"),
    ),
}


def layout_of(folder: Path) -> str | None:
    """The layout that `folder` looks like, None if it is no session of any known layout."""
    for layout, (_, marks) in _LAYOUTS.items():
        if any(_has(folder, mark) for mark in marks):
            return layout
    return None


def _has(folder: Path, mark: str) -> bool:
    """Whether `folder` holds a folder `<name>/`, or a file of a name or pattern."""
    if mark.endswith("/"):
        return (folder / mark).is_dir()
    return any(path.is_file() for path in entries(folder, mark))


def open_reader(folder: Path, settings: PrepSettings | None = None) -> Reader:
    """A reader of the session in `folder`.

    Args:
        folder: the session's folder.
        settings: which layout it is, or "auto" to tell by the folder's content, and how far
            beyond a trial its signals are needed; the defaults if None.

    Raises:
        DataError: no known layout, or a part of the session is missing; the message names it.
    """
    settings = settings or PrepSettings()
    found = layout_of(folder) if settings.layout == "auto" else settings.layout
    if found is None:
        raise DataError(f"{folder}: no session of a known layout ({_marks()})")
    return _LAYOUTS[found][0](folder, settings)


def find_sessions(
    source: str,
    names: list[str] | None = None,
    skip_unknown: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """The session folders of `source`, sorted by name.

    Args:
        source: a folder of session folders, or one session's folder.
        names: the sessions to take; all folders if None.
        skip_unknown: whether to pass over folders that are no session of a known layout.
        say: is told a line of each folder that is passed over.

    Raises:
        DataError: there is no such folder, no session in it, not one of those named, a folder of
            no known layout, or a name that cannot be a folder of the prepared dataset.
    """
    path = local_path(source)
    root = Path(path or "")
    if path is None or not root.is_dir():
        raise DataError(f"{source}: no such folder; the source is a local folder of recordings")
    if layout_of(root) is not None:
        folders = {root.name: root}
    else:
        folders = {path.name: path for path in entries(root) if path.is_dir()}
    if not folders:
        raise DataError(f"{source}: no session folders in it")
    for name in names or []:
        if name not in folders:
            raise DataError(f"{source}: no session {name!r}; it has {', '.join(sorted(folders))}")
    taken = sorted(set(names or folders))
    unknown = [name for name in taken if layout_of(folders[name]) is None]
    if unknown and not (skip_unknown and names is None and len(unknown) < len(taken)):
        raise DataError(_no_sessions(root, unknown, len(taken)))
    for name in unknown:
        if say is not None:
            say(f"{name}: skipped: no session of a known layout")
    taken = [name for name in taken if name not in unknown]
    for name in taken:
        check_session(name, f"{source}: session")
    return [folders[name] for name in taken]


def _no_sessions(root: Path, unknown: list[str], folders: int) -> str:
    """What to say of folders of no known layout, before anything is done."""
    if len(unknown) == folders:
        return f"{root / unknown[0]}: no session of a known layout ({_marks()})"
    more = f" and {', '.join(unknown[1:4])}" if len(unknown) > 1 else ""
    more += f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
    return (
        f"{root / unknown[0]}{more}: no session of a known layout ({_marks()}); move it elsewhere,"
        " or pass over such folders with --skip-unknown"
    )


def _marks() -> str:
    """What each layout is told by."""
    return "; ".join(f"{name} has {' or '.join(m)}" for name, (_, m) in _LAYOUTS.items())
