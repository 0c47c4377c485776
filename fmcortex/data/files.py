"""Whether a prepared dataset is all there, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from fmcortex import storage
from fmcortex.data.arrays import read_array
from fmcortex.data.cache import RangeCache
from fmcortex.data.manifest import MovieEntry, MovieFile, SessionManifest, StoredFile
from fmcortex.data.memory import MemoryCache
from fmcortex.data.movies import ARRAY, INDEX, Movie, movie_folder, movie_name
from fmcortex.data.shards import read_index
from fmcortex.errors import FmcortexError, StorageError
from fmcortex.seal import seal_holds

#: Which folder a session was made from, beside its manifest.
ORIGIN = "origin.json"

#: Bytes read at a time when a file is hashed.
BLOCK = 8 << 20


def session_files(manifest: SessionManifest) -> dict[str, StoredFile]:
    """Every file that a session's manifest names, by path in the session's folder."""
    files = dict(manifest.files)
    for shard in manifest.shards:
        files[shard.name] = StoredFile(bytes=shard.bytes, sha256=shard.sha256)
    return files


def check_file(folder: str, path: str, expected: StoredFile, size: int | None) -> str | None:
    """What is wrong with the file at `path` in `folder`, in one line; None if nothing is.

    Args:
        folder: of the session or movie.
        path: the file's path in it.
        expected: what was written.
        size: the file's bytes as `storage.file_sizes` found them, None if it did not find the file.
    """
    url = storage.join(folder, path)
    if size is None:
        return f"{url}: file is missing"
    if size != expected.bytes:
        return f"{url}: file has {size} bytes, the manifest says {expected.bytes}"
    digest = hashlib.sha256()
    try:
        for start in range(0, size, BLOCK):
            digest.update(storage.read_range(url, start, min(start + BLOCK, size)))
    except StorageError as error:
        return str(error)
    if digest.hexdigest() != expected.sha256:
        return f"{url}: file differs from its SHA-256 in the manifest"
    return None


def origin_problem(folder: str) -> str | None:
    """What is wrong with a session's `origin.json`, in one line; None if nothing is."""
    url = storage.join(folder, ORIGIN)
    if not storage.exists(url):
        return f"{url}: file is missing"
    return None if seal_holds(storage.read_bytes(url)) else f"{url}: differs from its own checksum"


def session_problems(url: str, manifest: SessionManifest) -> list[str]:
    """Check every byte of a session's folder; one line for each problem."""
    sizes = storage.file_sizes(url)
    found = [
        check_file(url, path, expected, sizes.get(path))
        for path, expected in session_files(manifest).items()
    ]
    found.append(origin_problem(url) if manifest.seal else None)
    problems = [problem for problem in found if problem is not None]
    arrays = [*manifest.neuron_table.values(), manifest.statistics.response_scale]
    if manifest.statistics.imaging_delay is not None:
        arrays.append(manifest.statistics.imaging_delay)
    for shard in manifest.shards:
        problems += _problems(lambda shard=shard: read_index(url, shard))  # type: ignore[misc]
    for array in arrays:
        problems += _problems(lambda array=array: read_array(url, array))  # type: ignore[misc]
    return problems


def movie_problems(dataset: str, name: str, entry: MovieEntry) -> list[str]:
    """Check every byte and every pixel of a movie; one line for each problem."""
    folder = movie_folder(dataset, name)
    url = storage.join(folder, INDEX)
    try:
        index = MovieFile.parse_sealed(storage.read_bytes(url), url)
    except FmcortexError as error:
        return [str(error)]
    if (index.movie, index.entry) != (name, entry):
        return [f"{url}: is not the index that the sessions' manifests hold"]
    sizes = storage.file_sizes(folder)
    files = {
        ARRAY: StoredFile(bytes=entry.bytes, sha256=entry.sha256),
        "zarr.json": index.array,
    }
    found = [check_file(folder, path, file, sizes.get(path)) for path, file in files.items()]
    problems = [problem for problem in found if problem is not None]
    pixels = np.empty((entry.frames, entry.height, entry.width), np.uint8)
    movie = Movie(dataset, name, entry, RangeCache("", 0), MemoryCache(0))
    wrong = _problems(lambda: movie.window(0, entry.frames, pixels))
    if not wrong and movie_name(pixels) != name:
        wrong = [f"{folder}: its pixels are not those of its name"]
    return problems or wrong


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except FmcortexError as error:
        return [str(error)]
    return []
