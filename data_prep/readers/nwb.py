"""Reader of NWB 2 files with two-photon recordings, such as the MICrONS release, DANDI 000402.

One folder a session: one `.nwb` file, and where the defaults below do not fit, `nwb.json` (see
`data_prep.readers.nwb_schema`; it may also give the URL of a file elsewhere). Expected of the
file, in the names of that release::

    processing/ophys/Fluorescence/RoiResponseSeries<i>    one a field: data [n, ROIs], timestamps,
                                                          rois, a region of a PlaneSegmentation
    its PlaneSegmentation             id, and any columns of one entry a ROI: mask_type, area, ...
    acquisition/EyeTracking/eye_position               [n, 2] x, y
    acquisition/PupilTracking/pupil_major_radius       [n]
    acquisition/treadmill_velocity                     [n]
    acquisition/<any>                 one ImageSeries of the whole scan, with a time a frame
    intervals/{Clip,Monet2,Trippy}    start_time, stop_time, id, condition_hash

A series has timestamps, or starting_time and rate. Each field is interpolated on its own clock.
A trial's frames are those of the ImageSeries from half a frame before start_time to half a frame
before stop_time. Trials of one condition of a table are showings of one clip: those that agree in
length within 0.1 s have as many frames as the shortest of them, and one that was broken off is left
out. A condition that is shown often is a repeated video of the test tier (`repeats_for_test`),
unless a column tells. Columns that are enumerated are read as the text that they stand for.

A file whose parts are in others of its folder (links, virtual datasets, raw files) is read as one,
if all are there; what was never written to it is refused, since HDF5 reads it as zeros.

What the release lacks: deconvolved traces (its Fluorescence is raw: `fmcortex deconvolve` makes
activity of it once, in the folder `deconvolved`, or a lab's own is named as `responses`), areas
of the neurons, the imaging delays of the fields (`field_delays_seconds`), and the stimulus itself,
whose video lies beside the file and is decoded once to a .npy file (`stimulus_file`).

A neuron's unit_id is the column unit_id of its segmentation, else the id of its ROI, and where
ids occur in several fields, 1,000,000 times its field (from 1, in the order of the series' names)
plus that id. The neuron table has `field` and `roi_id` too, and `z` from the imaging plane.

Of the signals and frames only the rows that a trial needs are read. Of a file at a URL the job
does not notice when it changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from data_prep.readers import nwb_file
from data_prep.readers.clock import Clock, Margin, behaviour_margin
from data_prep.readers.deconvolved import DECONVOLVED, DeconvolvedSeries
from data_prep.readers.hdf5_data import Data
from data_prep.readers.hdf5_links import child, find, is_group, member, readable
from data_prep.readers.nwb_columns import kind, text
from data_prep.readers.nwb_rois import Field, Responses, deconvolved, read_fields, read_neurons
from data_prep.readers.nwb_schema import NWB_JSON, nwb_source, read_nwb_json
from data_prep.readers.nwb_trials import read_trials
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef, animal_of
from data_prep.settings import PrepSettings
from fmcortex.data.manifest import DOMAINS, Tier
from fmcortex.errors import DataError


class NwbReader:
    """Reads one session of an NWB file."""

    layout = "nwb"

    def __init__(self, folder: Path, settings: PrepSettings | None = None) -> None:
        """Open the file and read its tables and times.

        Args:
            folder: the session's folder.
            settings: tell how far beyond a trial behaviour is needed; the defaults if None.

        Raises:
            DataError: something is missing or malformed; the message names the file and the path
                in it.
        """
        self._margin = behaviour_margin(settings or PrepSettings())
        with readable(folder):
            self._open(folder)

    def _open(self, folder: Path) -> None:
        path = folder / NWB_JSON
        self._session = session = read_nwb_json(folder)
        for domain in session.intervals.values():
            if domain not in (*DOMAINS, "unknown"):
                known = ", ".join(DOMAINS)
                raise DataError(f"{path}: unknown domain {domain!r}; known: {known}, unknown")
        self._source = nwb_source(folder, session)
        self._file = nwb_file.open_nwb(self._source)
        self._fields, self._responses = self._read_responses(folder)
        self._position = self._series("pupil_position", "pupil", 2)
        self._radius = self._series("pupil_radius", "pupil", 1)
        self._treadmill = self._series("treadmill", "treadmill", 1)
        self._frames = self._open_frames(folder)
        self._shown = read_trials(self._file, self._source, session, self._frames.clock)
        self.info = SessionInfo(
            name=folder.name,
            animal=self._subject() or animal_of(folder.name),
            source=self._source,
            neurons=sum(len(field.columns) for field in self._fields),
            perspectives=("pupil_x", "pupil_y"),
            modulations=("pupil_radius", "treadmill_speed"),
            nan_is_missing=False,
        )

    def _read_responses(self, folder: Path) -> tuple[list[Field], list[Responses]]:
        session = self._session
        path = session.responses or session.fluorescence
        fields = read_fields(self._file, self._source, session, path)
        if session.responses is not None:
            return fields, [Responses(field.series, field.columns) for field in fields]
        if not (folder / DECONVOLVED).is_dir():
            raise DataError(
                f"{self._source}: {path} is raw fluorescence; run `fmcortex deconvolve {folder}`"
                f" once, or name in {NWB_JSON} the responses to take, be it these"
            )
        return fields, deconvolved(fields, folder)

    def _subject(self) -> str | None:
        path = "general/subject/subject_id"
        found = find(self._file, path, self._source)
        if found is None:
            return None
        where = f"{self._source}: {path}"
        data = Data(found, where)
        if data.shape != () or data.dtype.kind not in "SOiu":
            raise DataError(f"{where}: is {data.dtype} {list(data.shape)}, not a text")
        return text([data[:].item()], where)[0]

    def _series(self, setting: str, signal: str, columns: int) -> nwb_file.Series:
        path = getattr(self._session, setting)
        group = child(self._file, path, self._source)
        offset = self._session.offsets_seconds.get(cast(Any, signal), 0.0)
        series = nwb_file.Series(group, f"{self._source}: {path}", offset)
        if series.columns != columns:
            raise DataError(f"{series.source}: {series.columns} columns, not {columns}")
        return series

    def _open_frames(self, folder: Path) -> nwb_file.Frames:
        session, path = self._session, self._session.stimulus
        if path is None:
            found = self._image_series()
            if len(found) != 1:
                raise DataError(
                    f"{self._source}: {len(found)} ImageSeries in acquisition and"
                    f" stimulus/presentation{': ' if found else ''}{', '.join(found)};"
                    f" say in {NWB_JSON} which is the stimulus"
                )
            path = found[0]
        return nwb_file.Frames(
            child(self._file, path, self._source),
            f"{self._source}: {path}",
            folder,
            session.stimulus_file,
            session.stimulus_axes == "frame,width,height",
        )

    def _image_series(self) -> list[str]:
        """The paths of all ImageSeries where the stimulus may be."""
        paths = []
        for parent in ("acquisition", "stimulus/presentation"):
            group = find(self._file, parent, self._source)
            for name in sorted(group) if is_group(group) else []:
                try:
                    series = member(group, name, self._source)
                except DataError as error:
                    # It may be the stimulus, and the only other ImageSeries a video of the eye.
                    raise DataError(
                        f"{error}; or say in {NWB_JSON} which is the stimulus"
                    ) from error
                if kind(series) == "ImageSeries":
                    paths.append(f"{parent}/{name}")
        return paths

    def trials(self) -> list[TrialRef]:
        """The rows of the interval tables in the order of time; see `Reader.trials`."""
        return [
            TrialRef(trial.key, cast(Tier, trial.tier), trial.domain, trial.video, trial.left_out)
            for trial in self._shown
            if trial.tier != "none"
        ]

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one trial and what its signals hold around it; see `Reader.read`."""
        trial = next(trial for trial in self._shown if trial.key == ref.key)
        part = slice(trial.first, trial.first + trial.frames)
        times = self._frames.clock.times[part]
        start, stop = float(times[0]), float(times[-1])
        responses = []
        for field in self._responses:
            field.series.clock.check_meets(start, stop, ref.key)
            whole = _signal(field.series, start, stop, Margin())
            responses.append(Signal(whole.values[:, field.columns], whole.source, whole.times))
        behaviour = [
            _signal(series, start, stop, self._margin)
            for series in (self._position, self._radius, self._treadmill)
        ]
        return RawTrial(
            ref=ref,
            stimulus=self._frames.clock.rows(self._frames.rows, part),
            stimulus_source=self._frames.source,
            responses=tuple(responses),
            perspectives=(behaviour[0],),
            modulations=(behaviour[1], behaviour[2]),
            frame_times=times - start,
            onset=start,
        )

    def neurons(self) -> dict[str, np.ndarray]:
        """The columns that all the fields' segmentations have; see `Reader.neurons`."""
        with readable(self._source):
            return read_neurons(self._fields)


def _signal(
    series: nwb_file.Series | DeconvolvedSeries, start: float, stop: float, margin: Margin
) -> Signal:
    clock: Clock = series.clock
    part = clock.part(start, stop, margin)
    return Signal(clock.rows(series.rows, part), series.source, clock.times[part] - start)
