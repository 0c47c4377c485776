"""Correlation of predicted and recorded responses (Wang et al. 2025; Schoppe et al. 2016).

Responses and predictions are [repeats, samples, neurons], after the burn-in, all videos joined;
NaN where a repeat is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def join(blocks: Sequence[Array]) -> Array:
    """Join videos of different numbers of repeats along samples, missing repeats as NaN.

    Args:
        blocks: [R_i, T_i, U] of each video.

    Returns:
        [max R_i, sum T_i, U]
    """
    repeats = max(block.shape[0] for block in blocks)
    padded = []
    for block in blocks:
        missing = ((0, repeats - block.shape[0]), (0, 0), (0, 0))
        padded.append(np.pad(block.astype(np.float64), missing, constant_values=np.nan))
    return np.concatenate(padded, axis=1)


def mean_over_repeats(x: Array) -> Array:
    """[R, T, U] to [T, U], leaving out what is NaN; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(x, axis=0)


def pearson(x: Array, y: Array) -> Array:
    """Pearson correlation over samples, for each neuron.

    Args:
        x: [T, U].
        y: [T, U]. Samples where either is NaN are left out.

    Returns:
        [U]; NaN where either does not vary.
    """
    valid = np.isfinite(x) & np.isfinite(y)
    count = np.maximum(valid.sum(axis=0), 1)

    def centred(a: Array) -> Array:
        a = np.where(valid, a, 0.0)
        deviation = np.where(valid, a - a.sum(axis=0) / count, 0.0)
        # A constant that has no exact mean leaves a residue of rounding, which is no variance.
        rounding = 1e-12 * np.abs(a).max(axis=0, initial=0.0)
        return np.where(np.abs(deviation).max(axis=0, initial=0.0) > rounding, deviation, 0.0)

    x, y = centred(x), centred(y)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm > 0, (x * y).sum(axis=0) / norm, np.nan)


def cc_abs(predicted: Array, recorded: Array) -> Array:
    """Correlation of the mean prediction with the mean response over repeats: [U]."""
    predicted = np.where(np.isfinite(recorded), predicted, np.nan)
    return pearson(mean_over_repeats(predicted), mean_over_repeats(recorded))


def cc_max(recorded: Array) -> Array:
    """The largest CC_abs that any predictor could reach, for each neuron.

    With t_s repeats at sample s, y_s the mean response over them and s_s^2 the variance between
    them, noise adds mean(s_s^2 / t_s) to the variance of y, whatever the t_s. The signal power is
    what is left, SP = Var(y) - mean(s_s^2 / t_s), and CC_max = sqrt(SP / Var(y)). Where noise is
    alike everywhere, that is the formula of Schoppe et al. 2016 with n = 1 / mean(1 / t).

    Where every sample has as many repeats, this is `cc_max_published`, to the last bit. Where
    numbers differ, that one is biased: see there. A sample with one repeat is taken to be as noisy
    as the others are together.

    Args:
        recorded: [R, T, U].

    Returns:
        [U]; NaN where the signal power SP is not positive, or there are no repeats.
    """
    return _cc_max(recorded, _signal_power)


def cc_max_published(recorded: Array) -> Array:
    """CC_max as Wang et al. 2025 compute it, for comparison with published scores.

    Schoppe et al. 2016 derived it for n repeats of every sample: y the mean response, TP the mean
    over repeats of the variance over samples, SP = (n Var(y) - TP) / (n - 1), CC_max = sqrt(SP /
    Var(y)). For t_s repeats at sample s, n = sqrt(sum(t_s - 1) / sum((t_s - 1) / t_s^2)), which
    weighs much repeated samples most, although y does not: with 2 repeats of one half and 10 of
    the other, and noise of four times the signal's variance, SP is 1.57 times what it should be,
    and a perfect predictor's CC_norm is 0.80.

    Args:
        recorded: [R, T, U].

    Returns:
        [U]; NaN as of `cc_max`.
    """
    return _cc_max(recorded, _published_signal_power)


def _cc_max(recorded: Array, power: Callable[[Array, Array], float]) -> Array:
    found = np.full(recorded.shape[2], np.nan)
    for unit in range(recorded.shape[2]):
        one = recorded[:, :, unit]
        one = one[:, np.isfinite(one).any(axis=0)]
        one = one[np.isfinite(one).sum(axis=1) > 1]
        one = one[:, np.isfinite(one).any(axis=0)]  # what only a dropped repeat saw
        if one.shape[0] < 2 or one.shape[1] < 2 or np.isfinite(one).sum(axis=0).max() < 2:
            continue
        y = np.nanmean(one, axis=0)
        signal_power = power(one, y)
        # What rounding leaves, as of a neuron that responded once, is no signal.
        if signal_power > 1e-12 * y.var():
            found[unit] = np.sqrt(signal_power / y.var())
    return found


def _published_signal_power(one: Array, y: Array) -> float:
    """Signal power of responses [R, T] with the mean [T]."""
    counts = np.isfinite(one).sum(axis=0)
    n = np.sqrt((counts - 1).sum() / ((counts - 1) / counts**2).sum())
    total_power = np.nanvar(one, axis=1, ddof=1).mean()
    return float((n * y.var(ddof=1) - total_power) / (n - 1))


def _signal_power(one: Array, y: Array) -> float:
    """Signal power of responses [R, T] with the mean [T], whatever the repeats of each sample."""
    counts = np.isfinite(one).sum(axis=0)
    if counts.min() == counts.max():
        return _published_signal_power(one, y)
    squares = np.nansum((one - y) ** 2, axis=0)
    pooled = squares.sum() / (counts - 1).sum()
    noise = np.where(counts > 1, squares / np.maximum(counts - 1, 1), pooled)
    return float(y.var(ddof=1) - (noise / counts).mean())


def single_trial_correlation(predicted: Array, recorded: Array) -> Array:
    """Pearson over all trials and frames joined, without averaging repeats: [U].

    The score of the public dynamic benchmark (Sensorium 2023), once the first 50 frames of each
    trial are left out.
    """
    units = recorded.shape[2]
    return pearson(predicted.reshape(-1, units), recorded.reshape(-1, units))
