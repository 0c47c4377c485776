"""What a session is made from: every file of its source folder, by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.leftovers import is_leftover
from fmcortex import storage
from fmcortex.data.manifest import SourceFile, SourceList
from fmcortex.errors import DataError

_BLOCK = 8 << 20
#: Files of version 2 of zarr that say what its arrays are, although hidden.
_ZARR_2 = (".zarray", ".zattrs", ".zgroup")


def source_files(folder: Path) -> list[Path]:
    """The files of a source folder, sorted, without hidden ones and what systems left there.

    Links are followed: what they lead to is as much of the recording as what lies here.

    Raises:
        DataError: a link leads nowhere.
    """
    return sorted(_files(folder, ()))


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        return  # a link in a circle
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        if is_leftover(entry.name) and entry.name not in _ZARR_2:
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _files(path, (*above, here))
        elif entry.is_file():
            yield path
        elif entry.is_symlink() and not path.exists():
            raise DataError(f"{path}: is a link to {os.readlink(path)}, which is not there")


def fingerprint(folder: str) -> SourceList:
    """Size and SHA-256 of every file of a source folder, by its path in it.

    Contents rather than modification times: a copy of the source is the same source, and a file
    that was repaired with its time kept is not. It costs one more read of the recordings.

    Raises:
        DataError: a file cannot be read.
    """
    root = Path(folder)
    found = {path.relative_to(root).as_posix(): file_sha256(path) for path in source_files(root)}
    return SourceList(files=found)


def file_sha256(path: Path) -> SourceFile:
    """Size and SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    return SourceFile(bytes=size, sha256=digest.hexdigest())


def source_sha256(sources: SourceList) -> str:
    """SHA-256 over the paths, sizes and contents of a source."""
    return storage.sha256(sources.encoded())


def same_sizes(folder: str, sources: SourceList) -> bool:
    """Whether the files of a source folder are those of `sources`, by name and size."""
    root = Path(folder)
    found = {path.relative_to(root).as_posix(): path.stat().st_size for path in source_files(root)}
    return found == {path: file.bytes for path, file in sources.files.items()}
