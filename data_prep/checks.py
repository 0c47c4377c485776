"""What every recording must satisfy before anything of it is written, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef
from fmcortex.errors import DataError
from fmcortex.names import check_key, check_name, is_inside
from fmcortex.plain_numbers import whole

#: No value of a recording is larger. Float32 holds 3e38, and some is left for squares and sums.
LARGEST = 1e30
#: Seconds between samples of the slowest signal.
SLOWEST = 2.0
#: Part of its mean by which a signal varies that does not, but for rounding.
ROUNDING = 1e-6
#: Why a trial is left out in which neurons have no values.
MISSING = "neurons are missing"
#: What to do about a neuron that never has any.
LEAVE_OUT = (
    "missing_neurons=leave_out prepares a session without the neurons that have no value in any"
    " training trial; error, the default, refuses it"
)
#: Columns of the neuron table that the preparation writes itself.
RESERVED = ("response_scale", "imaging_delay")


def check_refs(refs: list[TrialRef], info: SessionInfo) -> None:
    """Check the list of trials: names that can be written, and training trials among them.

    Raises:
        DataError: naming the trial or the session.
    """
    for ref in refs:
        if ref.tier == "train":
            check_key(ref.key, f"{info.source}: trial")
        elif not is_inside(ref.key):
            raise DataError(f"{info.source}: trial {ref.key!r}: not a path inside the folder")
        if ref.video is not None:
            check_name(ref.video, f"{info.source}: trial {ref.key}: video")
    if not any(ref.tier == "train" for ref in refs):
        raise DataError(f"{info.source}: no training trials")


def check_neurons(table: dict[str, np.ndarray], info: SessionInfo) -> None:
    """Check the neuron table: unit ids that are integers, each of its own.

    Raises:
        DataError: naming the session and the first repeated id.
    """
    units = table["unit_id"]
    if units.dtype.kind == "U":
        row = next((n for n, text in enumerate(units.tolist()) if whole(text) is None), 0)
        raise DataError(
            f"{info.source}: unit id {units[row].item()!r} of neuron {row} is no integer of 64 bits"
        )
    if units.dtype.kind not in "iu":
        raise DataError(f"{info.source}: unit ids are {units.dtype}, not integers")
    ids, counts = np.unique(units, return_counts=True)
    if len(ids) != len(units):
        raise DataError(f"{info.source}: unit id {ids[counts > 1][0]} occurs more than once")
    for name in table:
        check_name(name, f"{info.source}: column of the neuron table")
    for name in RESERVED:
        if name in table:
            raise DataError(f"{info.source}: the neuron table's column {name} is reserved")


def check_trial(raw: RawTrial, info: SessionInfo, pixels: tuple[int, int] | None) -> None:
    """Check the shapes of a trial as read.

    Args:
        raw: the trial.
        info: its session.
        pixels: height and width of the session's other videos, None for the first.

    Raises:
        DataError: naming the file: an empty or differently shaped video, a count of neurons or
            channels that is not the session's, or unequal lengths.
    """
    frames, *size = raw.stimulus.shape
    if frames == 0 or 0 in size:
        raise DataError(f"{raw.stimulus_source}: the video has no frames")
    if pixels is not None and tuple(size) != pixels:
        raise DataError(
            f"{raw.stimulus_source}: frames of {size[0]} x {size[1]} pixels, those of the"
            f" session's other videos have {pixels[0]} x {pixels[1]}; are the axes in order?"
        )
    for signals, columns, what in (
        (raw.responses, info.neurons, "neurons"),
        (raw.perspectives, len(info.perspectives), "pupil positions"),
        (raw.modulations, len(info.modulations), "behaviour channels"),
    ):
        if signals is None:
            continue
        found = sum(signal.values.shape[1] for signal in signals)
        if found != columns:
            raise DataError(f"{signals[0].source}: {found} {what}, the session has {columns}")
        for signal in signals:
            _check_signal(signal, frames)
    length = _length(raw)
    for signal in (*(raw.responses or ()), *raw.perspectives, *raw.modulations):
        check_rate(signal, length)
    if raw.frame_times is not None and len(raw.frame_times) != frames:
        raise DataError(
            f"{raw.stimulus_source}: unequal lengths: {frames} frames here,"
            f" {len(raw.frame_times)} frame times of trial {raw.ref.key}"
        )


def _check_signal(signal: Signal, frames: int) -> None:
    expected = frames if signal.times is None else len(signal.times)
    if len(signal.values) != expected:
        raise DataError(
            f"{signal.source}: unequal lengths: {len(signal.values)} samples here, {expected}"
            f" {'frames in the video' if signal.times is None else 'times'}"
        )
    if signal.times is not None and not (expected > 1 and np.all(np.diff(signal.times) > 0)):
        raise DataError(
            f"{signal.source}: times must increase, one for each of two samples or more"
        )
    values = signal.values
    # Both ignore NaN, and need no memory.
    low, high = (f.reduce(values, axis=None, initial=0.0) for f in (np.fmin, np.fmax))
    if low < -LARGEST or high > LARGEST:
        large = np.abs(values) > LARGEST
        frame, channel = (int(place) for place in np.argwhere(large)[0])
        value = signal.values[frame, channel]
        if np.isinf(value):
            raise DataError(f"{signal.source}: infinite value at frame {frame}")
        raise DataError(
            f"{signal.source}: a value of {value:.3g} at frame {frame}, column {channel}: none of a"
            f" recording is beyond {LARGEST:g}, which float32 holds; are these numbers of another"
            " type?"
        )


def _length(raw: RawTrial) -> float | None:
    """Seconds that a trial lasts, with its last frame; None where the source does not tell."""
    times = raw.frame_times
    if times is None or len(times) < 2:
        return None
    return float(times[-1] - times[0]) * len(times) / (len(times) - 1)


def check_rate(signal: Signal, length: float | None) -> None:
    """Refuse a signal that is sampled so seldom that it says nothing of a trial.

    Recorded scans are 4 Hz and faster, cameras of the eye 15 Hz, treadmills 49 Hz.

    Args:
        signal: of a trial, with times.
        length: seconds that the trial lasts; None if not known.

    Raises:
        DataError: two samples are nowhere nearer than the trial is long, or than 2 s.
    """
    if signal.times is None or len(signal.times) < 2:
        return
    nearest = float(np.diff(signal.times).min())
    limit = SLOWEST if length is None else min(max(length, 1.0), SLOWEST)
    if nearest > limit:
        raise DataError(
            f"{signal.source}: a sample every {nearest:.4g} s, where recordings have several a"
            " second; are its times in milliseconds? They are to be in seconds"
        )


@dataclass(frozen=True)
class Showing:
    """When a trial was shown: its name, and seconds of its first and last frame."""

    trial: str
    first: float
    last: float


def check_apart(shown: Sequence[Showing], source: str) -> None:
    """Refuse trials that are shown at one time, on one screen.

    Args:
        shown: trials of one recording.
        source: the session's folder, for messages.

    Raises:
        DataError: naming two trials that overlap by more than rounded times may.
    """
    ordered = sorted(shown, key=lambda trial: (trial.first, trial.last))
    for before, after in pairwise(ordered):
        overlap = min(before.last, after.last) - after.first
        shorter = min(before.last - before.first, after.last - after.first)
        if overlap > min(0.5, shorter / 2):
            raise DataError(
                f"{source}: trials {before.trial} and {after.trial} were both shown from"
                f" {after.first:.6g} to {min(before.last, after.last):.6g} s; are their times"
                " right?"
            )


def check_levels(brightest: int, source: str) -> None:
    """Refuse a session whose videos are all black, or nearly so.

    Args:
        brightest: the highest grey level in any of them, 0 to 255.
        source: the session's folder, for messages.

    Raises:
        DataError: it is 0 or 1, as of levels from 0 to 1.
    """
    if brightest <= 1:
        raise DataError(
            f"{source}: no video has a grey level above {brightest} of 255; are they from 0 to 1?"
            " Multiply them by 255"
        )


def missing_neurons(
    responses: np.ndarray, sources: list[tuple[str, int]], info: SessionInfo
) -> int:
    """Number of neurons that are missing from a trial: NaN in all its frames.

    Args:
        responses: [T, U] on the stimulus frames.
        sources: the files they come from, for messages, and how many of the neurons each has.
        info: the session, which says whether its format knows missing neurons.

    Raises:
        DataError: a NaN anywhere else, naming the file, the frame and the neuron.
    """
    missing = np.isnan(responses)
    whole = missing.all(axis=0)
    allowed = whole if info.nan_is_missing else np.zeros_like(whole)
    faults = missing & ~allowed
    if faults.any():
        frame = int(np.argmax(faults.any(axis=1)))
        neuron = int(np.argmax(faults[frame]))
        ends = np.cumsum([count for _, count in sources])
        signal = int(np.searchsorted(ends, neuron, "right"))
        source, count = sources[signal]
        place = f", the {neuron - ends[signal] + count + 1}. of this signal"
        advice = f"; it has no value in the trial: {LEAVE_OUT}" if whole[neuron] else ""
        raise DataError(
            f"{source}: NaN inside the trial, first at frame {frame}, neuron {neuron}"
            f"{place if len(sources) > 1 else ''}{advice}"
        )
    return int(whole.sum())


def varies(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Which channels [k] vary by more than the rounding of their values."""
    return std > ROUNDING * np.abs(mean)


@dataclass(frozen=True)
class ResponseStatistics:
    """The responses of the neurons over the training trials, each float64 [U].

    Attributes:
        mean: of each neuron.
        std: population standard deviation.
        lowest: the least response; None of a survey that an older version made.
    """

    mean: np.ndarray
    std: np.ndarray
    lowest: np.ndarray | None


def check_responding(
    found: ResponseStatistics, source: str, divide_by: Literal["mean", "std"]
) -> None:
    """Check that the responses of every neuron can be normalised.

    Args:
        found: over the training trials.
        source: the session's folder, for messages.
        divide_by: what responses are divided by.

    Raises:
        DataError: naming the first neuron whose mean, or standard deviation, is not positive.
    """
    good = found.mean > 0 if divide_by == "mean" else varies(found.mean, found.std)
    if not good.all():
        raise DataError(
            f"{source}: neuron {int(np.argmin(good))} has no response in training"
            f" ({int((~good).sum())} such of {len(good)}; {divide_by} not above zero);"
            " silent_neurons=keep keeps them unscaled"
        )


def check_not_centred(found: ResponseStatistics, source: str) -> None:
    """Refuse responses around zero, which a division by their mean makes any size and sign.

    Activity, which is nowhere much below zero, passes however sparse it is.

    Raises:
        DataError: naming the first such neuron, and what to do.
    """
    if found.lowest is None:
        return
    bad = (found.lowest < -0.1 * found.std) & (found.mean < 0.05 * found.std)
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            f"{source}: neuron {at} has responses around zero (mean {found.mean[at]:.3g}, standard"
            f" deviation {found.std[at]:.3g}, lowest {found.lowest[at]:.3g}; {int(bad.sum())} such"
            f" of {len(bad)}), as z-scored ones, which cannot be divided by their mean;"
            " response_normalisation=std divides them by their standard deviation"
        )


def check_precision(found: ResponseStatistics, scale: np.ndarray, dtype: str, source: str) -> None:
    """Refuse to store responses as numbers that cannot tell them apart.

    Args:
        found: over the training trials, before they are scaled.
        scale: [U], what they are divided by.
        dtype: "float32" or "float16".
        source: the session's folder, for messages.

    Raises:
        DataError: naming the first neuron whose responses would be rounded to zero, or to one
            value.
    """
    kind = np.finfo(dtype)
    spread, level = found.std / scale, np.abs(found.mean) / scale
    least = np.maximum(float(kind.smallest_normal), 8 * float(kind.eps) * level)
    lost = varies(found.mean, found.std) & (spread < least)
    if lost.any():
        at = int(np.argmax(lost))
        advice = "response_dtype=float32, or another response_normalisation"
        raise DataError(
            f"{source}: neuron {at} varies by {spread[at]:.3g} around {level[at]:.3g} as stored"
            f" ({int(lost.sum())} such of {len(lost)}), which {dtype} rounds away; use"
            f" {advice if dtype == 'float16' else 'response_normalisation=mean or std'}"
        )
