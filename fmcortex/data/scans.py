"""Responses between scans: linear interpolation at the stimulus frames, on the fly.

A microscope scans 6 to 8 times a second; the model wants a response for each of 30 frames. The
prepared dataset keeps the scans, and a window of frames is interpolated when it is read: as one
product of a small matrix of weights, two of a row not zero, with the scans around the window.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

#: Frames for which one product is formed: longer windows have wider matrices of mostly zeros.
_FRAMES = 128
#: Most runs of neurons of equal delay for which products are formed run by run.
_RUNS = 64


def delay_runs(delays: np.ndarray | None, neurons: int) -> list[tuple[int, int, float]] | None:
    """Neurons of equal imaging delay that follow on each other: first, one past the last, seconds.

    None where there are so many runs that interpolating neuron by neuron is cheaper.
    """
    if delays is None:
        return [(0, neurons, 0.0)]
    edges = [0, *(np.flatnonzero(np.diff(delays)) + 1).tolist(), neurons]
    if len(edges) - 1 > _RUNS:
        return None
    return [(a, b, float(delays[a])) for a, b in pairwise(edges)]


def rows_around(
    times: np.ndarray, at: np.ndarray, early: float = 0.0, late: float = 0.0
) -> tuple[int, int]:
    """The scans that frames are interpolated between: the first, and one past the last.

    Args:
        times: seconds [n] of the scans, increasing; n >= 2.
        at: seconds [T] of the frames, increasing.
        early: the least imaging delay of the neurons, seconds.
        late: the greatest.
    """
    first = int(np.searchsorted(times, at[0] - late, side="right")) - 1
    last = int(np.searchsorted(times, at[-1] - early, side="right"))
    return min(max(first, 0), len(times) - 2), min(max(last, 1), len(times) - 1) + 1


def weights(times: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the scans in each frame, whose response is linear between scans.

    Before the first and after the last scan that scan holds.

    Args:
        times: seconds [n] of the scans, increasing; n >= 2.
        at: seconds [R, T] of the frames, of each of R rows increasing.

    Returns:
        float32 [R, T, k], and the scan [R] that the first of the k is of in each row: the last of
        them may be past the last scan, and is then 0.
    """
    left = np.searchsorted(times, at, side="right") - 1
    np.clip(left, 0, len(times) - 2, out=left)
    part = np.clip((at - times[left]) / (times[left + 1] - times[left]), 0.0, 1.0)
    low = left[:, 0]
    place = left - low[:, None]
    found = np.zeros((*at.shape, int(place[:, -1].max()) + 2), np.float32)
    np.put_along_axis(found, place[..., None], 1 - part[..., None], axis=2)
    np.put_along_axis(found, place[..., None] + 1, part[..., None], axis=2)
    return found, low


def interpolate(
    values: np.ndarray,
    times: np.ndarray,
    at: np.ndarray,
    delays: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """Write the responses at frames into `out`.

    Args:
        values: float32 or float16 [n, U], finite.
        times: seconds [n] of the scans, increasing; n >= 2.
        at: seconds [T] of the frames.
        delays: seconds [U] after a scan's time at which each neuron was imaged; None for 0.
        out: float32 [T, U].
    """
    runs = delay_runs(delays, values.shape[1])
    if runs is None:
        assert delays is not None
        _neuron_by_neuron(values, times, at, delays, out)
        return
    values = values.astype(np.float32, copy=False)
    delay = np.array([delay for _, _, delay in runs])[:, None]
    for begin in range(0, len(at), _FRAMES):
        part = out[begin : begin + _FRAMES]
        found, low = weights(times, at[begin : begin + _FRAMES] - delay)
        for (first, last, _), weight, start in zip(runs, found, low.tolist(), strict=True):
            rows = values[start : start + weight.shape[1], first:last]
            np.matmul(weight[:, : len(rows)], rows, out=part[:, first:last])


def _neuron_by_neuron(
    values: np.ndarray, times: np.ndarray, at: np.ndarray, delays: np.ndarray, out: np.ndarray
) -> None:
    column = np.arange(values.shape[1])
    for frame, time in enumerate(at):
        asked = time - delays
        left = np.clip(np.searchsorted(times, asked, side="right") - 1, 0, len(times) - 2)
        part = np.clip((asked - times[left]) / (times[left + 1] - times[left]), 0.0, 1.0)
        part = part.astype(np.float32)
        out[frame] = values[left, column] * (1 - part) + values[left + 1, column] * part
