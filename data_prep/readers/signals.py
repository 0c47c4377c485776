"""Reader of the signals layout: rates and timestamps as they were recorded, for any lab.

One folder a session. Every signal is one array for the whole recording, with the time of every
sample in seconds; a trial says when its video was shown::

    session.json                   see `data_prep.readers.signals_schema`; tells the layout
    neurons.csv or neurons.npz     columns [U]: unit_id (integers), and any others, such as
                                   area, layer, x, y, z (um), delay_seconds
    trials.csv                     columns trial, tier, domain, video, start
    signals/responses              values [n, U], times [n]; or signals/fluorescence, of which
                                   `fmcortex deconvolve` makes them
    signals/<name>                 values [n, k], times [n] for each signal of session.json
    videos/<video>.npy             uint8 [T, H, W], grey levels 0 to 255, shared by its trials
    frames/<trial>.npy             seconds [T], where the frames are not evenly spaced

A signal is `<name>.npz` (not compressed), a zarr group `<name>.zarr`, or a folder `<name>/` of
`values.npy` and `times.npy`; only the part that a trial needs is read. NaN is a missing sample:
in behaviour a gap, in responses an error. A sample whose time is NaN is left out, and samples that
lack from the times are a gap: in behaviour, and in responses, whose trials there are left out.

`tier` is train, validation, test, or none for a trial that is not used; `domain` one of the
prepared dataset's or unknown. `start` is the time of the first frame, in seconds; it is there if
and only if session.json has a `frame_rate`. Trials of one video are its repeats.

A neuron's `delay_seconds` is when, after the time of a sample, that neuron was sampled: the
imaging delay of its field within the scan. Its response at a stimulus frame is interpolated
between its own sample times. A signal's `offset_seconds` is added to its times.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from data_prep.readers import npy
from data_prep.readers.clock import Clock, Margin, behaviour_margin
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef, animal_of
from data_prep.readers.signal_files import SignalFile, signal_paths
from data_prep.readers.signals_schema import FLUORESCENCE, RESPONSES, read_session_file
from data_prep.readers.tables import read_columns, read_rows
from data_prep.settings import PrepSettings
from fmcortex.data.manifest import DOMAINS, Tier
from fmcortex.errors import DataError
from fmcortex.names import check_key, check_name
from fmcortex.plain_numbers import number

_TIERS = ("train", "validation", "test", "none")
_DELAY = "delay_seconds"
#: Columns of the neuron table that are names: a layer 4 is no number.
_NAMES = ("area", "layer")
_LONGEST_DELAY = 1.0


class SignalsReader:
    """Reads one session of the signals layout."""

    layout = "signals"

    def __init__(self, folder: Path, settings: PrepSettings | None = None) -> None:
        """Read the session's description, its tables and the times of its signals.

        Args:
            folder: the session's folder.
            settings: tell how far beyond a trial behaviour is needed; the defaults if None.

        Raises:
            DataError: a file is missing or malformed; the message names it.
        """
        self._folder = folder
        self._margin = behaviour_margin(settings or PrepSettings())
        self._session = session = read_session_file(folder / "session.json")
        if session.name not in (None, folder.name):
            raise DataError(
                f"{folder / 'session.json'}: name is {session.name!r}, the folder's is"
                f" {folder.name!r}; rename one of them"
            )
        for name in session.signals:
            check_name(name, f"{folder / 'session.json'}: signal")
        self._neurons = self._read_neurons()
        if signal_paths(folder / "signals", FLUORESCENCE) and not signal_paths(
            folder / "signals", RESPONSES
        ):
            raise DataError(
                f"{folder / 'signals'}: has {FLUORESCENCE} and no {RESPONSES}; run `fmcortex"
                f" deconvolve {folder}` once"
            )
        opened = session.opened()
        self._signals = {name: SignalFile(folder / "signals", name) for name in opened}
        self._clocks = {
            name: Clock(self._signals[name].times, self._signals[name].source, entry.offset_seconds)
            for name, entry in opened.items()
        }
        self.info = SessionInfo(
            name=folder.name,
            animal=session.animal or animal_of(folder.name),
            source=str(folder),
            neurons=len(self._neurons["unit_id"]),
            perspectives=tuple(session.perspectives),
            modulations=tuple(session.modulations),
            nan_is_missing=False,
        )
        for name, entry in opened.items():
            signal = self._signals[name]
            columns = self.info.neurons if name == RESPONSES else len(entry.channels)
            if signal.columns != columns:
                what = "neurons are in the table" if name == RESPONSES else "channels are listed"
                raise DataError(
                    f"{signal.source}: {signal.columns} columns, but {columns} {what};"
                    " is time the first axis?"
                )
        self._delays = self._read_delays()
        self._starts: dict[str, float] = {}
        self._refs = self._read_trials()

    def _read_neurons(self) -> dict[str, np.ndarray]:
        paths = [self._folder / f"neurons.{suffix}" for suffix in ("csv", "npz")]
        found = [path for path in paths if path.exists()]
        if len(found) != 1:
            how = "both are there" if found else "file is missing"
            raise DataError(f"{paths[0]} or .npz: {how}; one table of neurons is needed")
        table = read_columns(found[0], _NAMES)
        if "unit_id" not in table:
            raise DataError(f"{found[0]}: no column unit_id")
        if not len(table["unit_id"]):
            raise DataError(f"{found[0]}: no neurons")
        self._neurons_path = found[0]
        return table

    def _read_delays(self) -> np.ndarray | None:
        delays = self._neurons.get(_DELAY)
        if delays is None:
            return None
        if delays.dtype.kind not in "fiu" or not np.all(np.abs(delays) <= _LONGEST_DELAY):
            raise DataError(
                f"{self._neurons_path}: {_DELAY} are not all numbers of seconds within"
                f" {_LONGEST_DELAY:g}"
            )
        return np.asarray(delays, np.float64)

    def _read_trials(self) -> list[TrialRef]:
        path = self._folder / "trials.csv"
        required = {"trial", "tier", "domain", "video"}
        even = self._session.frame_rate is not None
        rows = read_rows(path, required | ({"start"} if even else set()), set())
        refs: dict[str, TrialRef] = {}
        for row in rows:
            key, tier = row["trial"], row["tier"]
            check_key(key, f"{path}: trial")
            if key in refs:
                raise DataError(f"{path}: trial {key} occurs more than once")
            if tier not in _TIERS:
                raise DataError(
                    f"{path}: trial {key}: unknown tier {tier!r}; known: {', '.join(_TIERS)}"
                )
            if row["domain"] not in (*DOMAINS, "unknown"):
                raise DataError(
                    f"{path}: trial {key}: unknown domain {row['domain']!r};"
                    f" known: {', '.join(DOMAINS)}, unknown"
                )
            check_name(row["video"], f"{path}: trial {key}: video")
            if even:
                self._starts[key] = _seconds(row["start"], f"{path}: trial {key}: start")
            if tier != "none":
                refs[key] = TrialRef(key, cast(Tier, tier), row["domain"], row["video"])
        if not refs:
            raise DataError(f"{path}: no trials")
        return list(refs.values())

    def trials(self) -> list[TrialRef]:
        """The trials of `trials.csv`; see `Reader.trials`."""
        for ref in self._refs:
            for path in (self._video_path(ref), self._frames_path(ref)):
                if path is not None and not path.is_file():
                    raise DataError(f"{path}: file is missing (trial {ref.key})")
        return list(self._refs)

    def _video_path(self, ref: TrialRef) -> Path:
        return self._folder / "videos" / f"{ref.video}.npy"

    def _frames_path(self, ref: TrialRef) -> Path | None:
        if self._session.frame_rate is not None:
            return None
        return self._folder / "frames" / f"{ref.key}.npy"

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one trial and what its signals hold around it; see `Reader.read`."""
        path = self._video_path(ref)
        stimulus = npy.load_numbers(path, 3)
        if stimulus.dtype != np.uint8:
            raise DataError(f"{path}: {stimulus.dtype}, not uint8 [time, height, width]")
        if not len(stimulus):
            raise DataError(f"{path}: the video has no frames")
        start, frame_times = self._frame_times(ref, len(stimulus))
        span = start, start + float(frame_times[-1])
        self._check_recorded(ref, *span)
        slack = 0.0 if self._delays is None else float(np.abs(self._delays).max())
        responses = self._signal(RESPONSES, *span, Margin(seconds=slack))
        responses = Signal(responses.values, responses.source, responses.times, self._delays)
        return RawTrial(
            ref=ref,
            stimulus=stimulus,
            stimulus_source=str(path),
            responses=(responses,),
            perspectives=self._channels(self._session.perspectives, *span),
            modulations=self._channels(self._session.modulations, *span),
            frame_times=frame_times,
            onset=start,
        )

    def _check_recorded(self, ref: TrialRef, start: float, stop: float) -> None:
        delays = np.zeros(1) if self._delays is None else self._delays
        late, early = float(delays.max()), float(delays.min())
        self._clocks[RESPONSES].check_meets(start - late, stop - early, ref.key)

    def _frame_times(self, ref: TrialRef, frames: int) -> tuple[float, np.ndarray]:
        """The time of the first frame, and the times [T] of all since then, seconds."""
        if self._session.frame_rate is not None:
            return self._starts[ref.key], np.arange(frames) / self._session.frame_rate
        path = self._frames_path(ref)
        assert path is not None
        times = npy.load_numbers(path, 1)
        if len(times) != frames:
            raise DataError(
                f"{path}: unequal lengths: {len(times)} times, {frames} frames in the video"
                f" {ref.video}"
            )
        if not np.isfinite(times).all():
            raise DataError(f"{path}: time of frame {np.argmin(np.isfinite(times))} is not finite")
        if frames > 1 and not np.all(np.diff(times) > 0):
            at = int(np.argmax(np.diff(times) <= 0)) + 1
            raise DataError(f"{path}: times do not increase at frame {at}")
        times = times.astype(np.float64)
        return float(times[0]), times - times[0]

    def _signal(self, name: str, start: float, stop: float, margin: Margin) -> Signal:
        clock, signal = self._clocks[name], self._signals[name]
        part = clock.part(start, stop, margin)
        return Signal(clock.rows(signal.rows, part), signal.source, clock.times[part] - start)

    def _channels(self, channels: list[str], start: float, stop: float) -> tuple[Signal, ...]:
        """The channels in their order, as one signal for each run of those of one clock."""
        runs: list[tuple[str, list[int]]] = []
        for channel in channels:
            name, column = next(
                (name, entry.channels.index(channel))
                for name, entry in self._session.signals.items()
                if channel in entry.channels
            )
            if not runs or runs[-1][0] != name:
                runs.append((name, []))
            runs[-1][1].append(column)
        result = []
        for name, columns in runs:
            whole = self._signal(name, start, stop, self._margin)
            result.append(Signal(whole.values[:, columns], whole.source, whole.times))
        return tuple(result)

    def neurons(self) -> dict[str, np.ndarray]:
        """The columns of the table of neurons; see `Reader.neurons`."""
        return dict(self._neurons)


def _seconds(text: str, what: str) -> float:
    value = number(text)
    if value is None:
        raise DataError(f"{what} is {text!r}, not a time in seconds")
    return value
