"""How responses and movies are compressed, losslessly; `benchmarks/compression.py` measures it.

Both with zstd at level 1: higher levels and Blosc's shuffles save a few per cent at best and are
slower, and its lz4 decodes twice as fast but needs half as many bytes again. Movies are stored as
differences of successive frames, modulo 256, where that is smaller: by 20 to 40% for filmed ones,
but not for patterns that jump from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numcodecs.zstd
import numpy as np
from zarr.abc.codec import ArrayArrayCodec

from fmcortex.errors import DataError

ZSTD_LEVEL = 1
#: Frames of a chunk of a movie.
CHUNK_FRAMES = 15
#: Scans, or frames, of a block of responses.
BLOCK_ROWS = 8


def compress(values: np.ndarray) -> bytes:
    """`values` in C order as one zstd frame; the same bytes for the same values."""
    return bytes(numcodecs.zstd.compress(np.ascontiguousarray(values), ZSTD_LEVEL))


def decompress(
    content: bytes | memoryview, dtype: str, shape: tuple[int, ...], where: str
) -> np.ndarray:
    """The array of a zstd frame.

    Raises:
        DataError: naming `where`: it is none, or of another size than `shape` says.
    """
    values = np.empty(shape, dtype)
    try:
        # Raises where the frame says another size than that of the array.
        numcodecs.zstd.decompress(content, values)
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"{where}: cannot decompress: {error}") from error
    return values


def to_differences(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W] as differences to the frame before, modulo 256; the first as it is."""
    differences = frames.copy()
    np.subtract(frames[1:], frames[:-1], out=differences[1:])
    return differences


def add_up(differences: np.ndarray) -> None:
    """Undo `to_differences` in place. Frame by frame: NumPy accumulates along time 40x slower."""
    for before, frame in pairwise(differences):
        np.add(before, frame, out=frame)


@dataclass(frozen=True)
class FrameDifferences(ArrayArrayCodec):
    """`to_differences` as a codec of zarr 3, so that zarr reads the movies as they were shown.

    zarr finds it through the package's entry points.
    """

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """As zarr makes a codec from an array's metadata."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """The codec in an array's metadata."""
        return {"name": "fmcortex.frame_differences"}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Differences are as long as the frames."""
        return input_byte_length

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        values = to_differences(chunk_array.as_numpy_array())
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)

    async def _decode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        values = np.array(chunk_array.as_numpy_array())
        add_up(values)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)
