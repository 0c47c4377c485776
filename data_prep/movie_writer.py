"""Writing a movie of the prepared dataset: a zarr array of one shard, its index last."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from data_prep.near_duplicates import BITS, frame_hashes
from fmcortex import storage
from fmcortex.data.codecs import CHUNK_FRAMES, ZSTD_LEVEL, FrameDifferences
from fmcortex.data.files import check_file
from fmcortex.data.manifest import Block, MovieEntry, MovieFile, StoredFile
from fmcortex.data.movies import ARRAY, INDEX, movie_folder
from fmcortex.errors import DataError


@lru_cache(maxsize=4)
def _whole(run: str) -> set[str]:
    """The movies that this process has written or found whole in a run of the job."""
    return set()


def stored_movie(dataset: str, name: str, run: str | None = None) -> MovieEntry | None:
    """The entry of a movie that is at the target, with all its files; None if it is not.

    Args:
        dataset: URL of the dataset.
        name: of the movie.
        run: of the job, in which each movie is read and checked once by each process; None to go
            by the sizes of the files.

    Raises:
        StorageError: the target cannot be read.
    """
    folder = movie_folder(dataset, name)
    url = storage.join(folder, INDEX)
    if not storage.exists(url):
        return None
    try:
        index = MovieFile.parse_sealed(storage.read_bytes(url), url)
    except DataError:
        return None
    entry = index.entry
    expected = {
        ARRAY: StoredFile(bytes=entry.bytes, sha256=entry.sha256),
        "zarr.json": index.array,
    }
    sizes = storage.file_sizes(folder)
    if index.movie != name or any(sizes.get(p) != f.bytes for p, f in expected.items()):
        return None
    if run is not None and name not in _whole(run):
        if any(check_file(folder, path, file, file.bytes) for path, file in expected.items()):
            return None
        _whole(run).add(name)
    return entry


def write_movie(
    dataset: str, name: str, stimulus: np.ndarray, frame_rate: float, run: str
) -> MovieEntry:
    """Write a movie; several tasks may write the same one, which has the same bytes.

    Args:
        dataset: URL of the dataset.
        name: `movie_name` of the stimulus.
        stimulus: uint8 [T, H, W].
        frame_rate: Hz, for the perceptual hashes.
        run: of the job.

    Raises:
        StorageError: the target cannot be written.
    """
    frames, height, width = stimulus.shape
    chunk = min(CHUNK_FRAMES, frames)
    plain, differences = _encode(stimulus, chunk, False), _encode(stimulus, chunk, True)
    smaller = len(differences[ARRAY]) < len(plain[ARRAY])
    contents = differences if smaller else plain
    shard, description = contents[ARRAY], contents["zarr.json"]
    entry = MovieEntry(
        frames=frames,
        height=height,
        width=width,
        chunk_frames=chunk,
        differences=smaller,
        bytes=len(shard),
        sha256=storage.sha256(shard),
        chunks=_chunks(shard, -(-frames // chunk)),
    )
    index = MovieFile(
        movie=name,
        entry=entry,
        array=StoredFile(bytes=len(description), sha256=storage.sha256(description)),
        hashes=[f"{value:016x}" for value in hashes_of(stimulus, frame_rate).tolist()],
    )
    folder = movie_folder(dataset, name)
    storage.write_bytes(storage.join(folder, ARRAY), shard)
    storage.write_bytes(storage.join(folder, "zarr.json"), description)
    storage.write_bytes(storage.join(folder, INDEX), index.sealed())
    _whole(run).add(name)
    return entry


def hashes_of(stimulus: np.ndarray, frame_rate: float) -> np.ndarray:
    """Perceptual hashes uint64 [k] of a movie uint8 [T, H, W]; none of one too small for any."""
    if min(stimulus.shape[1:]) <= BITS:
        return np.zeros(0, np.uint64)
    return frame_hashes(stimulus, frame_rate)


def _encode(stimulus: np.ndarray, chunk: int, differences: bool) -> dict[str, bytes]:
    """The files of the movie's zarr array, made in memory: `storage` writes each whole."""
    frames, height, width = stimulus.shape
    files: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(store_dict=files),
        data=stimulus,
        chunks=(chunk, height, width),
        shards=(-(-frames // chunk) * chunk, height, width),
        filters=FrameDifferences() if differences else None,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        fill_value=0,
        config={"write_empty_chunks": True},
        dimension_names=("frame", "y", "x"),
    )
    return {path: content.to_bytes() for path, content in files.items()}


def _chunks(shard: bytes, count: int) -> list[Block]:
    """Where the inner chunks lie in a zarr shard, whose index is at its end.

    The index has offset and length of each chunk as little-endian uint64, then a CRC-32C (zarr 3
    specification, sharding codec).
    """
    index = np.frombuffer(shard[-4 - 16 * count : -4], "<u8").reshape(count, 2)
    blocks = [
        Block(offset=o, length=n, crc32c=google_crc32c.value(shard[o : o + n]))
        for o, n in index.tolist()
    ]
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(blocks))
    return blocks
