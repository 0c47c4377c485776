"""Low-pass filtering with a Hamming window, as for the treadmill's velocity."""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import firwin, oaconvolve

from data_prep.resampling import resample_over_gaps


def half_width(cutoff: float) -> float:
    """Seconds on either side of a sample that its filtered value depends on.

    A windowed sinc whose window is Hamming's, of N samples at rate fs, passes over from pass to
    stop band within 3.3 fs / N (Oppenheim & Schafer, Discrete-Time Signal Processing). N is such
    that this width is the cutoff frequency itself: from half of it, where the gain is 1, to one
    and a half, where it is below 0.01.

    Args:
        cutoff: Hz.
    """
    return 3.3 / cutoff / 2


def lowpass_weights(cutoff: float, rate: float) -> np.ndarray:
    """Weights [2 n + 1] of the filter, symmetric and of sum 1, for samples at `rate`.

    Raises:
        ValueError: the cutoff is not below half the rate.
    """
    if not cutoff < rate / 2:
        raise ValueError(
            f"a low-pass at {cutoff:g} Hz needs more than {2 * cutoff:g} samples a second,"
            f" here are {rate:.4g}"
        )
    reach = math.ceil(half_width(cutoff) * rate)
    return firwin(2 * reach + 1, cutoff, window="hamming", fs=rate)


def lowpass(values: np.ndarray, times: np.ndarray, cutoff: float) -> np.ndarray:
    """Low-pass filter a signal without shifting it in time.

    The weights are symmetric and centred, so that the phase is zero. They need even samples: the
    signal is interpolated linearly to such, filtered and brought back, both of which leave even
    samples as they are. The first and last value hold beyond the ends, gaps are bridged linearly
    for their neighbours' sake, and missing samples stay missing.

    Args:
        values: [n, k], NaN where missing; n >= 2.
        times: seconds [n], increasing.
        cutoff: frequency of gain one half, Hz.

    Returns:
        float64 [n, k] at the same times.

    Raises:
        ValueError: the signal is sampled too slowly for the cutoff.
    """
    span = float(times[-1] - times[0])
    count = max(round(span / float(np.median(np.diff(times)))) + 1, 2)
    even = np.linspace(times[0], times[-1], count)
    weights = lowpass_weights(cutoff, (count - 1) / span)
    reach = len(weights) // 2
    missing = np.isnan(values)
    result = np.full(values.shape, np.nan)
    known = ~missing.all(axis=0)
    if known.any():
        signal = resample_over_gaps(values[:, known], times, even)
        padded = np.pad(signal, [(reach, reach), (0, 0)], mode="edge")
        smooth = oaconvolve(padded, weights[:, None], mode="valid", axes=0)
        result[:, known] = resample_over_gaps(smooth, even, times)
    result[missing] = np.nan
    return result
