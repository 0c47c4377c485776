"""Arrays of a prepared dataset: .npy members of shards, and small zarr arrays."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from typing import Any

import numpy as np

from fmcortex import storage
from fmcortex.data.manifest import Array
from fmcortex.errors import DataError

#: The start of a version 1.0 .npy file of numbers in C order, as NumPy writes it. NumPy's own
#: reader parses it as Python, which fails now and then where threads of Python 3.11 do so at once
#: (github.com/python/cpython/issues/106905).
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<|][biufU]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)
_LENGTH = 10  # of the magic string, the version and the header's length


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
    try:
        header = _HEADER.match(content)
        if header is None:
            raise ValueError("its header is not one of version 1.0")
        start = _LENGTH + int.from_bytes(header[1], "little")
        if header.end() != start:
            raise ValueError("its header is not as long as it states")
        dtype = np.dtype(header[2].decode())
        shape = [int(number) for number in re.findall(rb"\d+", header[3])]
        return np.frombuffer(content, dtype, offset=start).reshape(shape)
    except (ValueError, TypeError) as error:
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
