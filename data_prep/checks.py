"""What every recording must satisfy before anything of it is written, whatever its format."""

from __future__ import annotations

import numpy as np

from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef
from fmcortex.errors import DataError
from fmcortex.names import check_key, check_name, is_inside
from fmcortex.plain_numbers import whole

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
    if np.isinf(signal.values).any():
        frame = int(np.argmax(np.isinf(signal.values).any(axis=1)))
        raise DataError(f"{signal.source}: infinite value at frame {frame}")


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
        raise DataError(
            f"{source}: NaN inside the trial, first at frame {frame}, neuron {neuron}"
            f"{place if len(sources) > 1 else ''}"
        )
    return int(whole.sum())


def check_responding(values: np.ndarray, source: str, divide_by: str) -> None:
    """Check that the responses of every neuron can be normalised.

    Args:
        values: [U], what they are divided by, over the training trials.
        source: the session's folder, for messages.
        divide_by: "mean" or "std".

    Raises:
        DataError: naming the first neuron whose mean, or standard deviation, is not positive.
    """
    silent = ~(values > 0)
    if silent.any():
        raise DataError(
            f"{source}: neuron {int(np.argmax(silent))} has no response in training"
            f" ({int(silent.sum())} such of {len(values)}; {divide_by} not above zero);"
            " silent_neurons=keep keeps them unscaled"
        )
