"""Libraries find a place for their caches, and a name, also for users who have no home."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from unprivileged import unprivileged_user

from fmcortex import home
from fmcortex.data.cache import default_cache_folder
from fmcortex.home import CACHES, do_without_home


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder, and none of the variables."""
    for name in (*CACHES, "FMCORTEX_CACHE", "HOME"):
        monkeypatch.setenv(name, "before")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(home.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_home_that_can_be_written_stays(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bare / "not" / "yet"))
    assert do_without_home() is None
    assert not set(CACHES) & set(os.environ)
    assert default_cache_folder() == str(bare / "not/yet/.cache/fmcortex")


def test_caches_without_a_home(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setenv("MPLCONFIGDIR", "/chosen")
    own = bare / f"fmcortex-{os.getuid()}"
    assert do_without_home() == f"HOME (/dev/null/home) cannot be written; caches go to {own}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert os.environ["XDG_CACHE_HOME"] == str(own)
    assert os.environ["MPLCONFIGDIR"] == "/chosen"
    assert default_cache_folder() == str(own / "fmcortex")


def test_a_folder_of_caches_that_others_may_write_is_not_used(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    theirs = bare / f"fmcortex-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    line = do_without_home()
    assert line is not None
    assert str(theirs) not in line


def test_a_user_without_an_entry_has_a_name() -> None:
    script = (
        "import getpass; from fmcortex.home import do_without_home; do_without_home();"
        "from fmcortex.data.cache import default_cache_folder;"
        "print(getpass.getuser(), default_cache_folder())"
    )
    with unprivileged_user() as user:
        done = user.run(sys.executable, "-c", script, HOME=None, USER=None, LOGNAME=None)
    assert done.returncode == 0, done.stderr
    name, folder = done.stdout.split()
    assert name
    assert os.path.isabs(folder)


def test_help_needs_neither(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    command = [str(Path(sys.executable).parent / "fmcortex"), "--help"]
    done = subprocess.run(
        command, env={**environment, "HOME": "/dev/null/home"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""
