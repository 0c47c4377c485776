"""Parts of an NWB 2 file, opened with h5py from a path or through fsspec from a URL."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import npy
from data_prep.readers.clock import Clock
from fmcortex.errors import DataError, StorageError
from fmcortex.remote_file import RemoteFile


def open_nwb(location: str) -> Any:
    """The h5py.File at a path or URL, opened for reading; what is read of it comes lazily.

    Raises:
        DataError: h5py is not installed, or there is no such file, or it is not HDF5.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{location}: NWB needs h5py: pip install 'fmcortex[nwb]'") from error
    try:
        if "://" not in location:
            return h5py.File(location, "r")
        return h5py.File(RemoteFile(location), "r")
    except FileNotFoundError as error:
        raise DataError(f"{location}: file is missing") from error
    except StorageError:
        raise
    except Exception as error:  # what is no HDF5 raises many kinds
        raise DataError(f"{location}: cannot open as HDF5: {error}") from error


def child(file: Any, path: str, source: str) -> Any:
    """The group or dataset at `path` of the file.

    Raises:
        DataError: there is none; the message names what its nearest parent holds.
    """
    found, walked = file, ""
    for part in path.strip("/").split("/"):
        # `get` gives None for what is not there, and for a link to what is not there.
        inner = found.get(part) if hasattr(found, "keys") else None
        if inner is None:
            has = ", ".join(sorted(found)[:12]) if hasattr(found, "keys") else "no groups"
            raise DataError(
                f"{source}: no {path}; {walked or 'the file'} has {has or 'nothing'};"
                " say in nwb.json where it is"
            )
        found, walked = inner, f"{walked}/{part}"
    return found


def kind(group: Any) -> str:
    """The neurodata type of a group; empty if it is none."""
    name = group.attrs.get("neurodata_type", "") if hasattr(group, "attrs") else ""
    return name.decode() if isinstance(name, bytes) else str(name)


def text(values: Iterable[Any]) -> list[str]:
    """Entries of a column as text."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def times_of(series: Any, samples: int, source: str) -> np.ndarray:
    """The times of the `samples` of a TimeSeries, from its timestamps or starting time and rate.

    Raises:
        DataError: it has neither.
    """
    times, begin = series.get("timestamps"), series.get("starting_time")
    if times is not None:
        return np.asarray(times[:])
    if begin is not None:
        rate = float(begin.attrs.get("rate", np.nan))
        if rate > 0:
            start = float(begin[()])
            return start + np.arange(samples) / rate
    raise DataError(f"{source}: neither timestamps nor starting_time and rate")


class Series:
    """A TimeSeries of numbers [n] or [n, k], of which rows are read as they are needed.

    Attributes:
        source: file and path, for messages.
        path: in the file.
        columns: k.
        times: as stored [n].
        offset: seconds from them to the stimulus's clock.
        clock: the times on that.
    """

    def __init__(self, group: Any, source: str, offset: float) -> None:
        """Read the times and check the shape.

        Raises:
            DataError: it is no series of numbers with a time for each row.
        """
        self.source, self.offset = source, offset
        self.path = str(getattr(group, "name", ""))
        data = group.get("data") if hasattr(group, "keys") else None
        if data is None:
            raise DataError(f"{source}: no time series: it has no data")
        self._data = data
        if data.dtype.kind not in "fiu" or data.ndim not in (1, 2):
            raise DataError(
                f"{source}: data are {data.dtype} {list(data.shape)}, not numbers [time, channel]"
            )
        self.times = times_of(group, data.shape[0], source)
        self.clock = Clock(self.times, source, offset)
        if len(self.times) != data.shape[0]:
            raise DataError(
                f"{source}: unequal lengths: {data.shape[0]} rows of data,"
                f" {len(self.times)} times; is time the first axis?"
            )
        self.columns = 1 if data.ndim == 1 else data.shape[1]
        # The standard's formula: value = data * conversion + offset, in the series's unit.
        self._conversion = float(data.attrs.get("conversion", 1.0))
        self._offset = float(data.attrs.get("offset", 0.0))

    def rows(self, part: slice) -> np.ndarray:
        """The values [m, k] of some samples, in the series's unit.

        Raises:
            DataError: the file cannot be read.
        """
        values = self._read(part)
        return values.reshape(len(values), self.columns)

    def traces(self, part: slice) -> np.ndarray:
        """The values [n, m] of some columns, in the series's unit.

        Raises:
            DataError: the file cannot be read.
        """
        if self._data.ndim == 1:
            return self.rows(slice(None))[:, part]
        return self._read((slice(None), part))

    def _read(self, part: Any) -> np.ndarray:
        try:
            values = np.asarray(self._data[part], np.float64)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.source}: cannot read: {error}") from error
        return values * self._conversion + self._offset


class Frames:
    """The frames [n, H, W] of an ImageSeries and their times.

    Attributes:
        source: file and path, for messages.
        clock: the frames' times.
    """

    def __init__(
        self, group: Any, source: str, folder: Path, stimulus_file: str | None, transposed: bool
    ) -> None:
        """Find the frames, in the series or in a .npy file of the folder.

        Raises:
            DataError: they are outside and not in a .npy file, or not uint8, or of another
                number than the times.
        """
        self._transposed = transposed and stimulus_file is None
        if stimulus_file is not None:
            path = folder / stimulus_file
            shape, dtype = npy.header(path)
            self.source = str(path)
            self._data: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif "external_file" in group:
            named = ", ".join(text(group["external_file"][:]))
            raise DataError(
                f"{source}: its frames are in {named}; decode that once, beside nwb.json, with"
                " `fmcortex decode FILE --to NAME.npy`, and name it there as stimulus_file"
            )
        else:
            self.source, self._data = source, child(group, "data", source)
            shape, dtype = self._data.shape, self._data.dtype
        if dtype != np.uint8 or len(shape) != 3 or 0 in shape:
            raise DataError(
                f"{self.source}: {dtype} {list(shape)}, not uint8 [frame, height, width]"
            )
        self.clock = Clock(times_of(group, shape[0], source), source)
        if self.clock.samples != shape[0]:
            raise DataError(
                f"{self.source}: unequal lengths: {shape[0]} frames, {self.clock.samples} times"
                f" of {source}"
            )

    def rows(self, part: slice) -> np.ndarray:
        """Some frames, uint8 [m, H, W].

        Raises:
            DataError: the file cannot be read.
        """
        try:
            frames = np.array(self._data[part])
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.source}: cannot read: {error}") from error
        return np.ascontiguousarray(frames.transpose(0, 2, 1)) if self._transposed else frames
