"""From a trial as recorded to all its arrays on the stimulus frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_prep.checks import check_trial, missing_neurons
from data_prep.filtering import lowpass
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal
from data_prep.resampling import (
    fill_gaps,
    has_hole,
    longest_gap,
    longest_gap_between,
    reduce_area,
    resample,
    resample_over_gaps,
)
from data_prep.settings import PrepSettings
from fmcortex.errors import ConfigError, DataError

_RATE_TOLERANCE = 0.01
_LONGEST_FRAME = 1.5


@dataclass(frozen=True)
class AlignedTrial:
    """A trial on its stimulus frames, not yet normalised.

    Attributes:
        stimulus: uint8 [T, H, W], of the size that the settings ask for.
        responses: float64 [T, U].
        perspectives: float64 [T, P], without gaps.
        modulations: float64 [T, M], without gaps.
    """

    stimulus: np.ndarray
    responses: np.ndarray
    perspectives: np.ndarray
    modulations: np.ndarray


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
    missing = missing_neurons(responses, raw.responses[0].source, info)
    if missing == info.neurons:
        return "all neurons are missing"
    if missing and raw.ref.tier == "train":
        return "neurons are missing"
    limit = settings.max_pupil_gap_frames
    behaviour = []
    for signals, what in (
        (raw.perspectives, "pupil position"),
        (_filtered(raw.modulations, frame_times, info, settings), "behaviour"),
    ):
        parts = [_without_gaps(signal, frame_times, limit) for signal in signals]
        if any(part is None for part in parts):
            return f"{what} missing for more than {limit} frames"
        behaviour.append(np.concatenate([part for part in parts if part is not None], axis=1))
    stimulus = raw.stimulus[::step]
    if settings.height is not None and settings.width is not None:
        try:
            stimulus = reduce_area(stimulus, settings.height, settings.width)
        except ValueError as error:
            raise ConfigError(f"{info.source}: {error}; change height and width") from error
    return AlignedTrial(stimulus, responses, *behaviour)


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
