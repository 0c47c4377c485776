"""Reading checksummed blocks of a file by range: directly where it is local, else by pieces.

From an object store a request costs as much as a megabyte. So blocks that lie next to each other
are fetched together, as *pieces* of about that size, and a piece is what the local cache keeps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import google_crc32c
import numpy as np

from fmcortex import storage
from fmcortex.data.cache import RangeCache
from fmcortex.data.manifest import Block
from fmcortex.errors import DataError, StorageError

#: Bytes from which on a piece is closed.
PIECE = 1 << 20


class BlockFile:
    """A file of blocks that lie in it in order.

    Args:
        url: of the file.
        blocks: of which some are read at a time, ascending.
        identity: SHA-256 of the file as it was written, which tells its versions apart.
        what: what the file is, for messages: "shard" or "movie".
        where: what of the file the blocks are, for messages.
        cache: of ranges of remote files.
    """

    def __init__(
        self,
        url: str,
        blocks: Sequence[Block],
        identity: str,
        what: str,
        where: str,
        cache: RangeCache,
    ) -> None:
        self._url = url
        self._blocks = blocks
        self._identity = identity
        self._what = what
        self._where = where
        self._cache = cache
        self._path = storage.absolute(url) if storage.is_local(url) else None

    def read(self, first: int, last: int) -> list[memoryview]:
        """Blocks `first` to before `last`, each as it was written.

        Raises:
            DataError: the file is missing, cut short, or a block differs from its checksum.
            StorageError: it cannot be read.
        """
        if self._path is not None:
            content = self._read_local(self._blocks[first].offset, _end(self._blocks[last - 1]))
            wrong = self._wrong(content, first, last)
            if wrong is not None:
                raise DataError(wrong)
            return self._cut(content, first, last)
        found: list[memoryview] = []
        for begin, end in self.pieces():
            if begin < last and first < end:
                parts = self._cut(self._fetch(begin, end), begin, end)
                found += parts[max(first - begin, 0) : last - begin]
        return found

    def pieces(self, size: int = PIECE) -> list[tuple[int, int]]:
        """The blocks in runs that are fetched together: the first of each, and the one after it.

        Args:
            size: bytes from which on a piece is closed.
        """
        return pieces(self._blocks, size)

    def name_of(self, begin: int, end: int) -> str:
        """Tells blocks `begin` to before `end` from all others of all files."""
        start, stop = self._span(begin, end)
        return f"{self._url}\0{start}\0{stop}\0{self._identity}"

    def fetch(self, begin: int, end: int) -> list[memoryview]:
        """Blocks `begin` to before `end` from where the file is, whatever is in the cache.

        Raises:
            DataError, StorageError: as `read`.
        """
        start, stop = self._span(begin, end)
        with self._missing():
            content = self._cache.fetch(
                self._url, start, stop, lambda c: self._wrong(c, begin, end)
            )
        return self._cut(content, begin, end)

    def _read_local(self, start: int, end: int) -> bytes:
        assert self._path is not None
        with storage.reason(self._url, "read"):
            try:
                descriptor = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError as error:
                raise DataError(f"{self._where}: {self._what} is missing") from error
            try:
                return os.pread(descriptor, end - start, start)
            finally:
                os.close(descriptor)

    def _fetch(self, begin: int, end: int) -> bytes:
        start, stop = self._span(begin, end)
        with self._missing():
            return self._cache.read(
                self._url, start, stop, self._identity, lambda c: self._wrong(c, begin, end)
            )

    def _span(self, begin: int, end: int) -> tuple[int, int]:
        return self._blocks[begin].offset, _end(self._blocks[end - 1])

    @contextmanager
    def _missing(self) -> Iterator[None]:
        """Say so where the file is not there."""
        try:
            yield
        except StorageError as error:
            if not storage.exists(self._url):
                raise DataError(f"{self._where}: {self._what} is missing") from error
            raise

    def _wrong(self, content: bytes, first: int, last: int) -> str | None:
        """What is wrong with the content of some blocks; None if nothing is."""
        start = self._blocks[first].offset
        for block, part in zip(
            self._blocks[first:last], self._cut(content, first, last), strict=True
        ):
            if len(part) != block.length:
                size = start + len(content)
                return f"{self._where}: {self._what} is cut short: it ends at byte {size}"
            if google_crc32c.value(np.frombuffer(part, np.uint8)) != block.crc32c:
                return (
                    f"{self._where}: bytes {block.offset} to {_end(block)} differ from their"
                    f" checksum; the {self._what} is damaged"
                )
        return None

    def _cut(self, content: bytes, first: int, last: int) -> list[memoryview]:
        start, view = self._blocks[first].offset, memoryview(content)
        return [view[b.offset - start : _end(b) - start] for b in self._blocks[first:last]]


def _end(block: Block) -> int:
    return block.offset + block.length


def pieces(blocks: Sequence[Block], size: int) -> list[tuple[int, int]]:
    """The blocks in runs of at least `size` bytes: the first of each, and the one after it."""
    found, begin = [], 0
    for number, block in enumerate(blocks):
        if _end(block) - blocks[begin].offset >= size:
            found.append((begin, number + 1))
            begin = number + 1
    if begin < len(blocks):
        found.append((begin, len(blocks)))
    return found
