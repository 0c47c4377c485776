"""Where Ray is, or may be put: the address of a cluster, a folder for its sockets, its token."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fmcortex.errors import ConfigError, FmcortexError

#: Characters of a Unix socket's path that the system can take.
LONGEST = 107 if sys.platform == "linux" else 103
#: What Ray appends to its folder: `ray/session_<date>_<time>_<microseconds>_<pid>/sockets/...`.
SOCKET = len("/ray/session_2026-11-28_02-28-19_123456_4194304/sockets/plasma_store")
#: Folders that may serve instead of one that does not.
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")
#: Seconds in which a cluster must answer, in several tries: a network may have a bad moment.
ANSWERS = 10.0


def cluster_address() -> str | None:
    """The address of the cluster that RAY_ADDRESS names, once it has answered; None for none.

    Ray itself would try an address that does not answer for a quarter of an hour.

    Raises:
        ConfigError: it is not an address, or nobody answers there.
    """
    told = os.environ.get("RAY_ADDRESS", "").strip()
    if not told or told == "local":
        return None
    if "://" in told:
        raise ConfigError(
            f"RAY_ADDRESS: {told} is not the address of a cluster's head, as host:port; from "
            "outside the cluster submit the command with `ray job submit`"
        )
    address = told
    if told == "auto":
        found = _last_started()
        if found is None:
            raise ConfigError("RAY_ADDRESS: auto, and no Ray cluster was started on this machine")
        address = found
    host, port = _parts(address)
    if (problem := _silent(host, port, ANSWERS)) is not None:
        raise ConfigError(
            f"RAY_ADDRESS: no Ray cluster answers at {address}: {problem}; start it, or unset "
            "RAY_ADDRESS to run on this machine"
        )
    return address


def answers(address: str) -> bool:
    """Whether somebody listens at `host:port` now."""
    return _silent(*_parts(address), seconds=0.0) is None


def _last_started() -> str | None:
    """The address that `ray start` left on this machine for `auto`."""
    base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return Path(base, "ray", "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _parts(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"RAY_ADDRESS: {address} is not an address; give the head's host:port")
    return host.strip("[]"), int(port)


def _silent(host: str, port: int, seconds: float) -> str | None:
    """Why nobody answers; None if somebody does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return None
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() >= deadline:
            return problem
        time.sleep(min(1.0, seconds / 4))


@contextmanager
def short_folder(say: Callable[[str], None]) -> Iterator[None]:
    """Let a Ray that is started in the block put its sockets and logs where they fit.

    Batch systems set a TMPDIR so long that the names of sockets below it are longer than the system
    takes; others name a folder that cannot be written, or /tmp/ray is another user's. Then a folder
    of this process's own serves, removed at the end.

    Args:
        say: hears which folder is used instead.

    Raises:
        FmcortexError: there is none.
    """
    named = next((n for n in ("RAY_TMPDIR", "TMPDIR") if n in os.environ), None)
    base = os.environ[named] if named else "/tmp"
    problem = _unfit(base)
    if problem is None:
        yield
        return
    folder = _another()
    if folder is None:
        raise FmcortexError(
            f"{named or 'RAY_TMPDIR'}: {base} {problem}; set RAY_TMPDIR to a short folder that can "
            "be written"
        )
    say(f"{named or 'RAY_TMPDIR'}: {base} {problem}; Ray keeps its sockets and logs in {folder}")
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _unfit(base: str) -> str | None:
    """Why Ray cannot put its sockets below `base`; None if it can."""
    if not os.path.isabs(base):
        return "is not an absolute path"
    if len(os.fsencode(base)) + SOCKET > LONGEST:
        return f"is too long for the names of sockets ({LONGEST - SOCKET} characters at most)"
    folder = os.path.join(base, "ray")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return f"cannot hold Ray's folder ({error.strerror})"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "has a folder `ray` that cannot be written"
    return None


def _another() -> str | None:
    for base in ELSEWHERE:
        try:
            return tempfile.mkdtemp(prefix="fmcortex-", dir=base)
        except OSError:
            continue
    return None


def keep_token() -> None:
    """Keep the token of a Ray that is started here in the environment, where HOME cannot keep it.

    Ray writes it to ~/.ray/auth_token, and ends where it cannot.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    if not _home_keeps_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _home_keeps_token() -> bool:
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter: no HOME, and a user without an entry
        return False
    token = folder / "auth_token"
    return os.access(token, os.R_OK) if token.exists() else os.access(folder, os.W_OK)
