"""A lock on a folder that one process writes at a time: a run's output, a dataset being prepared.

The lock is a small file in the folder, on any fsspec URL, that names its owner. The owner counts it
up every `BEAT` seconds and removes it at the end. Whoever finds it there judges its owner:

- It is dead where its process on this machine is gone (another process with the same number has
  another start time), or where it was an earlier start of this very SLURM job.
- It is alive where its process runs, or where the file is counted up while it is watched.
- It is given up where the file has not been counted up for `STALE` seconds of watching, or for
  an hour (`fmcortex.owner.OLD`) by its own time; so clocks may differ by as much.

The lock of a dead owner is taken over, and that is said; that of a live one is refused.

What is guaranteed: on a local disk, a shared file system with hard links or exclusive creation
(NFS), and a store that offers creation on condition (S3 and those that have its conditional PUT,
Google Cloud Storage), one of several processes that start at once gets the lock. On another store
each writes, waits `SETTLE` seconds and reads back, which fails only where a write takes longer than
that. An owner that was suspended for longer than `STALE` may lose the lock; it finds out at its
next beat, and `Lock.check` then raises.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from fmcortex import storage
from fmcortex.errors import Locked, StorageError
from fmcortex.owner import Owner, now
from fmcortex.retry import default_policy, request, retrying, status

#: Name of the lock in its folder.
LOCK = "lock.json"
#: Seconds between the beats of an owner.
BEAT = 15.0
#: Seconds without a beat after which an owner on another machine counts as dead.
STALE = 90.0
#: Seconds in which what was written to an object store can be read by all.
SETTLE = 1.0
#: Seconds between two looks at the lock of an owner that is watched.
LOOK = 1.0
#: Times that a lock may change hands while this process tries to get it.
TRIES = 20


class Lock:
    """Holds a folder for the block.

    Args:
        folder: any fsspec URL; made if it is not there.
        what: what is done in it, such as "pretrain".
        say: hears that a lock was taken over, or of a wait.
        todo: what a user may do who is refused, such as "choose another --output".
        name: of the lock's file in the folder.

    Raises:
        Locked: on entering: a live process holds it.
        StorageError: on entering: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str,
        what: str,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        todo: str = "choose another output",
        name: str = LOCK,
    ) -> None:
        self.folder, self.say, self.todo = folder, say, todo
        self.url = storage.join(folder, name)
        self.owner = Owner.of_this_process(what)
        self._lost: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> Self:
        for _ in range(TRIES):
            if _create(self.url, self.owner):
                self._thread.start()
                return self
            content = _read(self.url)
            if content is None:
                continue  # it has just been given back
            found = _parsed(content)
            if self._is_dead(content, found):
                who = found or "a process that left an unreadable lock"
                if _take(self.url, content, self.owner):
                    self.say(f"{self.folder}: took over the lock of {who}, which has ended")
        raise Locked(f"{self.url}: changes hands all the time; try again")

    def _is_dead(self, content: bytes, found: Owner | None) -> bool:
        """Whether the owner of a lock is dead; False where the lock has changed hands.

        Raises:
            Locked: it is alive.
        """
        state = found.state() if found is not None else "unknown"
        if state == "alive":
            raise Locked(self._refusal(found))
        if state == "dead":
            return True
        self.say(
            f"{self.folder}: in use by {found or 'an unknown process'}; watching for up to "
            f"{STALE:.0f} s whether that is alive"
        )
        waited = 0.0
        while waited < STALE:
            _sleep(LOOK)
            waited += LOOK
            later = _read(self.url)
            if later == content:
                continue
            if found is not None and _is_of(later or b"", found):
                raise Locked(self._refusal(found))
            return False
        return True

    def _refusal(self, owner: Owner | None) -> str:
        return (
            f"{self.folder}: in use by {owner}; wait until it ends, stop it, or {self.todo}. If it "
            f"cannot be running any more, remove {self.url}"
        )

    def _beat(self) -> None:
        while not self._end.wait(BEAT) and not self.lost:
            with suppress(StorageError):  # tried again at the next beat
                self.beat()

    def beat(self) -> None:
        """Count the lock up, or find out that it is lost.

        Raises:
            StorageError: the store cannot be asked.
        """
        owner = self.owner
        later = owner.model_copy(update={"seen": now(), "beat": owner.beat + 1})
        content = _replace(self.url, later)
        if content is None:
            self.owner = later
            return
        found = _parsed(content)
        self._lost = f"by {found}" if found else "and removed"

    @property
    def lost(self) -> bool:
        """Whether the lock is another's, or gone."""
        return self._lost is not None

    def check(self) -> None:
        """Find out that the folder is another's by now.

        Raises:
            Locked: the lock was lost; nothing more may be written.
        """
        if self._lost is not None:
            raise Locked(
                f"{self.folder}: its lock was taken over {self._lost}, as this process was "
                "without a sign of life for too long; it has stopped"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        with suppress(StorageError):  # one that is left is seen to be dead
            if _is_own(self.url, self.owner):
                storage.remove(self.url)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _parsed(content: bytes) -> Owner | None:
    try:
        return Owner.model_validate_json(content)
    except ValidationError:
        return None


def _read(url: str) -> bytes | None:
    """The content of a lock; None if there is none."""
    try:
        return storage.read_bytes(url)
    except StorageError:
        if storage.exists(url):
            raise
        return None


def _create(url: str, owner: Owner) -> bool:
    """Make the lock if there is none; whether it is this owner's.

    Raises:
        StorageError: it cannot be written.
    """
    fs, path = storage.filesystem(url)
    content = owner.encoded()
    if storage.is_local(url):
        with storage.reason(url, "write"):
            _create_local(path, content, owner.token)
    elif not _create_remote(fs, path, url, content):
        if _read(url) is not None:
            return False
        storage.write_bytes(url, content)
    if _settles(url):
        _sleep(SETTLE)
    # Read back in any case: an answer may get lost, and a store may ignore the condition.
    return _is_own(url, owner)


def _settles(url: str) -> bool:
    """Whether what is written is seen by others a little later only."""
    return not storage.is_local(url) and not url.startswith("memory:")


def _is_own(url: str, owner: Owner) -> bool:
    return _is_of(_read(url) or b"", owner)


def _create_local(path: str, content: bytes, token: str) -> None:
    """Make a file with its content at once, unless it is there: by a hard link, as NFS needs."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        return
    temporary = f"{path}.{token}.tmp"
    try:
        Path(temporary).write_bytes(content)
        with suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                with open(path, "xb") as stream:
                    stream.write(content)
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def _create_remote(fs: Any, path: str, url: str, content: bytes) -> bool:
    """Make an object on the condition that there is none; False if no conditions are known."""

    policy = default_policy()

    def call() -> bool:
        try:
            request(fs, policy.deadline, "pipe_file", path, content, mode="create")
        except FileExistsError:
            pass
        except (TypeError, ValueError, NotImplementedError):  # of clients
            return False
        except Exception as error:
            if status(error) == 501:  # of servers
                return False
            if status(error) not in (409, 412):  # it is there, or is being made
                raise
        return True

    return retrying(call, url, "write", policy)


def _replace(url: str, owner: Owner) -> bytes | None:
    """Write an owner's own lock anew; what is there instead, if it is not its own."""
    if not storage.is_local(url):
        content = _read(url) or b""
        if not _is_of(content, owner):
            return content
        storage.write_bytes(url, owner.encoded())
        return None
    # In place: a file that is renamed upon it might lie on the lock of who has just taken it over.
    with storage.reason(url, "write"):
        path = Path(storage.filesystem(url)[1])
        with suppress(FileNotFoundError), open(path, "r+b", buffering=0) as stream:
            content = stream.read()
            if not _is_of(content, owner):
                return content
            stream.seek(0)
            stream.write(owner.encoded())  # never shorter than before, see `now`
            return None
    return b""


def _is_of(content: bytes, owner: Owner) -> bool:
    found = _parsed(content)
    return found is not None and found.token == owner.token


def _take(url: str, stale: bytes, owner: Owner) -> bool:
    """Overwrite a lock that holds `stale` with this owner's; whether that was done."""
    if not storage.is_local(url):
        if _read(url) != stale:
            return False
        storage.write_bytes(url, owner.encoded())
        if _settles(url):
            _sleep(SETTLE)
        return True
    path = storage.filesystem(url)[1]
    # Whoever takes over a dead owner's lock claims it first: one at a time looks and writes.
    claim = f"{path}.{hashlib.sha256(stale).hexdigest()[:16]}.claim"
    temporary = f"{path}.{owner.token}.tmp"
    with storage.reason(url, "write"):
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - os.stat(claim).st_mtime > STALE:  # whose owner has died, too
                    os.remove(claim)
            time.sleep(0.1)
            return False
        try:
            if Path(path).read_bytes() != stale:
                return False
            Path(temporary).write_bytes(owner.encoded())
            os.replace(temporary, path)
            return True
        except FileNotFoundError:
            return False
        finally:
            with suppress(FileNotFoundError):
                os.remove(claim)
