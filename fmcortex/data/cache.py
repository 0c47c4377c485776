"""A bounded cache of parts of files, mostly remote ones, on the local disk; processes share it."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any, TypeVar

from fmcortex import storage
from fmcortex.data.cache_space import TEMPORARY, CacheSpace
from fmcortex.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Says what is wrong with some content; None if nothing is.
Check = Callable[[bytes], str | None]

#: Seconds before content that arrived wrong is read once more.
SECOND_LOOK = 1.0

#: Seconds without storing after a failure to store, such as a full disk.
PAUSE = 60.0


class Damaged(Exception):
    """What is wrong with a stored file."""


def default_cache_folder() -> str:
    """$FMCORTEX_CACHE, or `fmcortex` in the user's folder of caches."""
    if folder := os.environ.get("FMCORTEX_CACHE"):
        return folder
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # the standard says to ignore others
        home = os.path.expanduser("~")
        if not os.path.isabs(home):  # no HOME, and a user id that the system does not know
            home = os.path.join(tempfile.gettempdir(), f"fmcortex-{os.getuid()}")
        caches = os.path.join(home, ".cache")
    return os.path.join(caches, "fmcortex")


class RangeCache:
    """Byte ranges of files, fetched once and then read from a local folder.

    Threads and processes may share it, and processes may share the folder. Threads of a process
    that miss the same range at once fetch it once; processes fetch it once each, and the last one
    to store it wins. Nothing is stored or returned that has not passed its check.

    Args:
        folder: where; made when it is needed. None or "": nowhere, every range is fetched.
        limit: bytes that the stored ranges may take; 0: nothing is stored.
        unpacked: whether those who read blocks of a file should keep them decompressed.

    Attributes:
        hits: ranges that were in the folder.
        misses: ranges that were fetched.
        bytes_fetched: their bytes, with what was fetched in vain.
    """

    def __init__(self, folder: str | None, limit: int, unpacked: bool = False) -> None:
        self.folder = folder
        self.limit = limit
        self.unpacked = unpacked and bool(folder) and limit > 0
        self.hits = self.misses = self.bytes_fetched = 0
        self._warned = False
        self._fresh()
        _caches.add(self)

    def _fresh(self) -> None:
        """New locks: in a forked process, those taken by other threads would stay taken."""
        self._lock = threading.Lock()  # of the counts and of the table
        self._ranges: dict[str, tuple[threading.Lock, int]] = {}  # locks in use, by how many
        self._space = CacheSpace(self.folder, self.limit) if self.folder and self.limit else None
        self._paused_until = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return RangeCache, (self.folder, self.limit, self.unpacked)

    def read(self, url: str, start: int, end: int, identity: str, check: Check) -> bytes:
        """Bytes `start` to `end` (exclusive) of the file at `url`.

        Args:
            url: of a remote file; local ones are better read where they are.
            start: first byte.
            end: byte after the last.
            identity: tells versions of the content apart, such as a hash of it.
            check: says what is wrong with the bytes, if anything is.

        Raises:
            StorageError: they cannot be read.
            DataError: in the words of `check`: they are wrong, read twice.
        """

        def load(stream: FileIO) -> bytes:
            content = stream.read()
            if (wrong := check(content)) is not None:
                raise Damaged(wrong)
            return content

        def make() -> tuple[list[bytes], bytes]:
            content = self.fetch(url, start, end, check)
            return [content], content

        return self.kept(f"{url}\0{start}\0{end}\0{identity}", load, make)

    def kept(
        self,
        name: str,
        load: Callable[[FileIO], T],
        make: Callable[[], tuple[Sequence[bytes | memoryview], T]],
    ) -> T:
        """What is kept under a name, made where it is not.

        Args:
            name: tells all that is kept apart.
            load: reads it from its stored file. It raises `Damaged` if that is wrong, which is
                then made again.
            make: gives the content of the file, in parts, and what `load` would read from it.

        Raises:
            Exception: what `make` raises.
        """
        if self._space is None:
            return make()[1]
        key = hashlib.sha256(name.encode()).hexdigest()
        path = self._space.path(key)
        if (found := self._stored(path, load)) is not None:
            return found
        with self._alone(key):
            if (found := self._stored(path, load)) is not None:
                return found  # another thread has made it meanwhile
            parts, made = make()
            self._store(path, parts)
            return made

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Keep other threads from the range of this key."""
        with self._lock:
            lock, users = self._ranges.get(key, (threading.Lock(), 0))
            self._ranges[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._ranges[key]
                self._ranges[key] = lock, users - 1
                if users == 1:
                    del self._ranges[key]

    def _stored(self, path: str, load: Callable[[FileIO], T]) -> T | None:
        """What a stored file holds, if there is one and it is right."""
        assert self._space is not None
        try:
            with FileIO(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                found = load(stream)
        except OSError:
            return None
        except Damaged as error:
            log.warning("%s: a cached copy went bad and is fetched again: %s", path, error)
            with suppress(OSError):  # perhaps another process was first
                self._space.discard(path, size)
            return None
        with suppress(OSError):  # another process may have evicted it meanwhile
            os.utime(path)
        with self._lock:
            self.hits += 1
        return found

    def fetch(self, url: str, start: int, end: int, check: Check) -> bytes:
        """Bytes of a file from where it is, whatever is kept; as `read`."""
        for last in (False, True):
            content = storage.read_range(url, start, end)
            with self._lock:
                self.bytes_fetched += len(content)
            if (wrong := check(content)) is None:
                break
            if last:
                raise DataError(wrong)
            time.sleep(SECOND_LOOK)  # it may have been damaged on its way
        with self._lock:
            self.misses += 1
        return content

    def _store(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        """Keep content that is right, if it can be kept."""
        assert self._space is not None
        size = sum(len(part) for part in parts)
        if size > self.limit or time.monotonic() < self._paused_until:
            return
        temporary = f"{path}{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with self._space.room(size) as granted:
                if not granted:
                    return
                os.makedirs(os.path.dirname(path), exist_ok=True)
                try:
                    # Not flushed to the disk: what a power cut leaves of it fails its check.
                    with open(temporary, "wb") as stream:
                        for part in parts:
                            stream.write(part)
                    os.replace(temporary, path)
                except BaseException:
                    with suppress(OSError):
                        os.remove(temporary)
                    raise
        except OSError as error:
            self._paused_until = time.monotonic() + PAUSE
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s: cannot cache data here: %s; going on without. Free some space, or set "
                    "FMCORTEX_CACHE to another folder",
                    self.folder,
                    error.strerror or error,
                )


_caches: weakref.WeakSet[RangeCache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache._fresh()


os.register_at_fork(after_in_child=_after_fork)
