"""What a reader of recordings offers: the seam between source formats and the prepared dataset.

A new format is one class that has these attributes, in a module of its own, listed in
`data_prep.readers.find`. A reader only reads: checks that hold for every format are in
`data_prep.checks`, and resampling and standardisation follow after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fmcortex.data.manifest import Tier


@dataclass(frozen=True)
class Signal:
    """A recorded signal of one trial.

    Attributes:
        values: floats [n, k], n samples of k channels or neurons; NaN where missing.
        source: the file it comes from, for messages.
        times: seconds [n] since the onset of the first stimulus frame, or None where the samples
            lie on the stimulus frames. They reach past the trial on both sides where the
            recording does, so that gaps and filters at its ends are judged by what was there.
        delays: seconds [k] by which each channel was sampled after `times`, such as the imaging
            delays of the fields of one scan; None for no delay.
    """

    values: np.ndarray
    source: str
    times: np.ndarray | None = None
    delays: np.ndarray | None = None


@dataclass(frozen=True)
class TrialRef:
    """A trial as the session lists it, known without reading its arrays.

    Attributes:
        key: its name in the session.
        tier: which use it is for.
        domain: the kind of stimulus, one of `DOMAINS` or "unknown".
        video: identity of the video if the source names it, None if only its content tells.
        left_out: why it is not to be used, if it is not.
    """

    key: str
    tier: Tier
    domain: str
    video: str | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class RawTrial:
    """The arrays of one trial as recorded.

    Channels that have clocks of their own come as several signals, whose channels are joined in
    their order.

    Attributes:
        ref: the trial. Repeats of one video have the same `video`, which is never None outside
            the training tier.
        stimulus: uint8 [T, H, W], grey levels 0 to 255.
        stimulus_source: the file of the stimulus, for messages.
        responses: [n, U], or None where the source withholds them.
        perspectives: [n, P], the pupil's position.
        modulations: [n, M], the behavioural state.
        frame_times: seconds [T] of the stimulus frames since the onset of the first, or None
            where the source tells none; then they are at the settings' `frame_rate`.
        onset: seconds of the first frame on the recording's clock, or None where it has none.
    """

    ref: TrialRef
    stimulus: np.ndarray
    stimulus_source: str
    responses: tuple[Signal, ...] | None
    perspectives: tuple[Signal, ...]
    modulations: tuple[Signal, ...]
    frame_times: np.ndarray | None = None
    onset: float | None = None


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session before its trials are read.

    Attributes:
        name: the session's name, that of its folder.
        animal: the animal's name; that of the session where the source does not tell.
        source: the session's folder, for messages.
        neurons: number of neurons U.
        perspectives: names of the P perspective channels.
        modulations: names of the M modulation channels.
        nan_is_missing: whether the format marks a neuron that was not recorded in a trial by
            NaN throughout that trial; elsewhere such a NaN is an error.
    """

    name: str
    animal: str
    source: str
    neurons: int
    perspectives: tuple[str, ...]
    modulations: tuple[str, ...]
    nan_is_missing: bool


def animal_of(session: str) -> str:
    """The animal in a session's name `<animal>-<session>-<scan>`, as the labs write it.

    A prefix "dynamic" or "static" and anything after the scan do not count. The whole name where
    it is of another form.
    """
    match = re.match(r"(?:dynamic|static)?(.+?)-\d+-\d+(?:-|$)", session)
    return match[1] if match else session


class Reader(Protocol):
    """Reads one session of one format. Trials are read one at a time."""

    @property
    def layout(self) -> str:
        """The name of the format."""
        ...

    @property
    def info(self) -> SessionInfo:
        """What is known of the session."""
        ...

    def trials(self) -> list[TrialRef]:
        """All trials of the session in a fixed order, found without reading their arrays.

        Raises:
            DataError: a column, or a trial's file in it, is missing; the message names it.
        """
        ...

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one of the listed trials.

        Raises:
            DataError: a file is truncated or not what the format says; the message names it.
        """
        ...

    def neurons(self) -> dict[str, np.ndarray]:
        """The neuron table: one array [U] a column, with `unit_id` (integers) always.

        Positions are the columns `x`, `y`, `z`, in micrometres.

        Raises:
            DataError: a column is not of one entry, or row, a neuron.
        """
        ...
