"""Long signals on disk, of which only the rows that are asked for are read."""

from __future__ import annotations

import os
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import npy
from data_prep.readers.zarr_files import open_arrays
from fmcortex.errors import DataError

_BLOCK = 8 << 20
_FORMS = ("<name>/{values,times}.npy", "<name>.npz", "<name>.zarr")


def signal_paths(folder: Path, name: str) -> list[Path]:
    """Where the signal `name` of `folder` is; one path, if all is well."""
    forms = (folder / name, folder / f"{name}.npz", folder / f"{name}.zarr")
    return [path for path in forms if path.exists()]


class SignalFile:
    """Values [n, k] and times [n] of one signal, in any of three forms.

    * a folder `<name>/` with `values.npy` and `times.npy`, which are mapped into memory;
    * `<name>.npz` with the same two, as numpy.savez writes it: not compressed, since of a
      compressed array no part can be read alone;
    * a zarr group `<name>.zarr`, of which only the chunks are read that a part lies in.

    Attributes:
        source: its path, for messages.
        columns: k; a signal of one axis has one column.
        times: as stored [n].
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Find and open the signal `name` of `folder`.

        Raises:
            DataError: there is none, or more than one, or it is not as described above.
        """
        found = signal_paths(folder, name)
        if len(found) != 1:
            how = "is there more than once" if found else "is missing"
            raise DataError(f"{folder}: signal {name} {how}; it is one of {', '.join(_FORMS)}")
        path = found[0]
        self.source = str(path)
        if path.suffix == ".zarr":
            self._values, times = open_arrays(path, ("values", "times"), gaps=("values",))
        elif path.suffix == ".npz":
            self._values, times = (_stored_member(path, key) for key in ("values", "times"))
        else:
            self._values, times = (_mapped(path / f"{key}.npy") for key in ("values", "times"))
        if np.dtype(self._values.dtype).kind not in "fiu":
            raise DataError(f"{path}: values are {self._values.dtype}, not numbers")
        shape = self._values.shape
        if len(shape) not in (1, 2) or len(times.shape) != 1:
            raise DataError(
                f"{path}: values have shape {list(shape)} and times {list(times.shape)},"
                " not [samples, channels] and [samples]"
            )
        if shape[0] != times.shape[0]:
            raise DataError(
                f"{path}: unequal lengths: {shape[0]} values, {times.shape[0]} times;"
                " is time the first axis?"
            )
        self.columns = 1 if len(shape) == 1 else shape[1]
        self.times = _read(times, slice(None), self.source)

    def rows(self, part: slice) -> np.ndarray:
        """The values [m, k] of some samples.

        Raises:
            DataError: the file cannot be read.
        """
        values = self._read(part)
        return values.reshape(len(values), self.columns)

    def traces(self, part: slice) -> np.ndarray:
        """The values [n, m] of some columns.

        Raises:
            DataError: the file cannot be read.
        """
        if len(self._values.shape) == 1:
            return self.rows(slice(None))[:, part]
        return self._read((slice(None), part))

    def _read(self, part: Any) -> np.ndarray:
        return _read(self._values, part, self.source)


def _read(array: Any, part: Any, source: str) -> np.ndarray:
    """A part of an array on disk."""
    try:
        return np.array(array[part])
    except Exception as error:  # zarr's errors, and those of its codecs, have no common class
        raise DataError(f"{source}: cannot read: {' '.join(str(error).split())}") from error


def _mapped(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped into memory."""
    npy.header(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error


def _stored_member(path: Path, key: str) -> np.ndarray:
    """The array `key` of a .npz file that is not compressed, mapped into memory."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as stream:
            if f"{key}.npy" not in archive.namelist():
                raise DataError(f"{path}: no array {key} in it")
            member = archive.getinfo(f"{key}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: is compressed, so that no part of it can be read alone; write it"
                    " with numpy.savez, or as zarr"
                )
            status = os.stat(path)
            _check_crc(str(path), member.filename, status.st_size, status.st_mtime_ns)
            # A member's local header: 30 bytes, the last four being the lengths of what follows.
            stream.seek(member.header_offset)
            name, extra = struct.unpack("<HH", stream.read(30)[26:30])
            start = member.header_offset + 30 + name + extra
            stream.seek(start)
            version = np.lib.format.read_magic(stream)
            if version not in npy.HEADERS:
                raise DataError(f"{path}: .npy format version {version} is not supported")
            shape, fortran, dtype = npy.HEADERS[version](stream)
            if dtype.hasobject:
                raise DataError(f"{path}: {key} holds Python objects, not numbers")
            offset = stream.tell()
        if (
            offset - start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            != member.file_size
        ):
            raise DataError(f"{path}: {key} is not as long as its header says")
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    except npy.BAD_ARCHIVE as error:
        raise DataError(f"{path}: not a whole .npz file: {error}") from error


@lru_cache(maxsize=64)
def _check_crc(path: str, member: str, size: int, changed: int) -> None:
    """Read a member of a .npz file to its end, which compares it with its CRC-32.

    Once for a file in each process: what was read afterwards is mapped into memory, unchecked.

    Args:
        path: of the file.
        member: its name there.
        size, changed: of the file, so that one that was replaced is read again.

    Raises:
        zipfile.BadZipFile: they differ.
    """
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        while stream.read(_BLOCK):
            pass
