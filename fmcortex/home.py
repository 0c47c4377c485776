"""What libraries keep for a user, and where they keep it for one whose HOME cannot be written."""

from __future__ import annotations

import os
import stat
import tempfile

#: Variables that name the folder of a library's caches, and the folder each is given.
CACHES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
}


def do_without_home() -> str | None:
    """Give libraries a folder where HOME cannot be written, and a name to a user who has none.

    In containers and batch jobs a user often has no entry in the table of users, and no home.

    Returns:
        A line for the user that names the folder; None if HOME can be written.
    """
    if not os.environ.get("USER") and not os.environ.get("LOGNAME") and not _known():
        os.environ["USER"] = str(os.getuid())
    home = os.path.expanduser("~")
    if _writable(home) or all(os.environ.get(name) for name in CACHES):
        return None
    folder = _private(os.path.join(tempfile.gettempdir(), f"fmcortex-{os.getuid()}"))
    for name, below in CACHES.items():
        if not os.environ.get(name):
            os.environ[name] = os.path.join(folder, below) if below else folder
    return f"HOME ({home}) cannot be written; caches go to {folder}"


def _known() -> bool:
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _writable(home: str) -> bool:
    if not os.path.isabs(home):
        return False
    while not os.path.lexists(home):  # libraries make what is missing
        home = os.path.dirname(home)
    return os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)


def _private(folder: str) -> str:
    """`folder`, made if need be; a new one where that is not this user's alone."""
    try:
        os.mkdir(folder, mode=0o700)
    except OSError:
        try:
            found = os.lstat(folder)
        except OSError:
            found = None
        ours = found is not None and found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
        if not ours or found is None or found.st_mode & 0o022:
            return tempfile.mkdtemp(prefix="fmcortex-")
    return folder
