"""The raw fluorescence of a session, where its layout has a place for it.

* `nwb`: the RoiResponseSeries that `nwb.json` calls `fluorescence`; the activity goes to
  `deconvolved/` in the session's folder;
* `signals`: the signal `fluorescence`, like the responses in shape and times; the activity is the
  signal `responses`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from data_prep.fingerprint import file_sha256
from data_prep.fingerprint import source_files as folder_files
from data_prep.readers import nwb_file
from data_prep.readers.clock import Clock
from data_prep.readers.deconvolved import DECONVOLVED, RECORD, SourceRecord
from data_prep.readers.find import layout_of
from data_prep.readers.hdf5_links import readable
from data_prep.readers.nwb_file import Series
from data_prep.readers.nwb_rois import read_fields
from data_prep.readers.nwb_schema import NWB_JSON, nwb_source, read_nwb_json
from data_prep.readers.signal_files import SignalFile, signal_paths
from data_prep.readers.signals_schema import FLUORESCENCE, RESPONSES
from fmcortex import storage
from fmcortex.errors import DataError
from fmcortex.names import check_name


@dataclass(frozen=True)
class Traces:
    """The fluorescence of one field.

    Attributes:
        name: the folder of its activity, "." where there is one field only.
        source: where it comes from, for messages.
        origin: where it comes from, below the session's folder.
        times: seconds [n], as stored, of the samples that have one.
        columns: those of its data that are neurons, increasing ints [k].
        read: gives some columns of its data, as float64 [n, m].
    """

    name: str
    source: str
    origin: str
    times: np.ndarray
    columns: np.ndarray
    read: Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class Fluorescence:
    """The fluorescence of a session.

    Attributes:
        target: the folder that its activity goes to.
        sources: the files it comes from, paths or URLs.
        traces: of each field.
        close: closes what is open of them.
    """

    target: Path
    sources: list[str]
    traces: list[Traces]
    close: Callable[[], None] = lambda: None


def open_fluorescence(folder: Path) -> Fluorescence | str:
    """The fluorescence of the session in `folder`, or why there is nothing to be deconvolved.

    Raises:
        DataError: it is malformed, or no session.
    """
    layout = layout_of(folder)
    if layout == "nwb":
        return _of_nwb(folder)
    if layout == "signals":
        return _of_signals(folder)
    if layout is None:
        raise DataError(f"{folder}: no session of a known layout")
    return f"recordings of the layout {layout} have activity already"


def _of_nwb(folder: Path) -> Fluorescence | str:
    session = read_nwb_json(folder)
    if session.responses is not None:
        return f"{NWB_JSON} names its responses: {session.responses}"
    source = nwb_source(folder, session)
    file = nwb_file.open_nwb(source)
    try:
        with readable(source):
            fields = read_fields(file, source, session, session.fluorescence)
        for field in fields:
            check_name(field.name, f"{source}: series")
    except DataError:
        file.close()
        raise
    traces = []
    for field in fields:
        series = field.series
        origin = f"{_public(source, folder)}: {series.path}"
        traces.append(_traces(field.name, origin, series, series.clock, field.columns))
    return Fluorescence(folder / DECONVOLVED, [source], traces, file.close)


def _of_signals(folder: Path) -> Fluorescence | str:
    signals = folder / "signals"
    there = signal_paths(signals, RESPONSES)
    if there and not (there == [signals / RESPONSES] and (there[0] / RECORD).is_file()):
        return "it has responses of its own"
    if not signal_paths(signals, FLUORESCENCE):
        if there:
            return f"its {FLUORESCENCE} is no longer there"
        raise DataError(f"{signals}: no signal {FLUORESCENCE}, nor {RESPONSES}")
    file = SignalFile(signals, FLUORESCENCE)
    if file.columns == 0:
        raise DataError(f"{file.source}: no neurons: values have no columns")
    clock = Clock(file.times, file.source)
    path = signal_paths(signals, FLUORESCENCE)[0]
    files = [path] if path.is_file() else folder_files(path)
    sources = [str(path) for path in files]
    origin, columns = _public(file.source, folder), np.arange(file.columns)
    traces = _traces(".", origin, file, clock, columns)
    return Fluorescence(signals / RESPONSES, sources, [traces])


def _traces(
    name: str, origin: str, series: Series | SignalFile, clock: Clock, columns: np.ndarray
) -> Traces:
    def read(some: slice) -> np.ndarray:
        return clock.timed(series.traces(some))

    return Traces(name, series.source, origin, clock.stored, columns, read)


def source_files(fluorescence: Fluorescence, folder: Path) -> dict[str, SourceRecord]:
    """Size and SHA-256 of the files, by their paths in the session's folder.

    Of one at a URL only the size, since reading all of it may take hours.

    Raises:
        DataError: one cannot be read.
    """
    found = {}
    for source in fluorescence.sources:
        name = _public(source, folder)
        if "://" in source:
            found[name] = SourceRecord(bytes=storage.size(source), sha256=None)
        else:
            file = file_sha256(Path(source))
            found[name] = SourceRecord(bytes=file.bytes, sha256=file.sha256)
    return found


def _public(source: str, folder: Path) -> str:
    """A path below the session's folder, or a URL without what only its user should know."""
    if "://" in source:
        parts = urlsplit(source)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    path = Path(source)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else source
