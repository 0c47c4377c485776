"""Whether the files of a session are all there, byte for byte."""

from __future__ import annotations

import hashlib

from fmcortex import storage
from fmcortex.data.manifest import SessionManifest, StoredFile
from fmcortex.errors import StorageError

#: Bytes read at a time when a file is hashed.
BLOCK = 8 << 20


def file_sizes(url: str) -> dict[str, int]:
    """Bytes of every file below the folder `url`, by path in it; empty if there is no folder.

    Raises:
        StorageError: the location cannot be listed.
    """
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()  # another process may have written since this one last looked
    with storage.reason(url, "list"):
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
    return {name.removeprefix(path).lstrip("/"): int(info["size"]) for name, info in found.items()}


def session_files(manifest: SessionManifest) -> dict[str, StoredFile]:
    """Every file that a session's manifest names, by path in the session's folder."""
    files = dict(manifest.files)
    for shard in manifest.shards:
        files[shard.name] = StoredFile(bytes=shard.bytes, sha256=shard.sha256)
    return files


def check_file(folder: str, path: str, expected: StoredFile, size: int | None) -> str | None:
    """What is wrong with the file at `path` in `folder`, in one line; None if nothing is.

    Args:
        folder: the session's folder.
        path: the file's path in it.
        expected: what was written.
        size: the file's bytes as `file_sizes` found them, None if it did not find the file.
    """
    url = storage.join(folder, path)
    if size is None:
        return f"{url}: file is missing"
    if size != expected.bytes:
        return f"{url}: file has {size} bytes, the manifest says {expected.bytes}"
    fs, location = storage.filesystem(url)
    digest = hashlib.sha256()
    try:
        with storage.reason(url, "read"), fs.open(location, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    except StorageError as error:
        return str(error)
    if digest.hexdigest() != expected.sha256:
        return f"{url}: file differs from its SHA-256 in the manifest"
    return None
