"""Parts of an NWB 2 file, opened with h5py from a path or through fsspec from a URL."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import npy
from data_prep.readers.clock import Clock
from data_prep.readers.hdf5_data import Data
from data_prep.readers.hdf5_links import UNREADABLE, member
from data_prep.readers.nwb_columns import text
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
        raise DataError(
            f"{location}: NWB needs h5py: pip install -e '.[nwb]' in the checkout"
        ) from error
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  Zstandard, Blosc and others, by being imported
    try:
        if "://" not in location:
            return h5py.File(location, "r")
        return h5py.File(RemoteFile(location), "r")
    except FileNotFoundError as error:
        raise DataError(f"{location}: file is missing") from error
    except StorageError:
        raise
    except Exception as error:  # what is no HDF5 raises many kinds
        said = " ".join(str(error).split())
        raise DataError(f"{location}: cannot open as HDF5: {said}") from error


def number(attributes: Any, name: str, default: float, source: str) -> float:
    """An attribute that is one finite number.

    Raises:
        DataError: it is something else.
    """
    try:
        value = attributes.get(name, default)
        found = float(np.asarray(value).item())
    except UNREADABLE as error:
        raise DataError(f"{source}: its attribute {name} is no number") from error
    if not np.isfinite(found):
        raise DataError(f"{source}: its attribute {name} is {found}")
    return found


def times_of(series: Any, samples: int, source: str) -> np.ndarray:
    """The times of the `samples` of a TimeSeries, from its timestamps or starting time and rate.

    Raises:
        DataError: it has neither, or they are no numbers.
    """
    times = member(series, "timestamps", source)
    if times is not None:
        return Data(times, f"{source}/timestamps")[:]
    begin = member(series, "starting_time", source)
    if begin is None:
        raise DataError(f"{source}: neither timestamps nor starting_time and rate")
    where = f"{source}/starting_time"
    start = Data(begin, where)
    if start.shape != () or start.dtype.kind not in "fiu":
        raise DataError(f"{where}: is {start.dtype} {list(start.shape)}, not a number")
    rate = number(start.attrs, "rate", 0.0, where)
    first = float(start[:])
    if not (rate > 0 and np.isfinite(first)):
        raise DataError(f"{where}: {first} s at {rate:g} samples a second tells no times")
    return first + np.arange(samples) / rate


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
        self.path = str(group.name)
        found = member(group, "data", source)
        if found is None:
            raise DataError(f"{source}: no time series: it has no data")
        self._data = data = Data(found, f"{source}/data")
        if data.dtype.kind not in "fiu" or len(data.shape) not in (1, 2):
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
        self.columns = 1 if len(data.shape) == 1 else data.shape[1]
        # The standard's formula: value = data * conversion + offset, in the series's unit.
        self._conversion = number(data.attrs, "conversion", 1.0, data.source)
        self._offset = number(data.attrs, "offset", 0.0, data.source)
        if self._conversion == 0:
            raise DataError(f"{data.source}: its attribute conversion is 0, so that all values are")

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
        if len(self._data.shape) == 1:
            return self.rows(slice(None))[:, part]
        return self._read((slice(None), part))

    def _read(self, part: Any) -> np.ndarray:
        values = np.asarray(self._data[part], np.float64)
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
        elif (outside := member(group, "external_file", source)) is not None:
            files = Data(outside, f"{source}/external_file")[:]
            named = ", ".join(text(np.atleast_1d(files), source))
            raise DataError(
                f"{source}: its frames are in {named}; decode that once, beside nwb.json, with"
                " `fmcortex decode FILE --to NAME.npy`, and name it there as stimulus_file"
            )
        else:
            found = member(group, "data", source)
            if found is None:
                raise DataError(f"{source}: has neither data nor an external_file")
            self.source, self._data = source, Data(found, f"{source}/data")
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
        frames = np.array(self._data[part])
        return np.ascontiguousarray(frames.transpose(0, 2, 1)) if self._transposed else frames
