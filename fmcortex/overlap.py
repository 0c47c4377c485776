"""Whether two places overlap, whatever they are called: by links, mounts and aliases of URLs.

Folders of this machine are compared by device and inode, which a folder keeps under all its names.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence

from fmcortex import storage
from fmcortex.errors import ConfigError
from fmcortex.place import local_path

#: Device and inode of a folder or file.
Identity = tuple[int, int]

#: First bytes of what a command may write over, by kind; in lower case.
_STARTS = {
    "HTML page": (b"<!doctype html", b"<html"),
    "list of scores": (b"[",),
    "quality.json": (b'{"url"',),
    "image": (b"\x89png", b"%pdf", b"<?xml", b"<svg", b"\xff\xd8", b"gif8", b"%!ps", b"ii*", b"mm"),
}


def check_apart(sources: Sequence[str], to: str, inside: Sequence[str] = ()) -> None:
    """Refuse a target that overlaps with what it is made from.

    Args:
        sources: folders, files or URLs that are read.
        to: URL of the folder that is written.
        inside: paths in it that will be written to, which may be links to elsewhere.

    Raises:
        ConfigError: naming both.
        StorageError: one of them cannot be a location.
    """
    for source in sources:
        if overlap(source, to, inside):
            raise ConfigError(
                f"{to}: overlaps with the source {source}, and a source is never written to;"
                " choose another target"
            )


def overlap(source: str, to: str, inside: Sequence[str] = ()) -> bool:
    """Whether something in `source` is in `to`, or the other way round.

    Args:
        source: a folder, file or URL; folders of this machine are walked through.
        to: a folder or its URL; only what is said in `inside` is looked at in it.
        inside: paths in `to`.
    """
    here, there = local_path(source), local_path(to)
    if here is None or there is None:
        return here is there and _same_remote(source, to)
    above_target = set(_upwards(there))
    target = {_identity(there)}
    target |= {_identity(os.path.join(there, part)) for part in inside}
    target.discard(None)
    if target & set(_upwards(here)):
        return True
    for path, link in _folders(here):
        found = _identity(path)
        if found in above_target or found in target:
            return True
        if link and target & set(_upwards(path)):
            return True
    # Before the target is there, only its name tells.
    name = os.path.realpath(there)
    return os.path.realpath(here).startswith(name + os.sep)


def _same_remote(source: str, to: str) -> bool:
    """The same of two URLs elsewhere."""
    (fs, one), (other_fs, other) = storage.filesystem(source), storage.filesystem(to)
    if type(fs) is not type(other_fs) or fs.storage_options != other_fs.storage_options:
        return False
    one, other = (posixpath.normpath(path).strip("/") + "/" for path in (one, other))
    return one.startswith(other) or other.startswith(one)


def _identity(path: str) -> Identity | None:
    """Of what is at a path, behind all links; None if nothing is there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _upwards(path: str) -> Iterator[Identity]:
    """The identities of what is at a path, and of the folders that it is in."""
    path = os.path.realpath(path)
    while True:
        if (found := _identity(path)) is not None:
            yield found
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


def _folders(root: str) -> Iterator[tuple[str, bool]]:
    """The folder `root`, all folders in it, and all links, each with whether it is a link."""
    waiting, seen = [root], set()
    yield root, os.path.islink(root)
    while waiting:
        folder = waiting.pop()
        if (identity := _identity(folder)) is None or identity in seen:
            continue  # links may lead in a circle
        seen.add(identity)
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError:  # a file, or a folder that reading will complain about
            continue
        for entry in found:
            link = entry.is_symlink()
            if folder_here := entry.is_dir():
                waiting.append(entry.path)
            if folder_here or link:
                yield entry.path, link


def check_replaces(url: str, kind: str, sources: Iterable[str] = ()) -> None:
    """Refuse to write a file over one that is something else, or into what it is made from.

    Args:
        url: of the file to be written.
        kind: of file: a key of `_STARTS`.
        sources: datasets and checkpoints that it may not be in.

    Raises:
        ConfigError: naming the file.
        StorageError: it cannot be read.
    """
    folder = storage.absolute(url).rpartition("/")[0] or "/"
    for source in sources:
        here, there = local_path(source), local_path(folder)
        if here is not None and there is not None:
            inside = _identity(here) in set(_upwards(there)) and os.path.isdir(here)
        else:
            inside = here is there and _below(source, folder)
        if inside:
            raise ConfigError(f"{url}: is in {source}, which is not written to; name another place")
    if not storage.exists(url):
        return
    start = storage.read_range(url, 0, 64).lstrip().lower()
    if start and not start.startswith(_STARTS[kind]):
        raise ConfigError(f"{url}: is there and is no {kind}; remove it, or name another file")


def _below(source: str, folder: str) -> bool:
    (fs, above), (other_fs, path) = storage.filesystem(source), storage.filesystem(folder)
    same = type(fs) is type(other_fs) and fs.storage_options == other_fs.storage_options
    return same and (posixpath.normpath(path) + "/").startswith(posixpath.normpath(above) + "/")
