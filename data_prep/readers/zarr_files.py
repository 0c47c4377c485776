"""Arrays of a zarr group on disk, of which no part is missing.

zarr reads a chunk whose file is gone, and a shard whose file is empty, as the fill value, zero
most often, without a word. A chunk that holds nothing but the fill value is not written by
default, so that it cannot be told from a lost one, unless that value is NaN: a missing sample.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from fmcortex.errors import DataError

#: Offset and length, in the index of a shard, of a chunk that is not in it.
_ABSENT = 2**64 - 1
_CHECKSUM = 4


def open_arrays(path: Path, names: tuple[str, ...], gaps: tuple[str, ...]) -> list[Any]:
    """Arrays of the zarr group at `path`, version 2 or 3, with all their chunks there.

    Args:
        path: of the group.
        names: of the arrays.
        gaps: those of them that may lack chunks where their fill value is NaN.

    Raises:
        DataError: it is no such group, or a chunk of an array is missing or empty; the message
            names the array and the file.
    """
    import zarr

    try:
        # Consolidated metadata may be older than the array, and then hides what was appended.
        group = zarr.open_group(str(path), mode="r", use_consolidated=False)
        arrays = [group[name] for name in names]
    except KeyError as error:
        raise DataError(f"{path}: no array {error.args[0]} in it") from error
    except Exception as error:
        # zarr's errors have no common class; whatever it is, this is no group of these arrays.
        said = " ".join(str(error).split())
        raise DataError(f"{path}: not a zarr group with {' and '.join(names)}: {said}") from error
    for name, array in zip(names, arrays, strict=True):
        if not isinstance(array, zarr.Array):
            raise DataError(f"{path}: {name} is no array but a group")
        fill = array.fill_value
        missing = array.dtype.kind == "f" and fill is not None and bool(np.isnan(fill))
        _check_chunks(path / name, name, array, name in gaps and missing)
    return arrays


def _check_chunks(folder: Path, name: str, array: Any, gaps: bool) -> None:
    """Refuse an array of which a chunk is missing, unless `gaps` says that one may."""
    sizes = _sizes(folder)
    lost, unwritten = [], []
    for place in np.ndindex(*_grid(array)):
        key = array.metadata.encode_chunk_key(place)
        if key not in sizes:
            lost.append(key)
        elif sizes[key] == 0:
            raise DataError(f"{folder / key}: is empty; it should hold a part of {name}")
        elif array.shards is not None and _lacks_chunks(folder / key, place, array):
            unwritten.append(key)
    if gaps or not (lost or unwritten):
        return
    count = f"{len(lost) + len(unwritten)} of {math.prod(_grid(array))} parts of {name}"
    what = f"{lost[0]}: is missing" if lost else f"{unwritten[0]}: lacks chunks"
    fill = "zeros" if array.fill_value is None else array.fill_value
    raise DataError(
        f"{folder}/{what} ({count}), and would read as {fill}; if nothing was lost, write"
        " the array with NaN as fill_value, or with config={'write_empty_chunks': True}"
    )


def _grid(array: Any) -> list[int]:
    """The number of an array's files along each axis."""
    parts = array.shards or array.chunks
    return [-(-length // part) for length, part in zip(array.shape, parts, strict=True)]


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below `folder`, by its path there."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _lacks_chunks(path: Path, place: tuple[int, ...], array: Any) -> bool:
    """Whether a shard lacks chunks, those beyond the array's end apart.

    A shard's index, at its end or its begin, has offset and length of each chunk as little-endian
    uint64, then a CRC-32C; if its codecs say otherwise, nothing is known.
    """
    from zarr.codecs import BytesCodec, Crc32cCodec

    codec = array.metadata.codecs[0]
    if [type(one) for one in codec.index_codecs] != [BytesCodec, Crc32cCodec]:
        return False
    counts = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
    size = 16 * math.prod(counts) + _CHECKSUM
    with open(path, "rb") as stream:
        if codec.index_location.value == "end":
            stream.seek(max(path.stat().st_size - size, 0))
        content = stream.read(size)
    if len(content) < size:
        raise DataError(f"{path}: truncated: {len(content)} bytes, its index alone has {size}")
    index = np.frombuffer(content[:-_CHECKSUM], "<u8").reshape(*counts, 2)
    inside = tuple(
        slice(-(-(length - at * shard) // chunk))
        for length, at, shard, chunk in zip(
            array.shape, place, array.shards, array.chunks, strict=True
        )
    )
    return bool((index[inside] == _ABSENT).all(axis=-1).any())
