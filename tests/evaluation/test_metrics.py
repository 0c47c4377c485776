"""Correlation metrics against formulas written out differently, and against known truth."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fmcortex.evaluation.metrics import (
    cc_abs,
    cc_max,
    cc_max_published,
    join,
    mean_over_repeats,
    pearson,
    single_trial_correlation,
)

Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(0)


def textbook_cc_max(r: np.ndarray) -> float:
    """Schoppe et al. 2016, of [R, T] without missing repeats, by power of sums.

    SP = (Var(sum of repeats) - sum of Var(repeat)) / (R (R - 1)).
    """
    repeats = len(r)
    powers = sum(np.var(one, ddof=1) for one in r)
    signal = (np.var(r.sum(axis=0), ddof=1) - powers) / (repeats * (repeats - 1))
    return float(np.sqrt(signal / np.var(r.mean(axis=0))))


def spec_cc_max(r: np.ndarray) -> float:
    """The spec's formula for [R, T] with missing repeats, in plain loops."""
    samples = [[x for x in column if not np.isnan(x)] for column in r.T]
    samples = [s for s in samples if s]
    t = [len(s) for s in samples]
    n = (sum(k - 1 for k in t) / sum((k - 1) / k**2 for k in t)) ** 0.5
    y = [sum(s) / len(s) for s in samples]
    mean = sum(y) / len(y)
    squares = sum((value - mean) ** 2 for value in y)
    powers = []
    for repeat in r:
        values = [x for x in repeat if not np.isnan(x)]
        middle = sum(values) / len(values)
        powers.append(sum((x - middle) ** 2 for x in values) / (len(values) - 1))
    signal = (n * squares / (len(y) - 1) - sum(powers) / len(powers)) / (n - 1)
    return float((signal / (squares / len(y))) ** 0.5)


def simulated(rng: Rng, repeats: int, samples: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A signal [T, 1] of variance 1, and responses [R, T, 1] with noise of that variance."""
    signal = rng.normal(size=(samples, 1))
    return signal, signal + np.sqrt(noise) * rng.normal(size=(repeats, samples, 1))


def test_join_pads_missing_repeats(rng: Rng) -> None:
    a, b = rng.normal(size=(2, 3, 4)).astype("f4"), rng.normal(size=(5, 2, 4)).astype("f4")
    joined = join([a, b])
    assert joined.shape == (5, 5, 4)
    assert joined.dtype == np.float64
    assert np.array_equal(joined[:2, :3], a)
    assert np.isnan(joined[2:, :3]).all()
    assert np.array_equal(joined[:, 3:], b)


def test_mean_over_repeats_leaves_out_what_is_missing() -> None:
    x = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])[:, :, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = mean_over_repeats(x)[:, 0]
    assert mean[:2].tolist() == [2.0, 5.0]
    assert np.isnan(mean[2])


def test_pearson_is_that_of_numpy(rng: Rng) -> None:
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(50, 6))
    y[:, 3] = 5 - 2 * x[:, 3]
    y[:, 4] = 1e6 + 1e-2 * x[:, 4]
    expected = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(6)]
    assert pearson(x, y) == pytest.approx(expected, abs=1e-6)
    assert pearson(x, y)[3] == pytest.approx(-1)


def test_pearson_leaves_out_samples_of_which_one_is_missing(rng: Rng) -> None:
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    x[rng.random((40, 3)) < 0.2] = np.nan
    y[rng.random((40, 3)) < 0.2] = np.nan
    for i, found in enumerate(pearson(x, y)):
        valid = ~np.isnan(x[:, i]) & ~np.isnan(y[:, i])
        assert 0 < valid.sum() < 40
        assert found == pytest.approx(np.corrcoef(x[valid, i], y[valid, i])[0, 1])


def test_pearson_of_what_does_not_vary(rng: Rng) -> None:
    y = rng.normal(size=(9, 3))
    x = y.copy()
    x[:, 0] = 2.0
    x[:, 1] = np.nan
    found = pearson(x, y)
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(1)


def test_pearson_of_two_constants(rng: Rng) -> None:
    constant = np.full((7, 1), 0.1)
    found = pearson(constant, rng.normal(size=(7, 1)))
    assert np.isnan(found).all()


def test_cc_abs_is_the_correlation_of_means(rng: Rng) -> None:
    p, r = rng.normal(size=(3, 30, 2)), rng.normal(size=(3, 30, 2))
    expected = [np.corrcoef(p[..., i].mean(0), r[..., i].mean(0))[0, 1] for i in range(2)]
    assert cc_abs(p, r) == pytest.approx(expected)


def test_cc_abs_predicts_only_repeats_that_were_recorded(rng: Rng) -> None:
    r, p = rng.normal(size=(3, 30, 1)), rng.normal(size=(3, 30, 1))
    r[2, :12] = np.nan
    r[:, 29] = np.nan
    means = [[np.mean(x[: 2 if t < 12 else 3, t, 0]) for t in range(29)] for x in (p, r)]
    assert cc_abs(p, r) == pytest.approx([np.corrcoef(*means)[0, 1]])
    wild = p.copy()
    wild[2, :12] = 1e6  # what was not recorded cannot count
    assert cc_abs(wild, r) == pytest.approx(cc_abs(p, r))


@pytest.mark.parametrize("repeats", [2, 5, 10])
def test_cc_max_is_the_textbook_formula(rng: Rng, repeats: int) -> None:
    r = rng.normal(size=(1, 60, 4)) + rng.normal(size=(repeats, 60, 4)) * [0.1, 0.5, 1.0, 1.5]
    expected = [textbook_cc_max(r[..., i]) for i in range(4)]
    assert cc_max(r) == pytest.approx(expected, rel=1e-10)
    assert np.isfinite(expected[:3]).all()


def test_cc_max_does_not_depend_on_scale_and_offset(rng: Rng) -> None:
    _, r = simulated(rng, 4, 80, 1.0)
    assert cc_max(3 - 7 * r) == pytest.approx(cc_max(r), rel=1e-9)


@pytest.mark.parametrize("repeats", [2, 10])
@pytest.mark.parametrize("noise", [0.2, 1.0, 5.0])
def test_cc_max_of_a_known_signal_in_noise(rng: Rng, repeats: int, noise: float) -> None:
    signal, r = simulated(rng, repeats, 40000, noise)
    truth = np.sqrt(1 / (1 + noise / repeats))
    assert cc_max(r)[0] == pytest.approx(truth, abs=0.02)
    # It is what the true signal, the best of all predictors, reaches.
    assert cc_abs(np.broadcast_to(signal, r.shape), r)[0] == pytest.approx(truth, abs=0.01)


def literal_cc_max(r: np.ndarray) -> float:
    """The unbiased CC_max of [R, T] with missing repeats, in plain loops."""
    samples = [[x for x in column if not np.isnan(x)] for column in r.T]
    samples = [s for s in samples if s]
    y = [sum(s) / len(s) for s in samples]
    squares = [sum((x - m) ** 2 for x in s) for s, m in zip(samples, y, strict=True)]
    pooled = sum(squares) / sum(len(s) - 1 for s in samples)
    added = 0.0  # to the variance of y by noise
    for s, q in zip(samples, squares, strict=True):
        added += (q / (len(s) - 1) if len(s) > 1 else pooled) / len(s) / len(samples)
    middle = sum(y) / len(y)
    variance = sum((m - middle) ** 2 for m in y) / len(y)
    return float(((variance * len(y) / (len(y) - 1) - added) / variance) ** 0.5)


@pytest.mark.parametrize(
    ("shown", "noise", "powers", "offsets"),
    [
        ((2, 10), (4, 4), (1, 1), (0, 0)),
        ((2, 2, 2, 10), (4, 4, 4, 4), (1, 1, 1, 1), (0, 0, 0, 0)),
        ((10, 10, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0)),
        ((1, 10), (1, 1), (1, 1), (0, 0)),
        # Videos of other strength, mean and noise, in which n = 1 / mean(1 / t) alone is biased.
        ((2, 10), (4, 4), (0.25, 2.25), (0, 0)),
        ((2, 10), (4, 4), (1, 1), (0, 2)),
        ((2, 10), (1, 4), (1, 1), (0, 0)),
        ((2, 10), (4, 1), (1, 1), (0, 0)),
    ],
)
def test_cc_max_is_unbiased_whatever_the_repeats(
    rng: Rng,
    shown: tuple[int, ...],
    noise: tuple[float, ...],
    powers: tuple[float, ...],
    offsets: tuple[float, ...],
) -> None:
    """The true signal, which no predictor can beat, has a CC_norm of 1 in the mean of 150 draws."""
    draws, samples = 150, 400
    signals, blocks = [], []
    for repeats, variance, power, offset in zip(shown, noise, powers, offsets, strict=True):
        signal = offset + np.sqrt(power) * rng.normal(size=(samples, draws))
        signals.append(signal)
        blocks.append(signal + np.sqrt(variance) * rng.normal(size=(repeats, samples, draws)))
    recorded, signal = join(blocks), np.concatenate(signals)
    best = cc_abs(np.broadcast_to(signal, recorded.shape), recorded)
    power = (cc_max(recorded) ** 2 * np.nanmean(recorded, axis=0).var(axis=0)).mean()
    assert power == pytest.approx(signal.var(axis=0).mean(), rel=0.05)
    assert np.median(best / cc_max(recorded)) == pytest.approx(1, abs=0.02)


def test_the_published_cc_max_is_too_high_with_unequal_repeats(rng: Rng) -> None:
    signal = rng.normal(size=(600, 150))
    recorded = signal + 2 * rng.normal(size=(10, 600, 150))
    recorded[2:, :300] = np.nan
    best = cc_abs(np.broadcast_to(signal, recorded.shape), recorded)
    assert np.median(best / cc_max_published(recorded)) == pytest.approx(0.80, abs=0.02)
    assert np.median(best / cc_max(recorded)) == pytest.approx(1, abs=0.02)


def test_cc_max_with_equal_repeats_is_as_published_to_the_last_bit(rng: Rng) -> None:
    for repeats in (2, 3, 7, 10):
        r = rng.normal(size=(1, 90, 5)) + rng.normal(size=(repeats, 90, 5)) * 1.3
        r[:, 11] = np.nan  # a sample that nobody saw
        assert cc_max(r).tolist() == cc_max_published(r).tolist()


def test_cc_max_with_missing_repeats_is_the_formula_written_out(rng: Rng) -> None:
    r = rng.normal(size=(1, 70, 5)) + rng.normal(size=(6, 70, 5))
    r[rng.random(r.shape) < 0.3] = np.nan
    r[1:, 3] = np.nan  # one repeat only,
    r[:, 7] = np.nan  # and none at all
    r[0, 3] = 1.0
    for i in range(5):
        assert cc_max(r)[i] == pytest.approx(literal_cc_max(r[..., i]), rel=1e-10)
        assert cc_max_published(r)[i] == pytest.approx(spec_cc_max(r[..., i]), rel=1e-10)


def test_a_repeat_that_was_never_shown_does_not_count(rng: Rng) -> None:
    _, r = simulated(rng, 4, 50, 1.0)
    more = np.concatenate([r, np.full_like(r, np.nan)])
    assert cc_max(more) == pytest.approx(cc_max(r), rel=1e-12)


def test_neurons_are_independent(rng: Rng) -> None:
    r = rng.normal(size=(1, 50, 3)) + rng.normal(size=(4, 50, 3))
    r[2:, :20, 1] = np.nan
    together = cc_max(r)
    alone = [cc_max(r[..., i : i + 1])[0] for i in range(3)]
    assert together.tolist() == alone


def test_neurons_without_cc_max(rng: Rng) -> None:
    good = simulated(rng, 4, 60, 1.0)[1]
    noise = rng.normal(size=(1, 60, 1)) * np.array([1, -1, 1, -1])[:, None, None]
    silent = np.zeros((4, 60, 1))
    missing = np.full((4, 60, 1), np.nan)
    once = good.copy()
    once[1:] = np.nan
    alternating = good.copy()  # every sample once, though by several repeats
    for t in range(60):
        alternating[np.arange(4) != t % 4, t] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cc_max(np.concatenate([good, noise, silent, missing, once, alternating], axis=2))
    assert np.isfinite(found[0])
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("repeats", [3, 5, 7, 10])
def test_a_single_response_is_no_signal(repeats: int) -> None:
    """Its signal power is zero; what rounding leaves made CC_norm of a million."""
    once = np.zeros((repeats, 90, 40))
    for unit in range(40):
        once[unit % repeats, unit, unit] = 0.1 * (unit + 1)
    assert np.isnan(cc_max(once)).all()
    assert np.isnan(cc_max_published(once)).all()


def test_a_sample_that_only_a_dropped_repeat_saw(rng: Rng) -> None:
    _, r = simulated(rng, 3, 40, 1.0)
    r[2, 1:] = np.nan  # the third repeat has one sample, no variance: it is dropped,
    r[:2, 0] = np.nan  # and with it the only response to sample 0
    assert cc_max(r) == pytest.approx(cc_max(r[:2, 1:]))


def test_single_trial_correlation_is_over_all_trials(rng: Rng) -> None:
    signal, r = simulated(rng, 3, 40, 1.0)
    p = np.broadcast_to(signal, r.shape).copy()
    r[2, 25:] = np.nan
    pairs = [(p[i, t, 0], r[i, t, 0]) for i in range(3) for t in range(40) if i < 2 or t < 25]
    expected = np.corrcoef(np.array(pairs).T)[0, 1]
    assert single_trial_correlation(p, r) == pytest.approx([expected])
    assert expected < cc_abs(p, r)[0]  # noise is not averaged away
