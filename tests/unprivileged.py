"""Runs commands as a user with no rights and no home, also where the tests themselves run as root.

Root may do what no one else may: write anywhere, raise its priority, look itself up in the table
of users. A test that must hold for everyone runs its command here.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Variables of the caller that its commands keep; whatever names a folder of the caller's goes.
KEPT = ("PATH", "LANG", "OMP_NUM_THREADS", "FMCORTEX_TRACEBACK", "UV_FIND_LINKS")


class Unprivileged:
    """A user who may write in one folder only.

    Where the tests run as root, a user id of which the system knows nothing; otherwise whoever runs
    them. HOME is a folder that cannot be written, and the checkout is not the user's.

    Args:
        folder: the user's own.
        name: of a user whom the system knows instead, for programs that insist on one; only where
            the tests run as root.

    Attributes:
        folder: the user's own.
        home: HOME; may be made writable with `settle`.
        uid: the user's id.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.home = folder, folder.with_name(f"{folder.name}-home")
        if os.geteuid() != 0:
            self.uid = os.geteuid()
        else:
            self.uid = pwd.getpwnam(name).pw_uid if name else _unknown_user()
        self.home.mkdir(mode=0o555)
        self.own(folder)

    def own(self, path: Path) -> Path:
        """Give the user a file, or a folder with all that is in it."""
        if os.geteuid() == 0:
            for one in (path, *path.rglob("*")):
                os.chown(one, self.uid, self.uid, follow_symlinks=False)
        return path

    def settle(self) -> None:
        """Let the user write to HOME."""
        self.home.chmod(0o755)
        self.own(self.home)

    def environment(self, **more: str | None) -> dict[str, str]:
        """What the user's commands see; None leaves a variable out."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kept |= {"HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        return {k: v for k, v in {**kept, **more}.items() if v is not None}

    def run(
        self,
        *command: str | Path,
        timeout: float = 300,
        cwd: Path | None = None,
        **more: str | None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user.

        Args:
            command: its words.
            timeout: seconds.
            cwd: where; the user's folder if None.
            more: environment variables.
        """
        return subprocess.run(
            [*self.prefix(), *map(str, command)],
            env=self.environment(**more),
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def prefix(self) -> list[str]:
        """The words before a command that make it the user's."""
        if os.geteuid() != 0:
            return []
        keep = "-all"
        if not self._reads_the_environment():
            # Such as a Python below /root. To read everything is all that the user may then do.
            keep += ",+dac_read_search"
        return [
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"),
            *(f"--{kind}={keep}" for kind in ("bounding-set", "inh-caps", "ambient-caps")),
            "--no-new-privs",
        ]

    def _reads_the_environment(self) -> bool:
        """Whether the user can start this Python and read the checkout without any help."""
        script = f"import sys; open({str(ROOT / 'Makefile')!r}).close()"
        try:
            tried = subprocess.run(
                [sys.executable, "-c", script],
                user=self.uid,
                group=self.uid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
            )
        except OSError:
            return False
        return tried.returncode == 0


def _unknown_user() -> int:
    known = {entry.pw_uid for entry in pwd.getpwall()}
    return next(uid for uid in range(23456, 60000) if uid not in known)


@contextmanager
def unprivileged_user(name: str | None = None) -> Iterator[Unprivileged]:
    """The user (see `Unprivileged`), with a folder of theirs for the block."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("running as root without setpriv (util-linux), which makes another user")
    # Not below pytest's folder, which only its owner may enter.
    base = Path(tempfile.mkdtemp(prefix="fmcortex-user-", dir="/tmp"))
    base.chmod(0o755)
    folder = base / "own"
    folder.mkdir()
    try:
        yield Unprivileged(folder, name)
    finally:
        (base / "own-home").chmod(0o755)
        shutil.rmtree(base, ignore_errors=True)
