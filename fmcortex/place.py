"""A place in storage: the file system of a URL and the path in it, taken as they are written.

A name may hold anything: brackets, question marks, asterisks, `#`, `%`, `::`. fsspec takes some of
these for patterns or for chains of URLs, so what leads to a file is put together here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from fmcortex.errors import StorageError
from fmcortex.retry import RetryPolicy, retrying

T = TypeVar("T")

#: What stands before "://" in a URL: a protocol, or several where fsspec chains file systems.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*")
_LOCAL = ("file", "local")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path in it, without a trailing slash.

    Raises:
        StorageError: the URL is empty, its protocol is unknown, or its package is not installed.
    """
    if "\0" in url:
        raise StorageError(f"{url!r}: cannot open this location: a name cannot hold a NUL")
    path = local_path(url)
    if path is not None:
        return fsspec.filesystem("file"), path
    try:
        fs, path = fsspec.core.url_to_fs(url) if _chained(url) else _unchained(url)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{url}: cannot open this location: {error}") from error
    if not path.strip("/"):
        raise StorageError(f"{url}: cannot open this location: it names no bucket or folder")
    return fs, path.rstrip("/")


def local_path(url: str) -> str | None:
    """The absolute path that `url` names on this machine's file system; None if it is elsewhere.

    Args:
        url: a path, or a URL of the protocol file or local.

    Raises:
        StorageError: it is empty, as a variable that is not set leaves it.
    """
    scheme, mark, rest = url.partition("://")
    if mark and _SCHEME.fullmatch(scheme):
        if scheme not in _LOCAL:
            return None
        path = rest
    else:
        path = next((url[len(s) + 1 :] for s in _LOCAL if url.startswith(f"{s}:/")), url)
    if not path:
        raise StorageError(f"the location {url!r} is empty: is a variable not set?")
    path = os.path.expanduser(path)
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if path in ("", "."):
        return os.getcwd()
    return os.path.join(os.getcwd(), path).rstrip("/") or "/"


def _chained(url: str) -> bool:
    """Whether fsspec is to put one file system on another, as in `zip://a::s3://b`."""
    first, *others = url.split("::")
    return all("://" in other for other in others) or "://" not in first


def _unchained(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The same of a URL in whose path `::` means nothing."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    fs, root = fsspec.core.url_to_fs(f"{scheme}://{host}")
    return fs, f"{root.rstrip('/')}/{path}"


def join(url: str, *parts: str) -> str:
    """`url` with `parts` appended, whatever its protocol."""
    rest = "/".join(part.strip("/") for part in parts)
    return url + rest if url.endswith("://") else f"{url.rstrip('/')}/{rest}"


def is_local(url: str) -> bool:
    """Whether `url` is on this machine's own file system.

    Raises:
        StorageError: as `filesystem`.
    """
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """`url` in a form that means the same from any working directory.

    Raises:
        StorageError: as `filesystem`.
    """
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url.rstrip("/")


class RemotePlace:
    """A file system and a path in it, found again when the credentials have been renewed.

    fsspec keeps its clients, and these keep the credentials that they have read. Those of a job
    that goes on for days expire, and whoever renews them writes them to the same file.

    Args:
        url: of the place.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.path = filesystem(url)

    @property
    def remote(self) -> bool:
        """Whether requests may fail and succeed later; not so on disks and in memory."""
        return not isinstance(self.fs, (LocalFileSystem, MemoryFileSystem))

    def ask(
        self,
        doing: str,
        policy: RetryPolicy,
        call: Callable[[fsspec.AbstractFileSystem, str], T],
    ) -> T:
        """What `call` returns of the file system and the path, with retries.

        Raises:
            StorageError: naming the URL, and `doing` as the verb of what failed.
        """
        attempt: Callable[[], Any] = lambda: call(self.fs, self.path)  # noqa: E731
        return retrying(attempt, self.url, doing, policy, renew=self.renew)

    def renew(self) -> None:
        """Make a client anew, which reads the credentials as they are now."""
        type(self.fs).clear_instance_cache()
        self.fs, self.path = filesystem(self.url)
