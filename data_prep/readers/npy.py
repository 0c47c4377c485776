"""Reading .npy files so that whatever is wrong with one is said in one line that names it."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data_prep.readers.leftovers import entries
from fmcortex.errors import DataError

#: Readers of the headers of the versions of .npy files.
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

#: What is raised where a .npz file is damaged: zip headers, checksums, compression, encryption.
BAD_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in `path`, whose length is checked against them.

    Raises:
        DataError: the file is missing, not a .npy file, truncated, or a pickle.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in HEADERS:
                raise DataError(f"{path}: .npy format version {version} is not supported")
            shape, _, dtype = HEADERS[version](stream)
            start, size = stream.tell(), os.fstat(stream.fileno()).st_size
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        what = "truncated: " if "EOF" in str(error) else "not a .npy file: "
        raise DataError(f"{path}: {what}{error}") from error
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds Python objects, which are not loaded for safety; convert it once with"
            " a=numpy.load(path, allow_pickle=True); numpy.save(path, a.astype(str)), or"
            " astype(float) for numbers"
        )
    expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size < expected:
        raise DataError(f"{path}: truncated: {size} bytes of {expected}")
    if size > expected:
        raise DataError(f"{path}: has {size - expected} bytes after the array's end")
    return shape, dtype


def load(path: Path) -> np.ndarray:
    """The array in `path`.

    Raises:
        DataError: as `header`, or the file cannot be read.
    """
    header(path)
    try:
        values = np.asarray(np.load(path, allow_pickle=False))
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error


def load_numbers(path: Path, ndim: int) -> np.ndarray:
    """The array of `ndim` axes of real numbers in `path`.

    Raises:
        DataError: as `load`, or the array has other axes or another kind of values.
    """
    shape, dtype = header(path)
    if dtype.kind not in "fiu":
        raise DataError(f"{path}: values are {dtype}, not numbers")
    if len(shape) != ndim:
        raise DataError(f"{path}: has shape {list(shape)}, not {ndim} axes")
    return load(path)


def stems(folder: Path) -> set[str]:
    """Names, without suffix, of the .npy files in `folder`; empty if there is no such folder."""
    return {path.stem for path in entries(folder, "*.npy")} if folder.is_dir() else set()


def in_order(names: set[str]) -> list[str]:
    """`names` sorted, those that are numbers by value and before the others."""
    return sorted(names, key=lambda name: (not name.isdecimal(), int_or_zero(name), name))


def int_or_zero(name: str) -> int:
    """`name` as a number if it is one, else 0."""
    return int(name) if name.isdecimal() else 0


def content_name(stimulus: np.ndarray) -> str:
    """A name for a video [T, H, W] that the source leaves unnamed: the hash of its content."""
    digest = hashlib.sha256(repr(stimulus.shape).encode())
    digest.update(np.ascontiguousarray(stimulus).data)
    return f"sha256-{digest.hexdigest()[:24]}"


def neuron_columns(path: Path, name: str, neurons: int) -> dict[str, np.ndarray]:
    """The columns [U] of an array [U] or [U, k] of the neuron table.

    Three coordinates become `x`, `y`, `z`; any other [U, k] becomes `<name>_0`, `<name>_1`...

    Raises:
        DataError: the array is not of one entry, or row, a neuron.
    """
    values = load(path)
    if values.ndim not in (1, 2) or len(values) != neurons:
        raise DataError(
            f"{path}: has shape {list(values.shape)}, not one row for {neurons} neurons"
        )
    if values.dtype.kind not in "biufU":
        raise DataError(f"{path}: values are {values.dtype}, neither numbers nor text")
    if values.ndim == 1:
        return {name: values}
    if name.endswith("coordinates") and values.shape[1] == 3:
        return dict(zip("xyz", values.T, strict=True))
    return {f"{name}_{index}": column for index, column in enumerate(values.T)}
