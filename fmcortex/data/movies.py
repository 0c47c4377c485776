"""The movies of a prepared dataset: each distinct one once, by its content."""

from __future__ import annotations

import hashlib

import numpy as np

from fmcortex import storage
from fmcortex.data.blocks import BlockFile
from fmcortex.data.cache import RangeCache
from fmcortex.data.codecs import add_up, decompress
from fmcortex.data.manifest import MovieEntry
from fmcortex.data.memory import MemoryCache
from fmcortex.data.unpacked import UnpackedFile

#: The one shard of a movie's zarr array, which holds all its chunks.
ARRAY = "c/0/0/0"
INDEX = "index.json"


def movie_name(stimulus: np.ndarray) -> str:
    """What a movie is called: SHA-256 of its size and its pixels.

    Args:
        stimulus: uint8 [T, H, W].
    """
    digest = hashlib.sha256(f"uint8 {' '.join(map(str, stimulus.shape))}\n".encode())
    digest.update(np.ascontiguousarray(stimulus).data)
    return digest.hexdigest()


def movie_folder(dataset: str, name: str) -> str:
    """The URL of a movie of the dataset at URL `dataset`."""
    return storage.join(dataset, "movies", name)


class Movie:
    """One movie, of which windows are read.

    Args:
        dataset: URL of the dataset.
        name: of the movie.
        entry: what a session's manifest says of it.
        disk: cache of ranges of remote files.
        memory: cache of decoded chunks.
    """

    def __init__(
        self, dataset: str, name: str, entry: MovieEntry, disk: RangeCache, memory: MemoryCache
    ) -> None:
        self.name, self.entry = name, entry
        self._url = storage.join(movie_folder(dataset, name), ARRAY)
        self._file = BlockFile(
            self._url, entry.chunks, entry.sha256, "movie", f"{self._url}: movie {name[:12]}", disk
        )
        self._unpacked: UnpackedFile | None = None
        if disk.unpacked:
            lines = [(entry.chunk_frames, entry.height * entry.width)] * len(entry.chunks)
            self._unpacked = UnpackedFile(
                self._file, lines, lambda n, content: self._unpack(n, content).reshape(-1), disk
            )
        self._memory = memory

    def window(self, start: int, frames: int, out: np.ndarray) -> None:
        """Write frames `start` to `start + frames` into `out`, uint8 [frames, H, W].

        Raises:
            DataError: the movie is missing or damaged; the message names its file.
            StorageError: it cannot be read.
        """
        if self._unpacked is not None and out.flags.c_contiguous:
            self._unpacked.read(start, start + frames, out.reshape(-1))
            return
        if self._unpacked is not None:
            out[...] = self._unpacked.read(start, start + frames).reshape(out.shape)
            return
        size = self.entry.chunk_frames
        numbers = range(start // size, -(-(start + frames) // size))
        for number, chunk in zip(numbers, self._chunks(numbers), strict=True):
            low = max(start, number * size)
            high = min(start + frames, (number + 1) * size)
            out[low - start : high - start] = chunk[low - number * size : high - number * size]

    def _chunks(self, numbers: range) -> list[np.ndarray]:
        chunks = {number: self._memory.get((self.name, number)) for number in numbers}
        missing = [number for number, chunk in chunks.items() if chunk is None]
        if missing:
            span = range(missing[0], missing[-1] + 1)
            for number, content in zip(span, self._file.read(span.start, span.stop), strict=True):
                if chunks[number] is None:
                    chunk = self._unpack(number, content)
                    self._memory.put((self.name, number), chunk)
                    chunks[number] = chunk
        return [chunk for chunk in chunks.values() if isinstance(chunk, np.ndarray)]

    def _unpack(self, number: int, content: memoryview) -> np.ndarray:
        """The frames of a chunk; read-only, since they may be shared through the cache."""
        entry = self.entry
        shape = (entry.chunk_frames, entry.height, entry.width)
        chunk = decompress(content, "|u1", shape, f"{self._url}: chunk {number}")
        if entry.differences:
            add_up(chunk)
        chunk.flags.writeable = False
        return chunk
