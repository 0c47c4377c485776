"""Our URLs, which are fsspec's, for Ray Train, which speaks pyarrow."""

from __future__ import annotations

from typing import Any

from fmcortex import storage


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """The pyarrow filesystem of `url`, over fsspec where it is remote, and the path in it.

    Ray Train takes a checkpoint for its own only on a filesystem equal to that of its run.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    fs, path = storage.filesystem(url)
    return LocalFileSystem() if storage.is_local(url) else PyFileSystem(FSSpecHandler(fs)), path
