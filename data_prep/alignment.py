"""From a trial as recorded to all its arrays on the stimulus frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.checks import check_trial, missing_neurons
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal
from data_prep.resampling import fill_gaps, longest_gap, reduce_area, resample
from data_prep.settings import PrepSettings
from fmcortex.errors import ConfigError, DataError


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
    frame_times = np.arange(len(raw.stimulus)) / settings.frame_rate
    responses = _on_frames(raw.responses, frame_times)
    missing = missing_neurons(responses, raw.responses.source, info)
    if missing == info.neurons:
        return "all neurons are missing"
    if missing and raw.ref.tier == "train":
        return "neurons are missing"
    limit = settings.max_pupil_gap_frames
    behaviour = []
    for signal, what in ((raw.perspectives, "pupil position"), (raw.modulations, "behaviour")):
        values = _on_frames(signal, frame_times)
        gap = longest_gap(values)
        if gap > limit or gap == len(values):
            return f"{what} missing for more than {limit} frames"
        behaviour.append(fill_gaps(values))
    stimulus = raw.stimulus
    if settings.height is not None and settings.width is not None:
        try:
            stimulus = reduce_area(stimulus, settings.height, settings.width)
        except ValueError as error:
            raise ConfigError(f"{info.source}: {error}; change height and width") from error
    return AlignedTrial(stimulus, responses, *behaviour)


def _on_frames(signal: Signal, frame_times: np.ndarray) -> np.ndarray:
    """The signal as float64 [T, k] on the stimulus frames."""
    if signal.times is None:
        return np.asarray(signal.values, np.float64)
    try:
        return resample(signal.values, signal.times, frame_times)
    except ValueError as error:
        raise DataError(f"{signal.source}: {error}") from error
