"""The space that a folder of cached files takes, kept below a limit by many processes."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Part of the limit that is left after an eviction.
LEFT = 0.9

#: In the names of files that are being written.
TEMPORARY = ".tmp-"

#: Seconds between two looks at all files, should there be no eviction.
SWEEP = 86400.0

#: Seconds to wait for a lock: others hold it for as long as they write a file, or count.
PATIENCE = 10.0

#: Files beside the folders of cached files: the total in bytes, and the locks.
TOTAL, COUNTING, WRITING, EVICTING = "total", "counting.lock", "writing.lock", "evicting.lock"


class CacheSpace:
    """Files of a folder in 256 folders by the first byte of their names, which are hashes.

    A look at all files (300,000 take seconds) is taken to evict, which leaves a tenth of the limit
    free. In between a running total counts, in a file that all processes add to under a lock.
    Space is reserved before it is used, so a process that is killed leaves the total too large,
    never too small; the next look corrects it.

    Who writes shares a lock, and a look at all files has that lock alone: nothing is half written
    meanwhile, so the files are the total, and temporary files are those of killed processes.

    Every method but `path` raises OSError where the folder cannot be used.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._swept = False
        self._lock = threading.Lock()

    def path(self, key: str) -> str:
        """Where the content of a key is stored."""
        return os.path.join(self.folder, key[:2], key[2:])

    @contextmanager
    def room(self, size: int) -> Iterator[bool]:
        """Room for `size` more bytes, at most the limit, to be written in the block.

        Yields:
            whether there is room; not so while another process makes some. Should the block raise,
            it must have left no file, and the room is given back.
        """
        os.makedirs(self.folder, exist_ok=True)
        if self._first() and self._due():
            self._evict(PATIENCE)
        for last in (False, True):
            with self._writing() as ours:
                if ours and self._add(size):
                    try:
                        yield True
                    except BaseException:
                        with suppress(OSError):
                            self._add(-size)
                        raise
                    return
            if last or not ours or not self._evict(0.0, room=size):
                break
        yield False

    def discard(self, path: str, size: int) -> None:
        """Remove a file of `size` bytes, if it is still there."""
        with self._writing() as ours:
            os.remove(path)
            if ours:  # else a look at all files is under way, which may or may not have counted it
                self._add(-size)

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        """Hold the lock of those who write, shared; yields False while a process evicts.

        That one is waiting for the lock, perhaps: those who write must not come one after another.
        """
        with self._locked(EVICTING, shared=True) as free:
            pass
        if not free:
            yield False
            return
        with self._locked(WRITING, shared=True) as ours:
            yield ours

    def _first(self) -> bool:
        """Whether this is the first call of this object."""
        with self._lock:
            first, self._swept = not self._swept, True
        return first

    def _due(self) -> bool:
        """Whether all files should be looked at whatever the total."""
        try:
            swept = os.stat(os.path.join(self.folder, EVICTING)).st_mtime
        except FileNotFoundError:
            return True
        return self._total() is None or abs(time.time() - swept) > SWEEP

    def _add(self, size: int) -> bool:
        """Count `size` bytes more, or less; False if that would be too many."""
        with self._locked(COUNTING, PATIENCE) as ours:
            if not ours:
                raise OSError(errno.ETIMEDOUT, f"another process keeps {COUNTING} locked")
            total = self._total()
            if total is None or (size > 0 and total + size > self.limit):
                return False
            self._write(max(0, total + size))
            return True

    def _evict(self, patience: float, room: int = 0) -> bool:
        """Look at all files and remove the least recently used ones, if they are too many.

        Args:
            patience: seconds to wait for another process that is about it.
            room: bytes that must be free afterwards.

        Returns:
            False if another process is about it, or others keep writing.
        """
        with (
            self._locked(EVICTING, patience) as chosen,
            self._locked(WRITING, PATIENCE if chosen else 0.0) as alone,
        ):
            if not (chosen and alone):
                return False
            if not room and not self._due():
                return True  # another process has done it meanwhile
            found, total = [], 0
            for path, size, used in self._files():
                if TEMPORARY in path:
                    with suppress(FileNotFoundError):
                        os.remove(path)
                    continue
                total += size
                found.append((used, size, path))
            if total + room > self.limit:
                target = min(LEFT * self.limit, self.limit - room)
                for _, size, path in sorted(found):
                    if total <= target:
                        break
                    with suppress(FileNotFoundError):
                        os.remove(path)
                    total -= size
            self._write(total)
            os.utime(os.path.join(self.folder, EVICTING))
            return True

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """Path, bytes and last use of every file."""
        for number in range(256):
            try:
                entries = os.scandir(os.path.join(self.folder, f"{number:02x}"))
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        told = entry.stat(follow_symlinks=False)
                        yield entry.path, told.st_size, told.st_mtime

    def _total(self) -> int | None:
        """The running total; None if there is none that can be read."""
        try:
            with open(os.path.join(self.folder, TOTAL), "rb") as stream:
                return int(stream.read(32))
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, total: int) -> None:
        # One write of fixed length, in place: a process that is killed leaves the old or the new.
        file = os.open(os.path.join(self.folder, TOTAL), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, b"%020d\n" % total, 0)
        finally:
            os.close(file)

    @contextmanager
    def _locked(self, name: str, patience: float = 0.0, shared: bool = False) -> Iterator[bool]:
        """Hold one of the locks, against threads too; yields False if it is not to be had in time.

        Args:
            name: its file.
            patience: seconds to wait for it.
            shared: with others who share it.
        """
        file = os.open(os.path.join(self.folder, name), os.O_RDWR | os.O_CREAT, 0o666)
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        until, pause = time.monotonic() + patience, 0.0005
        try:
            while True:
                try:
                    fcntl.flock(file, kind)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        yield False
                        return
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            try:
                yield True
            finally:
                # Closing is not enough: a process forked meanwhile has the file open as well.
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)
