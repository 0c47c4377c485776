"""Finding groups and datasets in an HDF5 file, so that a link that leads nowhere is told.

h5py gives nothing for a link whose target is gone, as if it had never been there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fmcortex.errors import DataError

#: What h5py raises where it cannot open or read.
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)


def listed(names: Iterable[str]) -> str:
    """The first of some names in order, on one line whatever is in them."""
    shown = sorted(names)[:12]
    return ", ".join(name if name.isprintable() else ascii(name) for name in shown)


@contextmanager
def readable(source: object) -> Iterator[None]:
    """Turn what h5py raises in the block, and nobody foresaw, into one line that names `source`."""
    try:
        yield
    except UNREADABLE as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{source}: cannot be read as NWB: {type(error).__name__}: {said}"
        ) from error


def is_group(found: Any) -> bool:
    """Whether an object of the file is a group, or the file itself."""
    return hasattr(found, "keys")


def is_dataset(found: Any) -> bool:
    """Whether an object of the file is a dataset."""
    return hasattr(found, "shape") and hasattr(found, "dtype")


def member(group: Any, name: str, source: str) -> Any:
    """The group or dataset `name` of a group; None if there is none, or `group` is none itself.

    Args:
        group: of the file.
        name: without a slash.
        source: the file, for messages.

    Raises:
        DataError: it is a link whose target, or whose target's file, is not there or is outside
            the folder.
    """
    import h5py

    if not is_group(group):
        return None
    path = group.name.strip("/")
    inside = path and source.endswith(path)
    where = f"{source}/{name}" if inside else f"{source}: {path}/{name}".replace(": /", ": ")
    link = None
    try:
        link = group.get(name, getlink=True)
        if link is None:
            return None
        found = _open(group, name)
        # What HDF5 does not find beside the file it takes from where the process happens to run.
        hard = isinstance(link, h5py.HardLink)
        if not hard and found.file.filename != group.file.filename:
            check_beside(group.file, Path(found.file.filename), f"{where}: is in")
        return found
    except UNREADABLE as error:
        if isinstance(link, h5py.ExternalLink):
            what = "which is missing or has no such part; put it beside this one"
            if group.file.driver == "fileobj":
                what = "which is not read from a URL"
            raise DataError(
                f"{where}: is {link.path} of another file, {link.filename}, {what}"
            ) from error
        if isinstance(link, h5py.SoftLink):
            raise DataError(
                f"{where}: is a link to {link.path}, which is not there or leads in a circle"
            ) from error
        raise DataError(f"{where}: cannot open: {error}") from error


def check_beside(file: Any, other: Path, what: str) -> None:
    """Refuse another file that is not in the folder of `file`, where a change of it is noticed.

    Raises:
        DataError: its message begins with `what`.
    """
    if file.driver == "fileobj":
        raise DataError(f"{what} {other}, which is not read from a URL")
    folder = Path(file.filename).absolute().parent
    if not Path(os.path.normpath(other.absolute())).is_relative_to(os.path.normpath(folder)):
        raise DataError(
            f"{what} {other}, outside {folder}, where nothing would tell that it changed; put it"
            " there"
        )


def _open(group: Any, name: str) -> Any:
    import h5py

    if group.get(name, getclass=True) is not h5py.Dataset:
        return group[name]
    with suppress(KeyError):  # what is open as below cannot be opened otherwise meanwhile
        found = group[name]
        if not found.external:
            return found
        del found
    # Names of raw files outside are relative to the folder of the file; HDF5 by itself takes them
    # as relative to the folder that the process happens to run in.
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def find(file: Any, path: str, source: str) -> Any:
    """The group or dataset at `path` below a group of the file; None if there is none.

    Raises:
        DataError: a link on the way leads nowhere, or a dataset is where a group should be.
    """
    found = file
    for part in path.strip("/").split("/"):
        if found is not None and not is_group(found):
            raise DataError(f"{source}: {found.name.strip('/')}: is a dataset, not a group")
        found = member(found, part, source)
    return found


def dereference(reference: Any, file: Any, source: str) -> Any:
    """The group or dataset that an object reference in `file` names.

    Raises:
        DataError: it names none, or is no such reference.
    """
    import h5py

    name = None
    if isinstance(reference, h5py.Reference):
        try:
            name = h5py.h5r.get_name(reference, file.id)
        except UNREADABLE:
            name = None  # its target was removed
    found = find(file, name.decode(), source) if name else None
    if found is None:
        raise DataError(f"{source}: refers to nothing in the file")
    return found


def child(file: Any, path: str, source: str) -> Any:
    """The group or dataset at `path` of the file.

    Raises:
        DataError: there is none; the message names what its nearest parent holds.
    """
    found, walked = file, ""
    for part in path.strip("/").split("/"):
        inner = member(found, part, source)
        if inner is None:
            has = listed(found) if is_group(found) else "no groups"
            raise DataError(
                f"{source}: no {listed([path])}; {walked or 'the file'} has {has or 'nothing'};"
                " say in nwb.json where it is"
            )
        found, walked = inner, f"{walked}/{part}"
    return found
