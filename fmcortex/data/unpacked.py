"""Blocks of a file kept decompressed on the local disk, of which any lines are read.

A line is a frame of a movie or a row of responses. What is read of a kept piece goes straight to
where it is wanted, and each line has a checksum of its own, so nothing but the lines asked for is
read: two to four times the windows a second that decompressing their blocks gives, for two to
three times the space. Pieces are larger than those kept as they come: most of them will be asked
for anyway, since a dataset is kept so where all of it fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import FileIO
from itertools import pairwise

import google_crc32c
import numpy as np

from fmcortex.data.blocks import BlockFile
from fmcortex.data.cache import Damaged, RangeCache

#: Bytes of the file from which on a piece is closed.
PIECE = 4 << 20

#: In the names of what is kept; another one whenever other bytes are made of the same file.
FORM = "unpacked 1"

#: Gives the plain content, uint8 [n], of block number i from what is stored of it.
Unpack = Callable[[int, memoryview], np.ndarray]


class UnpackedFile:
    """The lines of a file of blocks, one after another.

    A piece is kept as a file of its lines, then of their CRC-32C, uint32 each.

    Args:
        file: of blocks.
        lines: how many lines each block holds, and the bytes of each of these.
        unpack: unpacks a block.
        cache: where pieces are kept.
    """

    def __init__(
        self,
        file: BlockFile,
        lines: Sequence[tuple[int, int]],
        unpack: Unpack,
        cache: RangeCache,
    ) -> None:
        self._file = file
        self._unpack = unpack
        self._cache = cache
        self._pieces = file.pieces(PIECE)
        counts, sizes = np.array(lines, np.int64).T
        #: The first line of each block, and one past the last.
        self._first = np.concatenate([[0], np.cumsum(counts)]).tolist()
        #: The byte that each line begins with, and one past the last.
        self._edges = np.concatenate([[0], np.cumsum(np.repeat(sizes, counts))])

    def read(self, first: int, last: int, out: np.ndarray | None = None) -> np.ndarray:
        """The bytes of lines `first` to before `last`.

        Args:
            first: line.
            last: line.
            out: uint8 [n], contiguous, to write into.

        Returns:
            `out`, or a new array.

        Raises:
            DataError: the file is missing, cut short, or a block differs from its checksum.
            StorageError: it cannot be read.
        """
        edges = self._edges
        if out is None:
            out = np.empty(edges[last] - edges[first], np.uint8)
        for begin, end in self._pieces:
            low, high = max(first, self._first[begin]), min(last, self._first[end])
            if low < high:
                part = out[edges[low] - edges[first] : edges[high] - edges[first]]
                self._read_piece(begin, end, low, high, part)
        return out

    def _read_piece(self, begin: int, end: int, low: int, high: int, out: np.ndarray) -> None:
        """Lines of the piece from block `begin` to before `end`."""
        first = self._first[begin]
        edges = self._edges[first : self._first[end] + 1] - self._edges[first]
        low, high = low - first, high - first

        def load(stream: FileIO) -> bool:
            file = stream.fileno()
            sums = np.empty(high - low, "<u4")
            wanted = ((out, int(edges[low])), (sums, int(edges[-1]) + 4 * low))
            for values, start in wanted:
                if os.preadv(file, [values], start) != values.nbytes:  # type: ignore[list-item]
                    raise Damaged("it is cut short")
            if not np.array_equal(_checksums(out, edges[low : high + 1] - edges[low]), sums):
                raise Damaged("it differs from its checksum")
            return True

        def make() -> tuple[list[memoryview], bool]:
            stored = self._file.fetch(begin, end)
            plain = np.concatenate(
                [self._unpack(number, content) for number, content in enumerate(stored, begin)]
            )
            out[...] = plain[edges[low] : edges[high]]
            return [plain.data, _checksums(plain, edges).view(np.uint8).data], True

        self._cache.kept(f"{self._file.name_of(begin, end)}\0{FORM}", load, make)


def _checksums(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """CRC-32C, uint32 [n], of the parts of uint8 [m] between n + 1 edges."""
    parts = [values[start:end] for start, end in pairwise(edges.tolist())]
    return np.array([google_crc32c.value(part) for part in parts], "<u4")
