"""From a trial as recorded to all its arrays on the stimulus frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_prep.checks import MISSING, check_trial, missing_neurons
from data_prep.filtering import lowpass
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal
from data_prep.resampling import (
    fill_gaps,
    has_hole,
    longest_gap,
    longest_gap_between,
    reduce_area,
    reduce_bilinear,
    resample,
    resample_over_gaps,
)
from data_prep.settings import PrepSettings
from fmcortex.data.scans import rows_around
from fmcortex.errors import ConfigError, DataError

_RATE_TOLERANCE = 0.01
_LONGEST_FRAME = 1.5


@dataclass(frozen=True)
class Scans:
    """The scans of a group of neurons that a trial's responses are interpolated between.

    Attributes:
        values: [n, U_g], as recorded.
        times: seconds [n] since the first frame.
        delays: seconds [U_g] after a scan's time at which each neuron was imaged.
    """

    values: np.ndarray
    times: np.ndarray
    delays: np.ndarray


@dataclass(frozen=True)
class AlignedTrial:
    """A trial on its stimulus frames, not yet normalised.

    Attributes:
        stimulus: uint8 [T, H, W], of the size that the settings ask for.
        responses: float64 [T, U].
        perspectives: float64 [T, P], without gaps.
        modulations: float64 [T, M], without gaps.
        frame_times: seconds [T] since the first frame.
        scans: what `responses` were interpolated from, the groups of neurons in order; empty
            where the source has them on the frames.
        filled: the part of the behaviour that was missing and interpolated over, 0 to 1.
    """

    stimulus: np.ndarray
    responses: np.ndarray
    perspectives: np.ndarray
    modulations: np.ndarray
    frame_times: np.ndarray
    scans: tuple[Scans, ...]
    filled: float


def align(
    raw: RawTrial, info: SessionInfo, pixels: tuple[int, int] | None, settings: PrepSettings
) -> AlignedTrial | str:
    """Check a trial and bring it onto its stimulus frames.

    Args:
        raw: the trial as read.
        info: its session.
        pixels: height and width of the session's other videos as read, None for the first.
        settings: frame rate, size and the longest gap to fill.

    Returns:
        The trial, or the reason why it is left out.

    Raises:
        DataError: the trial is malformed; the message names the file.
        ConfigError: the settings ask for a larger stimulus than the source has.
    """
    check_trial(raw, info, pixels)
    if raw.responses is None:
        return "responses are withheld"
    if raw.frame_times is not None and _dropped_frame(raw):
        return "stimulus frames were dropped"
    frame_times, step = _frames(raw, settings.frame_rate)
    if any(_has_hole(signal, frame_times) for signal in raw.responses):
        return "samples of the responses are missing"
    responses = np.concatenate(
        [_on_frames(signal, frame_times) for signal in raw.responses], axis=1
    )
    missing = missing_neurons(responses, _columns_of(raw.responses), info)
    if missing == info.neurons:
        return "all neurons are missing"
    if missing and raw.ref.tier == "train":
        return MISSING
    limit = settings.max_pupil_gap_frames
    behaviour = []
    lacking = []
    for signals, what in (
        (raw.perspectives, "pupil position"),
        (_filtered(raw.modulations, frame_times, info, settings), "behaviour"),
    ):
        lacking += [_missing(signal, frame_times) for signal in signals]
        parts = [_without_gaps(signal, frame_times, limit) for signal in signals]
        if any(part is None for part in parts):
            return f"{what} missing for more than {limit} frames"
        behaviour.append(np.concatenate([part for part in parts if part is not None], axis=1))
    scans = tuple(
        _scans(signal, frame_times) for signal in raw.responses if signal.times is not None
    )
    return AlignedTrial(
        _resized(raw.stimulus[::step], info, settings),
        responses,
        perspectives=behaviour[0],
        modulations=behaviour[1],
        frame_times=frame_times,
        scans=scans if len(scans) == len(raw.responses) else (),
        filled=float(np.mean(np.concatenate(lacking))),
    )


def _columns_of(signals: tuple[Signal, ...]) -> list[tuple[str, int]]:
    """The source of each signal, and how many columns of the joined ones are its own."""
    return [(signal.source, signal.values.shape[1]) for signal in signals]


def shown_frames(raw: RawTrial, info: SessionInfo, settings: PrepSettings) -> np.ndarray:
    """The movie of a trial as `align` gives it, uint8 [T, H, W], whatever else is missing.

    Raises:
        DataError, ConfigError: as `align`.
    """
    check_trial(raw, info, None)
    dropped = raw.frame_times is not None and _dropped_frame(raw)
    if dropped or raw.ref.left_out is not None:
        return _resized(raw.stimulus, info, settings)  # it will be left out
    _, step = _frames(raw, settings.frame_rate)
    return _resized(raw.stimulus[::step], info, settings)


def _resized(stimulus: np.ndarray, info: SessionInfo, settings: PrepSettings) -> np.ndarray:
    if settings.height is None or settings.width is None:
        return stimulus
    _, rows, columns = stimulus.shape
    if settings.height > rows or settings.width > columns:
        raise ConfigError(
            f"{info.source}: cannot enlarge {rows} x {columns} pixels to {settings.height} x"
            f" {settings.width}; change height and width"
        )
    reduce = reduce_area if settings.resize == "area" else reduce_bilinear
    return reduce(stimulus, settings.height, settings.width)


def _scans(signal: Signal, frame_times: np.ndarray) -> Scans:
    """The samples of a signal that its values on the frames depend on."""
    assert signal.times is not None
    delays = signal.delays if signal.delays is not None else np.zeros(signal.values.shape[1])
    part = slice(*rows_around(signal.times, frame_times, delays.min(), delays.max()))
    return Scans(signal.values[part], signal.times[part], delays)


def _missing(signal: Signal, frame_times: np.ndarray) -> np.ndarray:
    """The part of a trial's samples that are NaN, of each channel."""
    missing = np.isnan(signal.values)
    if signal.times is not None:
        during = (signal.times >= frame_times[0]) & (signal.times <= frame_times[-1])
        missing = missing[during] if during.any() else missing
    return missing.mean(axis=0)


def _dropped_frame(raw: RawTrial) -> bool:
    """Whether a frame stayed on for one and a half times as long as the median one, or more.

    Raises:
        DataError: the frame times do not increase.
    """
    assert raw.frame_times is not None
    steps = np.diff(raw.frame_times)
    if not np.all(steps > 0):
        raise DataError(
            f"{raw.stimulus_source}: trial {raw.ref.key}: frame times do not increase at frame"
            f" {np.argmin(steps) + 1}"
        )
    return len(steps) > 0 and bool(steps.max() > _LONGEST_FRAME * np.median(steps))


def _frames(raw: RawTrial, rate: float) -> tuple[np.ndarray, int]:
    """Times [T] of the frames to keep, and which they are: every n-th."""
    if raw.frame_times is None:
        return np.arange(len(raw.stimulus)) / rate, 1
    times = raw.frame_times
    if len(times) == 1:
        return times, 1
    steps = np.diff(times)
    where = f"{raw.stimulus_source}: trial {raw.ref.key}"
    found = len(steps) / float(times[-1] - times[0])
    step = max(round(found / rate), 1)
    if abs(found / step / rate - 1) > _RATE_TOLERANCE:
        raise ConfigError(
            f"{where}: {found:.4g} frames a second, not {rate:g} or a multiple;"
            " change frame_rate to that of the source"
        )
    return times[::step], step


def _has_hole(signal: Signal, frame_times: np.ndarray) -> bool:
    """Whether samples lack that the responses on the frames would be interpolated between."""
    if signal.times is None:
        return False
    late, early = (
        (0.0, 0.0) if signal.delays is None else (signal.delays.max(), signal.delays.min())
    )
    start, stop = frame_times[0] - late, frame_times[-1] - early
    interval = float(np.median(np.diff(signal.times)))
    covered = signal.times[0] - interval <= start and stop <= signal.times[-1] + interval
    return not covered or has_hole(signal.times, start, stop)


def _filtered(
    signals: tuple[Signal, ...], frame_times: np.ndarray, info: SessionInfo, settings: PrepSettings
) -> tuple[Signal, ...]:
    """The behavioural signals with the treadmill's channels low-pass filtered, if asked for."""
    cutoff = settings.treadmill_lowpass_hz
    if cutoff is None:
        return signals
    treadmill = np.array([name.startswith("treadmill") for name in info.modulations])
    if not treadmill.any():
        raise ConfigError(f"{info.source}: no channel treadmill*; leave out treadmill_lowpass_hz")
    result = []
    for signal in signals:
        mine, treadmill = np.split(treadmill, [signal.values.shape[1]])
        if mine.any():
            times = frame_times if signal.times is None else signal.times
            values = np.array(signal.values, np.float64)
            try:
                values[:, mine] = lowpass(values[:, mine], times, cutoff)
            except ValueError as error:
                raise ConfigError(f"{signal.source}: {error}") from error
            signal = replace(signal, values=values)
        result.append(signal)
    return tuple(result)


def _without_gaps(signal: Signal, frame_times: np.ndarray, limit: int) -> np.ndarray | None:
    """A behavioural signal as float64 [T, k] on the frames, None if a gap is above `limit`."""
    if signal.times is None:
        values = np.asarray(signal.values, np.float64)
        gap = longest_gap(values)
        return None if gap > limit or gap == len(values) else fill_gaps(values)
    ends = frame_times[0], frame_times[-1]
    longest = longest_gap_between(signal.values, signal.times, *ends)
    if longest is None or longest > limit:
        return None
    return resample_over_gaps(signal.values, signal.times, frame_times)


def _on_frames(signal: Signal, frame_times: np.ndarray) -> np.ndarray:
    """The signal as float64 [T, k] on the stimulus frames."""
    if signal.times is None:
        return np.asarray(signal.values, np.float64)
    return resample(signal.values, signal.times, frame_times, signal.delays)
