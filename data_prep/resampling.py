"""Pure functions on signals and videos: resampling, gaps, standardisation, resizing."""

from __future__ import annotations

import numpy as np

#: Bytes of float64 that a video is resized in at a time, so that a long one fits in memory.
RESIZE_BYTES = 16 << 20


def resample(
    values: np.ndarray, times: np.ndarray, at: np.ndarray, delays: np.ndarray | None = None
) -> np.ndarray:
    """Linear interpolation of a signal at other times.

    A result next to a NaN sample is NaN, unless it falls on the other sample exactly. Outside
    the recording the first or last sample holds for one sampling interval (the median one);
    farther out the result is NaN.

    Args:
        values: [n, k], NaN where missing; n >= 2.
        times: seconds [n], increasing.
        at: seconds [T].
        delays: seconds [k]; sample i of channel j was taken at times[i] + delays[j]. None for no
            delay.

    Returns:
        float64 [T, k].

    Raises:
        ValueError: fewer than two samples, or times that do not increase.
    """
    if len(times) < 2 or len(times) != len(values) or not np.all(np.diff(times) > 0):
        raise ValueError("times must increase, one for each of two samples or more")
    values = np.asarray(values, np.float64)
    if delays is None:
        return _interpolated(values, times, at)
    result = np.empty((len(at), values.shape[1]))
    # The neurons of a field share a delay, so there are few.
    for delay in np.unique(delays):
        columns = np.flatnonzero(delays == delay)
        result[:, columns] = _interpolated(values[:, columns], times, at - delay)
    return result


def _interpolated(values: np.ndarray, times: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """`values` [n, k] float64 at the times `asked` [T] on their own clock."""
    interval = float(np.median(np.diff(times)))
    left = np.clip(np.searchsorted(times, asked, side="right") - 1, 0, len(times) - 2)
    weight = np.clip((asked - times[left]) / (times[left + 1] - times[left]), 0.0, 1.0)[:, None]
    # 0 * NaN is NaN: a sample of no weight must not count.
    result = np.where(weight < 1, values[left] * (1 - weight), 0.0)
    result += np.where(weight > 0, values[left + 1] * weight, 0.0)
    result[(asked < times[0] - interval) | (asked > times[-1] + interval)] = np.nan
    return result


def has_hole(times: np.ndarray, start: float, stop: float) -> bool:
    """Whether samples are lacking from increasing `times` [n] somewhere in `start` to `stop`.

    They lack where two samples are more than one and a half median sampling intervals apart.
    """
    steps = np.diff(times)
    within = (times[:-1] < stop) & (times[1:] > start)
    return bool((steps[within] > 1.5 * np.median(steps)).any())


def longest_gap_between(
    values: np.ndarray, times: np.ndarray, start: float, stop: float
) -> int | None:
    """Most successive samples that miss in any channel where a gap touches `start` to `stop`.

    NaN and samples that lack from `times` count alike, in sampling intervals (the median one).

    Args:
        values: [n, k], NaN where missing; n >= 2.
        times: seconds [n], increasing.
        start: seconds, first time of interest.
        stop: seconds, last time of interest.

    Returns:
        The number of samples, None where a channel has no value at all.
    """
    interval = float(np.median(np.diff(times)))
    longest = 0
    for channel in values.T:
        present = np.flatnonzero(~np.isnan(channel))
        if not len(present):
            return None
        valid = times[present]
        touching = (valid[:-1] < stop) & (valid[1:] > start)
        steps = np.diff(valid)[touching] / interval
        longest = max(longest, int(np.rint(steps.max(initial=1.0))) - 1)
        # At the ends: what lacks up to the trial's end, or the NaNs that are known to follow.
        if valid[0] > start:
            lacking = int((valid[0] - start) / interval + 1e-6)
            longest = max(longest, lacking, int(present[0]))
        if valid[-1] < stop:
            lacking = int((stop - valid[-1]) / interval + 1e-6)
            longest = max(longest, lacking, len(times) - 1 - int(present[-1]))
    return longest


def resample_over_gaps(values: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear interpolation of a signal at other times, over its missing samples.

    Before the first and after the last value of a channel that value holds.

    Args:
        values: [n, k], NaN where missing; one value in each channel at least.
        times: seconds [n], increasing.
        at: seconds [T].

    Returns:
        float64 [T, k], finite.
    """
    result = np.empty((len(at), values.shape[1]))
    for number, channel in enumerate(values.T):
        present = ~np.isnan(channel)
        result[:, number] = np.interp(at, times[present], channel[present])
    return result


def longest_gap(values: np.ndarray) -> int:
    """Length in frames of the longest run of NaN in any channel of `values` [T, k]."""
    missing = np.isnan(values)
    longest = run = np.zeros(values.shape[1], np.int64)
    for frame in missing:
        run = np.where(frame, run + 1, 0)
        longest = np.maximum(longest, run)
    return int(longest.max(initial=0))


def fill_gaps(values: np.ndarray) -> np.ndarray:
    """`values` [T, k] with NaN replaced by linear interpolation between the frames around.

    A gap at the start or the end takes the nearest value. A channel must have one value at least.
    """
    filled = np.array(values, np.float64)
    frames = np.arange(len(filled))
    for channel in filled.T:
        missing = np.isnan(channel)
        if missing.any():
            channel[missing] = np.interp(frames[missing], frames[~missing], channel[~missing])
    return filled


def area_weights(source: int, target: int) -> np.ndarray:
    """Weights [target, source] that average `source` pixels into `target` equal areas."""
    edges = np.linspace(0, source, target + 1)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * (target / source)


def _blocks(stimulus: np.ndarray) -> list[slice]:
    """Stretches of frames of `stimulus` [T, H, W] that are `RESIZE_BYTES` as float64, or one."""
    frames, rows, columns = stimulus.shape
    length = max(1, RESIZE_BYTES // max(1, 8 * rows * columns))
    return [slice(start, start + length) for start in range(0, frames, length)]


def reduce_area(stimulus: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reduce a video uint8 [T, H, W] to [T, height, width] by area averaging.

    Raises:
        ValueError: the target is larger than the source.
    """
    frames, rows, columns = stimulus.shape
    if height > rows or width > columns:
        raise ValueError(f"cannot enlarge {rows} x {columns} pixels to {height} x {width}")
    if (height, width) == (rows, columns):
        return stimulus
    down, right = area_weights(rows, height), area_weights(columns, width).T
    result = np.empty((frames, height, width), np.uint8)
    for block in _blocks(stimulus):
        # matmul multiplies frame by frame, so that a frame's result does not depend on the block.
        result[block] = np.rint(down @ (stimulus[block].astype(np.float64) @ right))
    return result


def reduce_bilinear(stimulus: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a video uint8 [T, H, W] to [T, height, width] by bilinear interpolation.

    Pixel centres are at halves: the middle of target pixel i lies at (i + 1/2) source / target,
    and beyond the outermost centres the outermost pixels hold, as for
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False)`. Each
    target pixel is made of four source pixels, so that a reduction to less than a half leaves some
    out and aliases; `reduce_area` does not. Halves are rounded to even.

    Raises:
        ValueError: the target has no pixels.
    """
    frames, rows, columns = stimulus.shape
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height} x {width} pixels")
    if (height, width) == (rows, columns):
        return stimulus
    top, down = _neighbours(rows, height)
    left, right = _neighbours(columns, width)
    below, beside = np.minimum(top + 1, rows - 1), np.minimum(left + 1, columns - 1)
    result = np.empty((frames, height, width), np.uint8)
    for block in _blocks(stimulus):
        part = stimulus[block]
        lines = part[:, top] * (1 - down)[:, None] + part[:, below] * down[:, None]
        result[block] = np.rint(lines[..., left] * (1 - right) + lines[..., beside] * right)
    return result


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The source pixel before each target pixel's centre, and the weight of the one after it."""
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    before = np.minimum(centre.astype(np.intp), source - 1)
    return before, centre - before


class Moments:
    """Mean, standard deviation and minimum of each channel, accumulated over blocks in float64.

    Blocks are joined by Chan's parallel form of Welford's update, which does not lose the
    variance of a signal with a large mean.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self.lowest = np.full(channels, np.inf)
        self._squares = np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """Add a block [n, k] of finite values."""
        count = len(values)
        if count == 0:
            return
        self.lowest = np.minimum(self.lowest, values.min(axis=0))
        mean = values.mean(axis=0, dtype=np.float64)
        self._add(count, mean, np.square(values - mean).sum(axis=0))

    def join(self, other: Moments) -> None:
        """Add what another has gathered."""
        if other.count:
            self.lowest = np.minimum(self.lowest, other.lowest)
            self._add(other.count, other.mean, other._squares)

    def _add(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        total = self.count + count
        delta = mean - self.mean
        self._squares += squares + np.square(delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation [k]."""
        return np.sqrt(self._squares / max(self.count, 1))
