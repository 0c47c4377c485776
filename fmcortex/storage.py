"""Reading and writing on any fsspec URL, with writes that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fmcortex.errors import StorageError
from fmcortex.place import RemotePlace, absolute, filesystem, is_local, join
from fmcortex.retry import default_policy, describe, request, status

__all__ = [
    "absolute",
    "exists",
    "file_sizes",
    "filesystem",
    "is_local",
    "join",
    "names",
    "read_bytes",
    "read_json",
    "read_range",
    "reason",
    "remove",
    "sha256",
    "size",
    "write_bytes",
    "write_json",
]

#: Bytes of one request for a part of a large object; also of the parts of an upload to S3.
PART = 16 * 2**20

#: Parts of one object that are read at once.
READERS = 4

#: Deadlines that removing or listing a folder may take: many files take many requests.
WHOLE_FOLDER = 10

#: What fsspec takes for a pattern.
_PATTERN = re.compile(r"[*?[\]{}]")

#: Parts of an upload that S3 takes.
MOST_PARTS = 10_000


def exists(url: str) -> bool:
    """Whether a file or folder is at `url`.

    Raises:
        StorageError: the store cannot be asked.
    """
    place = RemotePlace(url)
    if not place.remote:
        with reason(url, "read"):
            return bool(place.fs.exists(place.path))
    policy = default_policy()
    return place.ask("read", policy, lambda fs, path: _there(fs, path, policy.deadline))


def _there(fs: fsspec.AbstractFileSystem, path: str, seconds: float) -> bool:
    """Whether a remote store has something at a path, if it answers."""
    # A listing that was read before says nothing of what other processes have written since.
    fs.invalidate_cache(path)
    # Not strict, HTTP's file system takes every failure to ask for an absence.
    options = {"strict": True} if "http" in fs.protocol else {}
    return bool(request(fs, seconds, "exists", path, **options))


def names(folder: str) -> list[str]:
    """The names of the files and folders in the folder at a URL, sorted; none if it is not there.

    Raises:
        StorageError: it cannot be listed.
    """
    place = RemotePlace(folder)
    found = _listing(place, "ls", detail=False) or []
    # Stores without folders may list the folder itself, as an object of no bytes.
    paths = (str(one).rstrip("/") for one in found)
    return sorted(one.rpartition("/")[2] for one in paths if one != place.path)


def file_sizes(folder: str) -> dict[str, int]:
    """Bytes of every file below the folder at a URL, by path in it; none if it is not there.

    Raises:
        StorageError: it cannot be listed.
    """
    place = RemotePlace(folder)
    found = _listing(place, "find", detail=True) or {}
    start = len(place.path)
    return {name[start:].lstrip("/"): int(info["size"]) for name, info in found.items()}


def _listing(place: RemotePlace, method: str, detail: bool) -> Any:
    """What a method of a file system lists of a folder; None if there is no folder."""
    policy = default_policy()

    def ask(fs: fsspec.AbstractFileSystem, path: str) -> Any:
        fs.invalidate_cache()  # other processes may have written since this one last looked
        try:
            return request(fs, WHOLE_FOLDER * policy.deadline, method, path, detail=detail)
        except FileNotFoundError:
            return None

    if place.remote:
        return place.ask("list", policy, ask)
    with reason(place.url, "list"):
        return ask(place.fs, place.path)


@contextmanager
def reason(url: str, doing: str) -> Iterator[None]:
    """Turn a failure of the block's storage into one `StorageError` that names `url`.

    Args:
        url: the location that the block reads or writes.
        doing: the verb of the message: "read" or "write".
    """
    try:
        yield
    except Exception as error:
        if (why := describe(error)) is None:
            raise
        raise StorageError(f"{url}: cannot {doing}: {why}") from error


def read_bytes(url: str) -> bytes:
    """The content of the file at `url`.

    A large object is read in parts, several at a time, and only a part that failed is read again.

    Raises:
        StorageError: it cannot be read.
    """
    place = RemotePlace(url)
    if not place.remote:
        with reason(url, "read"), place.fs.open(place.path, "rb") as stream:
            return bytes(stream.read())
    policy = default_policy()
    if not place.fs.async_impl:
        return place.ask("read", policy, lambda fs, path: bytes(fs.cat_file(path)))
    first = _range(place, 0, PART)
    if len(first) < PART:
        return first

    def ask(fs: fsspec.AbstractFileSystem, path: str) -> Any:
        fs.invalidate_cache(path)
        return request(fs, policy.deadline, "info", path)

    told = place.ask("read", policy, ask)
    content = bytearray(first)
    starts = range(PART, int(told["size"]), PART)
    # All on this thread's `place`: fsspec makes another client for every thread that asks for one.
    with ThreadPoolExecutor(READERS) as readers:
        for part in readers.map(lambda at: _range(place, at, at + PART), starts):
            content += part
    if len(content) != told["size"]:
        raise StorageError(f"{url}: cannot read: its size changed meanwhile; try again")
    return bytes(content)


def size(url: str) -> int:
    """Bytes of the file at `url`.

    Raises:
        StorageError: it cannot be asked, or the server does not tell.
    """
    place = RemotePlace(url)

    def ask(fs: fsspec.AbstractFileSystem, path: str) -> int | None:
        fs.invalidate_cache(path)
        found = request(fs, default_policy().deadline, "info", path)["size"]
        return None if found is None else int(found)

    if place.remote:
        found = place.ask("read", default_policy(), ask)
    else:
        with reason(url, "read"):
            found = ask(place.fs, place.path)
    if found is None:
        raise StorageError(f"{url}: cannot read: the server does not tell its size; download it")
    return found


def read_range(url: str, start: int, end: int, *, whole: bool = True) -> bytes:
    """Bytes `start` to `end` (exclusive) of the file at `url`, which must exist.

    Args:
        url: of the file.
        start: the first byte.
        end: the byte after the last.
        whole: whether a server may answer with the whole file, as some web servers do.

    Returns:
        end - start bytes; fewer where the file ends before, none where it starts past the end.

    Raises:
        StorageError: they cannot be read.
    """
    if not 0 <= start <= end:
        raise ValueError(f"{url}: no range: {start} to {end}")
    place = RemotePlace(url)
    if place.remote:
        return _range(place, start, end, whole)
    with reason(url, "read"), place.fs.open(place.path, "rb") as stream:
        stream.seek(start)
        return bytes(stream.read(end - start))


def _range(place: RemotePlace, start: int, end: int, whole: bool = True) -> bytes:
    """The same of a remote store."""
    if start == end:
        return b""  # HTTP cannot ask for no bytes
    policy = default_policy()
    seconds = policy.seconds(end - start)

    def ask(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        try:
            content = bytes(request(fs, seconds, "cat_file", path, start=start, end=end))
        except Exception as error:
            if status(error) == 416:  # starts past the end
                return b""
            raise
        if len(content) <= end - start:
            return content
        if not whole:
            raise StorageError(f"{place.url}: its server does not give parts of files; download it")
        return content[start:end]

    return place.ask("read", policy, ask)


def write_bytes(url: str, content: bytes) -> None:
    """Write `content` to `url`; a reader sees the whole of it or nothing.

    A local file is written under a temporary name, flushed and renamed. Object stores show an
    object only once its upload is complete, so an upload that failed is safely made again. To S3,
    32 MiB and more go in parts.

    Raises:
        StorageError: it cannot be written.
    """
    place = RemotePlace(url)
    _check_plain(place)
    if place.remote:
        policy = default_policy()
        seconds = policy.seconds(len(content))
        options = {}
        if "s3" in place.fs.protocol:  # its own parts are of 50 MiB, from 100 MiB on
            options["chunksize"] = max(PART, -(-len(content) // MOST_PARTS))
        place.ask(
            "write",
            policy,
            lambda fs, path: request(fs, seconds, "pipe_file", path, content, **options),
        )
        return
    path = place.path
    with reason(url, "write"):
        if not isinstance(place.fs, LocalFileSystem):
            place.fs.pipe_file(path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{_writer()}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def _writer() -> str:
    """This process, as temporary files are marked by it."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def being_written(path: str) -> bool:
    """Whether a local temporary file may still be written to: not by a process that has ended."""
    host, _, pid = path.rsplit(".", 3)[-3].rpartition("-") if path.count(".") > 2 else ("", "", "")
    if host != _host() or not pid.isdecimal():
        return True
    return int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}")


def read_json(url: str) -> Any:
    """The JSON document at `url`.

    Raises:
        StorageError: it cannot be read, or is not JSON.
    """
    content = read_bytes(url)
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(f"{url}: not valid JSON: {error}") from error


def write_json(url: str, document: Any) -> None:
    """Write `document` as indented JSON to `url`, whole or not at all."""
    write_bytes(url, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def remove(url: str) -> None:
    """Remove the file or folder at `url`, if there is one.

    Raises:
        StorageError: it cannot be removed, or not all of it.
    """
    place = RemotePlace(url)
    _check_plain(place)
    if isinstance(place.fs, LocalFileSystem):
        with reason(url, "remove"), suppress(FileNotFoundError):
            if os.path.isdir(place.path) and not os.path.islink(place.path):
                shutil.rmtree(place.path)
            else:
                os.remove(place.path)
        return
    policy = default_policy()

    def call(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if _there(fs, path, policy.deadline):
            # By another process, or an attempt whose answer got lost.
            with suppress(FileNotFoundError):
                _remove_below(fs, path, WHOLE_FOLDER * policy.deadline)
            # s3fs passes over files that the store refused to remove.
            if _there(fs, path, policy.deadline):
                raise OSError(errno.EAGAIN, "the store has kept some of it")

    if place.remote:
        place.ask("remove", policy, call)
        return
    with reason(url, "remove"):
        call(place.fs, place.path)


def _remove_below(fs: fsspec.AbstractFileSystem, path: str, seconds: float) -> None:
    """Remove what is at a path of a remote store, and all below it."""
    if not _PATTERN.search(path):
        request(fs, seconds, "rm", path, recursive=True)
        return
    # `rm` would take the path for a pattern, and remove whatever it fits.
    found = request(fs, seconds, "find", path, withdirs=True, detail=True)
    folders = {name for name, info in found.items() if info["type"] == "directory"}
    with ThreadPoolExecutor(READERS) as pool:
        removed = pool.map(
            lambda name: request(fs, seconds, "rm_file", name), sorted(set(found) - folders)
        )
        list(removed)
    # Stores that have folders at all remove empty ones only.
    for name in sorted({*folders, path}, reverse=True):
        with suppress(OSError, NotImplementedError):
            request(fs, seconds, "rmdir", name)


def _check_plain(place: RemotePlace) -> None:
    """Refuse to change what a URL names with a version in it: the file of the rest of its name."""
    if "s3" in place.fs.protocol and "?versionId=" in place.path:
        raise StorageError(f"{place.url}: cannot write: '?versionId=' names a version of a file")


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()
