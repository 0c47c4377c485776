"""A file at a URL, to be read at any place by a library that wants a Python file."""

from __future__ import annotations

from fsspec.spec import AbstractBufferedFile

from fmcortex import storage

#: Bytes of one request, and the blocks kept in memory: tables and indices are read many times.
BLOCK = 2 * 2**20
BLOCKS = 32


class RemoteFile(AbstractBufferedFile):
    """A file of which blocks are fetched as they are needed, with the retries of `storage`.

    What fsspec opens by itself gives up a request over HTTP at the first lost connection, and
    waits without end for a server that has gone silent.

    Args:
        url: of the file, on any fsspec file system.

    Raises:
        StorageError: it is not there, or the server does not tell its size; on reading, also if the
            server does not give parts of files.
    """

    def __init__(self, url: str) -> None:
        fs, path = storage.filesystem(url)
        self._url = url
        super().__init__(
            fs,
            path,
            "rb",
            block_size=BLOCK,
            cache_type="blockcache",
            cache_options={"maxblocks": BLOCKS},
            size=storage.size(url),
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return storage.read_range(self._url, start, min(end, self.size), whole=False)
