"""The times of a long signal, and the part of it that a trial needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.filtering import half_width
from data_prep.settings import PrepSettings
from fmcortex.errors import DataError


@dataclass(frozen=True)
class Margin:
    """How far a trial's part of a signal reaches beyond the trial on both sides.

    Attributes:
        samples: samples of the signal.
        seconds: seconds, besides.
    """

    samples: int = 2
    seconds: float = 0.0


def behaviour_margin(settings: PrepSettings) -> Margin:
    """The margin by which gaps can be judged and the treadmill be filtered at a trial's ends."""
    cutoff = settings.treadmill_lowpass_hz
    reach = 0.0 if cutoff is None else half_width(cutoff)
    return Margin(settings.max_pupil_gap_frames + 2, reach)


class Clock:
    """The sample times of a signal on the stimulus's clock.

    A sample whose time is NaN is left out, as if it had not been recorded: clocks of rigs that are
    interpolated from another begin and end with some. Samples are counted without them.

    Attributes:
        source: of the signal, for messages.
        times: seconds [n].
        stored: the same as the source has them, without the offset.
        samples: how many the source has, with those left out.
        interval: median seconds between two samples.
    """

    def __init__(self, times: np.ndarray, source: str, offset: float = 0.0) -> None:
        """Check the times, and add `offset` to them.

        Raises:
            DataError: naming `source`: they are not numbers of which two or more are finite and
                most are there, or they do not increase.
        """
        if times.ndim != 1 or times.dtype.kind not in "fiu":
            raise DataError(
                f"{source}: times are {times.dtype} {list(times.shape)}, not numbers of one axis"
            )
        if len(times) < 2:
            raise DataError(f"{source}: {len(times)} samples; two at least are needed")
        times = np.asarray(times, np.float64)
        infinite = np.isinf(times)
        if infinite.any():
            at = int(np.argmax(infinite))
            raise DataError(f"{source}: time of sample {at} is {times[at]}")
        self.samples = len(times)
        there = ~np.isnan(times)
        if there.sum() < max(2, len(times) / 2):
            raise DataError(
                f"{source}: {int((~there).sum())} of {len(times)} samples have no time (NaN); only"
                " a few may be left out"
            )
        self._kept = None if there.all() else np.flatnonzero(there)
        times = times[there]
        steps = np.diff(times)
        if not np.all(steps > 0):
            at = int(np.argmax(steps <= 0)) + 1
            place = at if self._kept is None else int(self._kept[at])
            raise DataError(
                f"{source}: times do not increase at sample {place}: {times[at - 1]:.6g} s,"
                f" then {times[at]:.6g} s"
            )
        self.source = source
        self.stored = times
        self.times = times + offset
        self.interval = float(np.median(steps))

    def part(self, start: float, stop: float, margin: Margin) -> slice:
        """The samples from `start` to `stop`, seconds, and those of the margin that there are."""
        first = int(np.searchsorted(self.times, start - margin.seconds)) - margin.samples
        last = int(np.searchsorted(self.times, stop + margin.seconds, "right")) + margin.samples
        count = len(self.times)
        first = min(max(first, 0), count - 2)
        return slice(first, max(min(last, count), first + 2))

    def rows(self, read: Callable[[slice], np.ndarray], part: slice) -> np.ndarray:
        """The values of the samples of `part`.

        Args:
            read: gives the values of a slice of the source's samples, those left out among them.
            part: of the samples with a time, not empty.
        """
        if self._kept is None:
            return read(part)
        places = self._kept[part]
        return read(slice(int(places[0]), int(places[-1]) + 1))[places - places[0]]

    def timed(self, values: np.ndarray) -> np.ndarray:
        """Of the values of all the source's samples, those of samples with a time."""
        return values if self._kept is None else values[self._kept]

    def check_meets(self, start: float, stop: float, trial: str) -> None:
        """Refuse a trial from `start` to `stop` of which the signal covers nothing.

        One of which it covers a part was shown as the recording began or ended; that is for
        `align` to judge.

        Raises:
            DataError: naming the signal and the trial.
        """
        if start > self.times[-1] or stop < self.times[0]:
            raise DataError(
                f"{self.source}: trial {trial} needs responses from {start:.6g} to {stop:.6g} s,"
                f" they were recorded from {self.times[0]:.6g} to {self.times[-1]:.6g} s;"
                " are they on one clock?"
            )
