"""Reading and writing on any fsspec URL, with writes that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fmcortex.errors import StorageError

#: Packages below fsspec's remote file systems.
CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path in it, without a trailing slash.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{url}: cannot open this location: {error}") from error
    return fs, path.rstrip("/")


def join(url: str, *parts: str) -> str:
    """`url` with `parts` appended, whatever its protocol."""
    rest = "/".join(part.strip("/") for part in parts)
    return url + rest if url.endswith("://") else f"{url.rstrip('/')}/{rest}"


def exists(url: str) -> bool:
    """Whether a file or folder is at `url`.

    Raises:
        StorageError: the store cannot be asked.
    """
    fs, path = filesystem(url)
    with reason(url, "read"):
        return bool(fs.exists(path))


def is_local(url: str) -> bool:
    """Whether `url` is on this machine's own file system."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """`url` in a form that means the same from any working directory."""
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url.rstrip("/")


@contextmanager
def reason(url: str, doing: str) -> Iterator[None]:
    """Turn a failure of the block's storage into one `StorageError` that names `url`.

    Args:
        url: the location that the block reads or writes.
        doing: the verb of the message: "read" or "write".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{url}: cannot {doing}: no such file or folder") from error
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise StorageError(f"{url}: cannot {doing}: {why}") from error
    except Exception as error:
        # Object stores' clients raise errors of their own for a lost connection or bad credentials.
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise StorageError(f"{url}: cannot {doing}: {' '.join(str(error).split())}") from error


def read_bytes(url: str) -> bytes:
    """The content of the file at `url`.

    Raises:
        StorageError: it cannot be read.
    """
    fs, path = filesystem(url)
    with reason(url, "read"), fs.open(path, "rb") as stream:
        return bytes(stream.read())


def write_bytes(url: str, content: bytes) -> None:
    """Write `content` to `url`; a reader sees the whole of it or nothing.

    A local file is written under a temporary name, flushed and renamed. Object stores show an
    object only once its upload is complete.

    Raises:
        StorageError: it cannot be written.
    """
    fs, path = filesystem(url)
    with reason(url, "write"):
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


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
    """Remove the file or folder at `url`, if there is one."""
    fs, path = filesystem(url)
    with reason(url, "remove"):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def without_password(text: str) -> str:
    """`text` with the user and password of URLs taken out: reports are there to be passed on."""
    return re.sub(r"://[^/@\s\"']+@", "://", text)
