"""Arrays of a prepared dataset: .npy members of shards, and small zarr arrays."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import Any

import numpy as np

from fmcortex import storage
from fmcortex.data.manifest import Array
from fmcortex.errors import DataError


def little_endian(values: np.ndarray) -> np.ndarray:
    """`values` in C order and little-endian, the one form in which the dataset stores arrays."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def content_sha256(values: np.ndarray) -> str:
    """Hexadecimal SHA-256 of the values in C order, little-endian: `Array.sha256`."""
    flat = little_endian(values).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def encode_npy(values: np.ndarray) -> bytes:
    """`values` as the bytes of a version 1.0 .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, little_endian(values), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def decode_npy(content: bytes | memoryview, where: str) -> np.ndarray:
    """The array of a version 1.0 .npy file, as a read-only view of `content`.

    Raises:
        DataError: naming `where`; not a .npy file, an object array, or not of the length that
            its header states.
    """
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the .npy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if fortran or dtype.hasobject:
            raise ValueError("not a plain array in C order")
        values = np.frombuffer(content, dtype, offset=stream.tell())
        return values.reshape(shape)
    except ValueError as error:
        raise DataError(f"{where}: not a readable .npy array: {error}") from error


def read_array(folder: str, array: Array) -> np.ndarray:
    """The zarr array `array`, of one axis and chunk, of the session at `folder`, checked.

    Raises:
        DataError: naming the array; missing, unreadable, of another shape or dtype, or its
            content is not what was written (zarr itself reads a lost chunk as fill values).
        StorageError: the location cannot be read.
    """
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    url = storage.join(folder, array.path)
    # The two files of an array of one chunk. Read by `storage`, which tries again.
    files: dict[str, Any] = {}
    for name in ("zarr.json", "c/0"):
        file = storage.join(url, name)
        if not storage.exists(file):
            raise DataError(f"{url}: array is missing: no {name}")
        content = storage.read_bytes(file)
        files[name] = default_buffer_prototype().buffer.from_bytes(content)
    try:
        with warnings.catch_warnings():
            # Text columns use a dtype that zarr v3 has not standardised yet.
            warnings.simplefilter("ignore")
            store = MemoryStore(store_dict=files, read_only=True)
            values = np.asarray(zarr.open_array(store, mode="r", zarr_format=3)[...])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise DataError(f"{url}: array is corrupt: {error}") from error
    if list(values.shape) != array.shape or values.dtype.str != array.dtype:
        raise DataError(
            f"{url}: array is {values.dtype.str} {list(values.shape)},"
            f" the manifest says {array.dtype} {array.shape}"
        )
    if content_sha256(values) != array.sha256:
        raise DataError(f"{url}: content differs from its checksum; a chunk is lost or damaged")
    return values
