"""Measures of recorded signals that do not depend on where these come from."""

from __future__ import annotations

import numpy as np

#: A step below this part of a standard deviation is none: the noise of a camera that sees a pupil
#: is far above it, rounding to float32 far below.
FLAT_STEP = 1e-4
#: Seconds for which a signal may stand still. A fixating pupil still jitters; a tracker that lost
#: the eye and repeats its last value does not.
FLAT_SECONDS = 5.0
#: A shorter trial is not called flat as a whole: static images hold behaviour for half a second.
FLAT_TRIAL_SECONDS = 1.0
#: Standard deviations beyond which a value is an outlier: pupil and treadmill are skewed, so 3 or
#: 4 are ordinary, and beyond 6 are blinks and mistracked frames.
OUTLIER = 6.0
#: The median absolute deviation of a normal distribution is its standard deviation over this.
MAD = 1.4826
#: Neurons that are compared with all others at a time; bounds the memory.
TOGETHER = 512


def robust_z(values: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Distance from the median in robust standard deviations (1.4826 times the median absolute
    deviation; Rousseeuw and Croux, J. Am. Stat. Assoc. 88, 1993), which outliers do not widen.

    Args:
        values: [n]; NaN where there is none.
        least: the smallest standard deviation to divide by, in the units of `values`.

    Returns:
        [n]; NaN where there is no value, 0 everywhere if the deviation is 0.
    """
    found = np.full(len(values), np.nan)
    valid = np.isfinite(values)
    if valid.any():
        away = values[valid] - np.median(values[valid])
        spread = max(MAD * float(np.median(np.abs(away))), least)
        found[valid] = away / spread if spread > 0 else 0.0
    return found


def flat_lines(values: np.ndarray, frame_rate: float) -> list[tuple[int, int]]:
    """Where a signal stands still for longer than `FLAT_SECONDS`, or for a whole trial.

    Args:
        values: [T] of one trial, standardised.
        frame_rate: Hz.

    Returns:
        First frame and number of frames of each such stretch.
    """
    moves = np.abs(np.diff(values)) > FLAT_STEP
    edges = np.flatnonzero(np.concatenate([[True], moves, [True]]))
    found = []
    for start, frames in zip(edges[:-1].tolist(), np.diff(edges).tolist(), strict=True):
        seconds = frames / frame_rate
        whole = frames == len(values) and seconds >= FLAT_TRIAL_SECONDS
        if seconds > FLAT_SECONDS or whole:
            found.append((start, frames))
    return found


def trend(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """The straight line through y over x by least squares.

    Args:
        x: [n], ascending.
        y: [n].

    Returns:
        The line's change from the first x to the last, relative to the mean of y, and the
        correlation of x and y; None with fewer than three points, if either does not vary, or if
        the mean of y is not positive.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0 or y.mean() <= 0:
        return None
    slope = float(np.polyfit(x - x.mean(), y, 1)[0])
    return slope * float(x[-1] - x[0]) / float(y.mean()), float(np.corrcoef(x, y)[0, 1])


def most_alike(responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each neuron, the other one whose responses correlate most with its own.

    Args:
        responses: float32 [n, U].

    Returns:
        The other neuron, int [U], and the correlation, float [U]; -1 where there is no other, and
        0 for a neuron that does not vary. Memory is `TOGETHER` times U, not U squared.
    """
    centred = responses - responses.mean(axis=0)
    # What rounding leaves of a constant is no variance.
    rounding = 1e-6 * np.abs(responses).max(axis=0, initial=0.0)
    centred[:, np.abs(centred).max(axis=0, initial=0.0) <= rounding] = 0
    norm = np.sqrt((centred**2).sum(axis=0))
    centred /= np.where(norm > 0, norm, 1)
    neurons = responses.shape[1]
    other, most = np.zeros(neurons, int), np.full(neurons, -1.0)
    for first in range(0, neurons, TOGETHER):
        some = np.arange(first, min(first + TOGETHER, neurons))
        alike = centred[:, some].T @ centred
        alike[some - first, some] = -1
        other[some] = alike.argmax(axis=1)
        most[some] = alike.max(axis=1)
    return other, most


class Traces:
    """Channels over a whole recording that is read piece by piece, and what they are like.

    Each is kept as the least and the greatest value of at most `points` stretches, so that a
    single bad frame of an hour can still be seen.

    Args:
        channels: number of them.
        frames: of the whole recording.
        points: stretches to keep.
    """

    def __init__(self, channels: int, frames: int, points: int) -> None:
        self.points = min(points, frames)
        self.low = np.full((self.points, channels), np.inf)
        self.high = np.full((self.points, channels), -np.inf)
        self._frames, self._seen = frames, 0
        self._outliers = np.zeros(channels, int)
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, values: np.ndarray) -> None:
        """Add the next frames, standardised: [T, channels]."""
        values = values.astype(np.float64)
        at = (self._seen + np.arange(len(values))) * self.points // self._frames
        np.minimum.at(self.low, at, values)
        np.maximum.at(self.high, at, values)
        self._seen += len(values)
        self._outliers += (np.abs(values) > OUTLIER).sum(axis=0)
        self._sum += values.sum(axis=0)
        self._products += values.T @ values

    @property
    def outliers(self) -> np.ndarray:
        """The part of each channel's frames that is beyond `OUTLIER`: [channels]."""
        return self._outliers / max(self._seen, 1)

    def correlation(self, first: int, second: int) -> float | None:
        """Pearson correlation of two channels over all frames; None if either does not vary."""
        mean = self._sum / max(self._seen, 1)
        covariance = self._products / max(self._seen, 1) - np.outer(mean, mean)
        scale = covariance[first, first] * covariance[second, second]
        # Standardised channels vary by 1; what is left of a constant is rounding.
        if not scale > 1e-12:
            return None
        return float(np.clip(covariance[first, second] / np.sqrt(scale), -1, 1))
