"""Deconvolution of a trace, against optimality conditions, hand-made traces and a simulation."""

import sys

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.signal import lfilter

from data_prep.deconvolution import (
    LONGEST_GAP,
    SHORTEST,
    DeconvolutionSettings,
    baseline,
    decay_of,
    deconvolve,
)
from fmcortex.errors import DataError

RATE, DECAY, RISE = 6.3, 0.9, 0.2
GIVEN = DeconvolutionSettings(decay_seconds=DECAY, detrend_seconds=0)


def times_of(count):
    return 12.5 + np.arange(count) / RATE


def calcium(activity, rise=0.0):
    """The response of an indicator that rises and decays exponentially, sample by sample."""
    decay = np.exp(-1 / (DECAY * RATE))
    if not rise:
        return lfilter([1.0], [1.0, -decay], activity)
    rise = np.exp(-1 / (rise * RATE))
    return lfilter([1.0], [1.0, -decay - rise, decay * rise], activity)


def simulated(count=6000, noise=0.25, rise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    rate = 0.08 * np.exp(np.repeat(generator.normal(size=-(-count // 6)), 6)[:count])
    activity = generator.poisson(rate).astype(float)
    return activity, 40 + calcium(activity, rise) + noise * generator.normal(size=count)


def test_single_events_are_found_where_they_were():
    places, sizes = [50, 51, 1200, 3000], [3.0, 2.0, 2.5, 5.0]
    activity = np.zeros(4000)
    activity[places] = sizes
    trace = 7.0 + calcium(activity) + 0.1 * np.random.default_rng(1).normal(size=4000)
    found = deconvolve(trace, times_of(4000), GIVEN)
    assert np.flatnonzero(found.values > 0.5).tolist() == places
    assert found.values.min() == 0
    # The sparsest activity is less than the true one, by the same amount wherever there is some.
    less = np.add.reduceat(sizes - found.values[places], [0, 2, 3])
    np.testing.assert_allclose(less, less.mean(), atol=0.1)
    assert 0 < less.mean() < 1.2


@pytest.mark.parametrize("rise", [None, RISE], ids=["at once", "rising"])
def test_activity_and_fit_belong_together(rise):
    _, trace = simulated(rise=rise or 0.0)
    given = DeconvolutionSettings(decay_seconds=DECAY, rise_seconds=rise, detrend_seconds=0)
    found = deconvolve(trace, times_of(len(trace)), given)
    level = found.fit.min()
    again = calcium(found.values, rise or 0.0)
    # What the response was before the recording is in no activity.
    np.testing.assert_allclose((found.fit - level)[60:], (again - again.min())[60:], atol=2e-3)
    assert found.decay == DECAY
    assert found.signal == pytest.approx(np.std(found.fit))


def test_it_is_the_sparsest_that_explains_the_trace_to_within_the_noise():
    _, trace = simulated(count=600)
    found = deconvolve(trace, times_of(600), GIVEN)
    residual = trace - found.fit
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(found.noise, rel=1e-3)
    # Of min |s|_1 subject to |y - b - K s|^2 = sn^2 T and s >= 0, the conditions of Karush, Kuhn
    # and Tucker: one multiplier wherever there is activity, no more elsewhere; and so for b.
    kernel = np.exp(-1 / (DECAY * RATE)) ** np.arange(600)
    pull = np.array([residual[start:] @ kernel[: 600 - start] for start in range(600)])
    active = np.flatnonzero(found.values > 1e-6)
    inner = active[(active > 0) & (active < 590)]
    multiplier = np.median(pull[inner])
    assert len(inner) > 30
    assert multiplier > 0
    np.testing.assert_allclose(pull[inner], multiplier, rtol=0.02)
    assert pull[:590].max() < multiplier * 1.02
    assert residual.mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "rise", "least"),
    [
        (DeconvolutionSettings(), 0.0, 0.87),
        (DeconvolutionSettings(decay_seconds=DECAY), 0.0, 0.87),
        (DeconvolutionSettings(decay_seconds=DECAY, rise_seconds=RISE), RISE, 0.85),
    ],
    ids=["estimated", "given", "rising"],
)
def test_simulated_activity_is_found_again(settings, rise, least):
    activity, trace = simulated(rise=rise)
    found = deconvolve(trace, times_of(len(trace)), settings)
    assert np.corrcoef(found.values, activity)[0, 1] > least
    assert found.decay == pytest.approx(DECAY, rel=0.35)
    assert found.noise == pytest.approx(0.25, rel=0.35)


def test_bleaching_is_taken_away_first():
    activity, trace = simulated(count=16000)
    bleached = trace + 8 * np.linspace(1, 0, len(trace)) ** 2
    scores = {}
    for name, y, seconds in (("none", trace, 0), ("left", bleached, 0), ("taken", bleached, 600)):
        settings = DeconvolutionSettings(detrend_seconds=seconds)
        found = deconvolve(y, times_of(len(y)), settings).values
        scores[name] = np.corrcoef(found, activity)[0, 1]
    assert scores["left"] < scores["none"] - 0.1
    assert scores["taken"] > scores["none"] - 0.03


def test_baseline_of_a_line_is_parallel_to_it():
    line = 3.0 + 0.02 * np.arange(1000)
    gap = line - baseline(line, 300, 8.0)
    np.testing.assert_allclose(gap, gap[0], atol=1e-9)
    assert gap[0] == pytest.approx(0.02 * (299 / 2 - 0.08 * 299))
    for window in (0, 1, 700, 1000, 5000):
        np.testing.assert_array_equal(baseline(line, window, 0.0), np.full(1000, 3.0))


@pytest.mark.parametrize("more", [0, 1, 6, 1890, 1896, 3785])
def test_baseline_of_noise_is_steady_whatever_the_length(more):
    window = 3780
    for seed in range(5):
        trace = np.random.default_rng(seed).normal(size=window + more)
        assert np.ptp(baseline(trace, window, 8.0)) < 0.3


def test_short_gaps_are_bridged_however_they_are_told():
    _, trace = simulated()
    gap = np.arange(1000, 1000 + LONGEST_GAP)
    times, bridged, holes = times_of(len(trace)), trace.copy(), trace.copy()
    bridged[gap] = np.interp(gap, [999, gap[-1] + 1], trace[[999, gap[-1] + 1]])
    holes[gap] = np.nan
    expected = deconvolve(bridged, times, GIVEN).values
    np.testing.assert_array_equal(deconvolve(holes, times, GIVEN).values, expected)
    lacking = deconvolve(np.delete(trace, gap), np.delete(times, gap), GIVEN).values
    np.testing.assert_array_equal(lacking, np.delete(expected, gap))


def test_parts_between_long_gaps_are_on_their_own():
    _, trace = simulated()
    times = times_of(len(trace))
    first, middle, last = slice(0, 2500), slice(2600, 2600 + SHORTEST - 1), slice(2800, 6000)
    holes = np.full(len(trace), np.nan)
    for part in (first, middle, last):
        holes[part] = trace[part]
    found = deconvolve(holes, times, GIVEN)
    known = np.zeros(len(trace), bool)
    known[first] = known[last] = True
    np.testing.assert_array_equal(np.isfinite(found.values), known)  # the middle is too short
    # A trace that goes on after a long while is not taken for one that jumps.
    jump = holes + np.where(np.arange(len(trace)) < 2700, 0, 100)
    np.testing.assert_allclose(
        deconvolve(jump, times, GIVEN).values[known], found.values[known], atol=0.02
    )
    # Samples that lack from the times, and years between parts, are the same to it.
    moved = times + np.where(np.arange(len(trace)) < 2700, 0, 1e8)
    again = deconvolve(holes[known], moved[known], GIVEN)
    np.testing.assert_allclose(again.values, found.values[known], atol=1e-9)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e5])
@pytest.mark.parametrize("rise", [None, RISE], ids=["at once", "rising"])
def test_units_do_not_matter(unit, rise):
    _, trace = simulated(count=1000)
    given = DeconvolutionSettings(decay_seconds=DECAY, rise_seconds=rise, detrend_seconds=0)
    expected = deconvolve(trace, times_of(1000), given)
    found = deconvolve(trace * unit, times_of(1000), given)
    np.testing.assert_allclose(found.values / unit, expected.values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.fit / unit, expected.fit, rtol=1e-4)
    assert found.signal / unit == pytest.approx(expected.signal, rel=1e-4)


@pytest.mark.parametrize("rise", [None, RISE], ids=["at once", "rising"])
def test_what_was_before_the_recording_is_no_event(rise):
    activity = np.zeros(600)
    activity[[40, 400]] = [20.0, 2.0]
    trace = 3.0 + calcium(activity, rise or 0.0)
    trace += 0.1 * np.random.default_rng(0).normal(size=600)
    given = DeconvolutionSettings(decay_seconds=DECAY, rise_seconds=rise, detrend_seconds=0)
    found = deconvolve(trace[42:], times_of(558), given).values
    assert found[:20].max() < 0.5
    assert found[357:360].max() > 1


def test_time_constants_below_the_time_between_samples():
    _, trace = simulated(count=1000)
    rising = DeconvolutionSettings(decay_seconds=DECAY, rise_seconds=0.003, detrend_seconds=0)
    found = deconvolve(trace, times_of(1000), rising).values
    expected = deconvolve(trace, times_of(1000), GIVEN).values
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"decay_seconds is far below the 0\.159 s between"):
        deconvolve(trace, times_of(1000), DeconvolutionSettings(decay_seconds=1e-4))


def test_the_same_every_time():
    # On a random walk OASIS would draw a decay, from NumPy's common generator.
    trace = np.random.default_rng(3).normal(size=400).cumsum()
    found = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()  # noqa: NPY002
        found.append(deconvolve(trace, times_of(400), DeconvolutionSettings(detrend_seconds=0)))
        after = np.random.get_state()  # noqa: NPY002
        np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(found[0].values, found[1].values)
    assert found[0].decay == found[1].decay <= 10


@pytest.mark.parametrize("rate", [6.0, 15.0, 30.0, 60.0])
@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0])
def test_a_decay_is_found_alike_at_every_rate(rate, decay):
    found = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        activity = generator.poisson(0.3 / rate, round(900 * rate)).astype(float)
        trace = lfilter([1.0], [1.0, -np.exp(-1 / (decay * rate))], activity)
        found.append(decay_of(trace + 0.3 * generator.normal(size=len(trace)), rate))
    assert np.median(found) == pytest.approx(decay, rel=0.15)


def test_the_decay_of_what_does_not_decay():
    generator = np.random.default_rng(0)
    assert decay_of(np.arange(3000.0), 30.0) == pytest.approx(10.0)  # a drift
    least = -1 / (np.log(0.15) * 30)
    assert least * 0.99 <= decay_of(generator.normal(size=3000), 30.0) < 0.1  # noise
    assert decay_of((-1.0) ** np.arange(300), 30.0) == pytest.approx(least)
    assert 0 < decay_of(np.array([0.0, 1.0, 0.0]), 30.0) <= 10.0


def test_a_constant_trace_has_no_activity():
    found = deconvolve(np.full(300, 5.0), times_of(300), DeconvolutionSettings())
    assert found.values.tolist() == [0.0] * 300
    assert found.fit.tolist() == [5.0] * 300
    assert np.isnan(found.decay)
    assert found.noise == found.signal == 0
    for value in (5.0, 0.1, 1234.567, -7.1):
        found = deconvolve(np.full(9000, value), times_of(9000), DeconvolutionSettings())
        assert not found.values.any()
    nothing = deconvolve(np.full(300, np.nan), times_of(300), DeconvolutionSettings())
    assert np.isnan(nothing.values).all()


@pytest.mark.parametrize(
    "values",
    [
        {"rise_seconds": 0.1},
        {"decay_seconds": 0.5, "rise_seconds": 0.5},
        {"decay_seconds": 0},
        {"decay_seconds": float("inf")},
        {"detrend_seconds": float("inf")},
        {"detrend_percentile": 101},
        {"order": 2},
    ],
)
def test_settings_that_cannot_be(values):
    with pytest.raises(ValidationError):
        DeconvolutionSettings(**values)


def test_without_oasis_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "oasis", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[deconvolution\]'"):
        deconvolve(np.arange(300.0), times_of(300), GIVEN)
