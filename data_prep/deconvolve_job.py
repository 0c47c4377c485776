"""`fmcortex deconvolve`: from the fluorescence of recordings to their activity, beside it.

The neurons of a field are deconvolved in blocks, here or as Ray tasks. Each block is kept in a
hidden folder until all are there, so that a run that was killed is taken up where it was; then
they are put together, and the folder of the activity appears whole, with its record.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import deconvolve_blocks as on_disk
from data_prep.deconvolution import METHOD, DeconvolutionSettings, deconvolve
from data_prep.parallel import Task, raise_failures, run
from data_prep.readers.deconvolved import (
    RECORD,
    FieldRecord,
    Record,
    SourceRecord,
    check_only_ours,
    is_whole,
    read_record,
)
from data_prep.readers.find import find_sessions
from data_prep.readers.fluorescence import Fluorescence, open_fluorescence, source_files
from fmcortex import __version__, storage
from fmcortex.errors import ConfigError, DataError, FmcortexError, StorageError, WorkerError
from fmcortex.lock import Lock


def deconvolve_sessions(
    source: str,
    settings: DeconvolutionSettings | None = None,
    workers: int = 0,
    progress: Callable[[str], None] | None = None,
    overwrite: bool = False,
    track: Callable[[int, int, str], None] | None = None,
    made: Callable[[Path], None] | None = None,
    skip_unknown: bool = False,
    within: AbstractContextManager[Any] | None = None,
) -> None:
    """Deconvolve the recordings at `source` that have fluorescence and no activity yet.

    Args:
        source: a local folder of session folders, or one session's folder.
        settings: how; the defaults if None.
        workers: tasks at a time, over blocks of neurons, of the Ray that is connected; 0 works in
            this process.
        progress: called with one line as each session is done.
        overwrite: make activity again that was made with other settings.
        track: called with the neurons done, those known of so far, and what is being done.
        made: called with the folder of each session whose activity was made here, now or before.
        skip_unknown: pass over folders beside the sessions that are of no known layout; otherwise
            they are refused before anything is done.
        within: entered once there is something to do: what connects Ray, such as `ray_session`.

    Raises:
        ConfigError: activity is there that was made with other settings.
        DataError: the fluorescence of one or more sessions is bad; the others are done.
        StorageError: a session's folder cannot be written.
    """
    settings = settings or DeconvolutionSettings()
    folders = find_sessions(source, settings.sessions, skip_unknown, progress)
    say = progress or (lambda line: None)
    count = _Count(track or (lambda done, total, what: None))
    note = made or (lambda folder: None)
    jobs = [DeconvolutionJob(folder, settings, overwrite, say, count, note) for folder in folders]
    try:
        with within or nullcontext():
            run(jobs, workers)
    finally:
        for job in jobs:
            job.release()
    raise_failures(jobs)


class _Count:
    """Neurons done and to do, over all sessions."""

    def __init__(self, track: Callable[[int, int, str], None]) -> None:
        self._track = track
        self._done = self._total = 0

    def add(self, total: int, done: int, what: str) -> None:
        self._total += total
        self._done += done
        self._track(self._done, self._total, what)


def look(folder: str) -> dict[str, SourceRecord]:
    """The first task: the files of a session's fluorescence."""
    with closing(_fluorescence(folder)) as fluorescence:
        return source_files(fluorescence, Path(folder))


def block_task(
    folder: str, number: int, first: int, last: int, settings: DeconvolutionSettings, parts: str
) -> int:
    """Deconvolve neurons `first` to `last` of field `number`; how many that are."""
    with closing(_fluorescence(folder)) as fluorescence:
        traces = fluorescence.traces[number]
        columns = traces.columns[first:last]
        start = int(columns[0])
        raw = traces.read(slice(start, int(columns[-1]) + 1))[:, columns - start]
    activity = np.empty(raw.shape, np.float32)
    fits = np.empty((len(columns), 3))
    for place, column in enumerate(columns):
        trace = np.asarray(raw[:, place], np.float64)
        trace[~np.isfinite(trace)] = np.nan
        try:
            found = deconvolve(trace, traces.times, settings)
        except (ValueError, ZeroDivisionError, FloatingPointError, OverflowError) as error:
            raise DataError(
                f"{traces.source}: column {column} cannot be deconvolved: {error}"
            ) from error
        activity[:, place] = found.values
        fits[place] = found.decay, found.noise, found.signal
    on_disk.write_block(Path(parts), number, first, activity, fits)
    return len(columns)


def finish_task(
    folder: str, settings: DeconvolutionSettings, sources: dict[str, SourceRecord], parts: str
) -> str:
    """Put the blocks together; a line on the result.

    Raises:
        DataError: samples of some neurons are missing, and of others not.
    """
    with closing(_fluorescence(folder)) as fluorescence:
        fits = _put_together(fluorescence, settings, sources, Path(parts))
    rates = [1 / float(np.median(np.diff(traces.times))) for traces in fluorescence.traces]
    return _summary(Path(folder).name, np.concatenate(fits), rates)


def _put_together(
    fluorescence: Fluorescence,
    settings: DeconvolutionSettings,
    sources: dict[str, SourceRecord],
    parts: Path,
) -> list[np.ndarray]:
    """Make the activity's folder of the blocks; the fit of each field's neurons."""
    whole = parts / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    fits = []
    for number, traces in enumerate(fluorescence.traces):
        blocks, fit = on_disk.read_blocks(parts, number, traces)
        leave_out = settings.missing_neurons == "leave_out"
        kept, taken = on_disk.kept_samples(blocks, traces, leave_out)
        fit[~taken] = np.nan
        field = whole / traces.name
        field.mkdir(parents=True, exist_ok=True)
        on_disk.write_rows(field / "values.npy", blocks, np.flatnonzero(kept), taken)
        on_disk.save(field / "times.npy", np.asarray(traces.times)[kept])
        fits.append(fit)
    on_disk.write_table(whole / "neurons.csv", fluorescence.traces, fits)
    record = Record(
        tool_version=__version__,
        oasis_version=_oasis_version(),
        method=METHOD,
        settings=settings.content(),
        sources=sources,
        fields=_fields(fluorescence),
    )
    storage.write_bytes(str(whole / RECORD), record.model_dump_json(indent=1).encode())
    on_disk.put_in_place(whole, fluorescence.target)
    shutil.rmtree(parts, ignore_errors=True)
    return fits


class DeconvolutionJob:
    """A session's state in the driver.

    Args:
        folder: of the session.
        settings: of the deconvolution.
        overwrite: whether to make the activity again where it was made with other settings.
        say: is told a line when the session is done, or failed.
        count: is told of neurons.
        made: is called with the folder when its activity is there.
    """

    def __init__(
        self,
        folder: Path,
        settings: DeconvolutionSettings,
        overwrite: bool,
        say: Callable[[str], None],
        count: _Count,
        made: Callable[[Path], None],
    ) -> None:
        self.folder, self.name = folder, folder.name
        self.error: FmcortexError | None = None
        self._made = made
        self._settings, self._overwrite = settings, overwrite
        self._say, self._count = say, count
        self._parts: Path | None = None
        self._held = ExitStack()  # the lock on the activity, from when it is begun

    def start(self) -> list[Task]:
        """Look at the fluorescence, and at what was made of it before.

        Raises:
            ConfigError: activity is there that was made with other settings.
            DataError: the fluorescence is malformed.
        """
        found = open_fluorescence(self.folder)
        if isinstance(found, str):
            self._say(f"{self.name}: left alone: {found}")
            return []
        found.close()  # the tasks open it where they run
        self._found, self._record = found, None
        if found.target.exists():
            self._record = read_record(found.target)
            mine, theirs = self._settings.content(), self._record.settings
            changed = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
            if self._record.method != METHOD:
                changed.append("version of the estimates")
            if changed and not self._overwrite:
                raise ConfigError(
                    f"{found.target}: was made with another {', '.join(changed)}; remove it, or"
                    " run with --overwrite"
                )
            if changed:
                self._record = None
        self._count.add(0, 0, f"{self.name}: looking at the fluorescence")
        return [Task(look, (str(self.folder),), self._looked)]

    def _looked(self, sources: dict[str, SourceRecord]) -> list[Task]:
        fields, target, record = _fields(self._found), self._found.target, self._record
        same = record is not None and (record.sources, record.fields) == (sources, fields)
        if same and record is not None and is_whole(target, record):
            return self._finished(f"{self.name}: up to date")
        if target.exists():
            check_only_ours(target, read_record(target))
        lock = Lock(
            str(target.parent), "deconvolve", self._say, "leave it to that", f".{target.name}.lock"
        )
        self._held.enter_context(lock)
        self._sources = sources
        parts = target.with_name(f".{target.name}.parts")
        files = {name: source.model_dump() for name, source in sources.items()}
        settings = self._settings.content()
        series = {name: field.model_dump() for name, field in fields.items()}
        what = {"settings": settings, "oasis": _oasis_version(), "method": METHOD}
        inputs = {**what, "sources": files, "fields": series}
        on_disk.begin(parts, inputs)
        self._parts = parts  # from now on it is ours to remove
        tasks = []
        for number, traces in enumerate(self._found.traces):
            for first, last in on_disk.blocks_of(traces):
                done = on_disk.has_block(self._parts, number, first)
                self._count.add(last - first, (last - first) * done, self.name)
                if not done:
                    arguments = (str(self.folder), number, first, last, self._settings)
                    tasks.append(Task(block_task, (*arguments, str(self._parts)), self._block))
        self._left = len(tasks)
        return tasks or self._finish()

    def _block(self, neurons: int) -> list[Task]:
        self._count.add(0, neurons, self.name)
        self._left -= 1
        return [] if self._left else self._finish()

    def _finish(self) -> list[Task]:
        arguments = (str(self.folder), self._settings, self._sources, str(self._parts))
        return [Task(finish_task, arguments, self._finished)]

    def release(self) -> None:
        """Let other processes make the activity."""
        self._held.close()

    def _finished(self, line: str) -> list[Task]:
        self.release()
        self._say(line)
        self._made(self.folder)
        return []

    def failed(self, error: FmcortexError) -> None:
        """Keep the error; of fluorescence that is bad, leave nothing behind."""
        self.error = error
        self._say(f"{self.name}: failed: {error}")
        again = isinstance(error, StorageError | WorkerError)
        if self._parts is not None and not again:
            shutil.rmtree(self._parts, ignore_errors=True)
        self.release()


def _fluorescence(folder: str) -> Fluorescence:
    found = open_fluorescence(Path(folder))
    if isinstance(found, str):
        raise DataError(f"{folder}: {found}")
    return found


def _fields(fluorescence: Fluorescence) -> dict[str, FieldRecord]:
    """What is deconvolved of which fields."""
    return {
        traces.name: FieldRecord(
            source=traces.origin, samples=len(traces.times), columns=traces.columns.tolist()
        )
        for traces in fluorescence.traces
    }


def _oasis_version() -> str:
    try:
        return version("oasis-deconv")
    except PackageNotFoundError:
        return "unknown"


def _summary(name: str, fits: np.ndarray, rates: list[float]) -> str:
    decays, noise, signal = fits.T
    known = decays[np.isfinite(decays)]
    line = f"{name}: {len(fits)} neurons at {np.median(rates):.3g} Hz"
    if len(known):
        low, middle, high = np.percentile(known, [10, 50, 90])
        ratio = np.median(signal[noise > 0] / noise[noise > 0]) if (noise > 0).any() else np.nan
        line += f", decay {middle:.2f} s ({low:.2f} to {high:.2f}), signal to noise {ratio:.2f}"
    left_out = int(np.isnan(noise).sum())
    constant = len(decays) - len(known) - left_out
    if constant:
        line += f", {constant} constant"
    if left_out:
        line += f", {left_out} left out; give `fmcortex prep` missing_neurons=leave_out, too"
    return line
