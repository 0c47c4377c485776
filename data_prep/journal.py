"""The journal of a session's folder: the files that the job writes there before it is done.

What is in the folder and neither in the journal nor in the session's manifest is somebody else's:
it is never removed. The journal is written before the files, and removed after the manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path as LocalPath
from typing import Literal

from fmcortex import storage
from fmcortex.data.files import ORIGIN, session_files
from fmcortex.data.manifest import VERSION, Sealed, SessionManifest
from fmcortex.errors import ConfigError, DataError
from fmcortex.names import Path
from fmcortex.place import local_path

MANIFEST = "manifest.json"
SURVEY = "survey.json"
SOURCES = "sources.json"
JOURNAL = "writing.json"

#: What every session's folder has beside what its manifest names.
OWN = (MANIFEST, ORIGIN)
#: A file that is being written, or that a killed process left.
_TEMPORARY = re.compile(r".+\.[^./]+-\d+\.[0-9a-f]+\.tmp")
#: Words that are in the documents of this job, and hardly in those of others.
_MARKS = (b'"source_sha256"', b'"manifest_sha256"', b'"inputs_sha256"', b'"seal"')


class Journal(Sealed):
    """`writing.json`: paths in the session's folder."""

    version: Literal[2] = VERSION
    files: list[Path]


def written(folder: str) -> set[str]:
    """The files of a session's folder that the job says it wrote, or was about to write.

    Raises:
        StorageError: it cannot be read.
    """
    found: set[str] = set()
    if (journal := _journal(folder)) is not None:
        found |= set(journal.files)
    url = storage.join(folder, MANIFEST)
    if storage.exists(url):
        with suppress(DataError):
            manifest = SessionManifest.parse_sealed(storage.read_bytes(url), url)
            found |= {*session_files(manifest), *OWN}
    return found


def _journal(folder: str) -> Journal | None:
    url = storage.join(folder, JOURNAL)
    with suppress(DataError):
        if storage.exists(url):
            return Journal.parse_sealed(storage.read_bytes(url), url)
    return None


def note(folder: str, files: Iterable[str]) -> None:
    """Write down that files are about to be written.

    Raises:
        StorageError: it cannot be written.
    """
    known = written(folder)
    if not set(files) <= known or not storage.exists(storage.join(folder, JOURNAL)):
        journal = Journal(files=sorted({*known, *files}))
        storage.write_bytes(storage.join(folder, JOURNAL), journal.sealed())


def done(folder: str) -> None:
    """Remove the journal.

    Raises:
        StorageError: it cannot be removed.
    """
    storage.remove(storage.join(folder, JOURNAL))


def remove_written(folder: str, kept: Iterable[str] = ()) -> None:
    """Remove the files that the job wrote into a session's folder, but for `kept`.

    Raises:
        StorageError: one cannot be removed.
    """
    there = storage.file_sizes(folder)
    for path in sorted((written(folder) - set(kept)) & set(there)):
        storage.remove(storage.join(folder, path))
    remove_empty(folder)


def remove_empty(folder: str) -> None:
    """Remove the empty folders below a local folder, and it too if it is empty."""
    path = local_path(folder)
    if path is None:
        return  # in object stores there are no folders
    for below, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(below)


def check_ours(folder: str) -> None:
    """Refuse a session's folder at the target in which others have put something.

    Raises:
        ConfigError: there are files, and none says that this job wrote it.
        StorageError: it cannot be read.
    """
    there = [name for name in storage.names(folder) if not _TEMPORARY.fullmatch(name)]
    if not there or JOURNAL in there:
        return
    if not any(looks_ours(storage.join(folder, n)) for n in (MANIFEST, SURVEY) if n in there):
        raise ConfigError(
            f"{folder}: holds {there[0]}, which `fmcortex prep` did not write; choose another"
            " target, or move it away"
        )


def looks_ours(url: str) -> bool:
    """Whether a document is one of this job's, be it damaged.

    Raises:
        StorageError: it cannot be read.
    """
    content = storage.read_bytes(url)
    return not content.strip(b"\0") or any(mark in content for mark in _MARKS)


def check_target(to: str) -> None:
    """Refuse a target whose manifest is somebody else's.

    Raises:
        ConfigError: naming it.
        StorageError: it cannot be read.
    """
    url = storage.join(to, MANIFEST)
    if storage.exists(url) and not looks_ours(url):
        raise ConfigError(f"{url}: is not of a prepared dataset; choose another target")


def leftovers(to: str) -> list[str]:
    """Temporary files that killed runs on this machine left in a local dataset."""
    root = local_path(to)
    if root is None:
        return []
    found = list(LocalPath(root).glob("*.tmp"))
    for part in ("sessions", "movies"):
        for folder, _, files in os.walk(os.path.join(root, part)):
            found += [LocalPath(folder) / name for name in files if name.endswith(".tmp")]
    return [
        str(path)
        for path in found
        if _TEMPORARY.fullmatch(path.name) and not storage.being_written(str(path))
    ]
