"""The treadmill's low-pass against scipy, and what it does to a sine, an impulse and a gap."""

import numpy as np
import pytest
from scipy.signal import filtfilt, firwin, freqz

from data_prep.filtering import half_width, lowpass, lowpass_weights

RATE, CUTOFF = 100.0, 5.0
TIMES = np.arange(1000) / RATE


def test_equals_scipy():
    values = np.random.default_rng(0).normal(size=(1000, 2))
    weights = firwin(2 * 33 + 1, CUTOFF, window="hamming", fs=RATE)
    np.testing.assert_array_equal(lowpass_weights(CUTOFF, RATE), weights)
    expected = np.stack([np.convolve(column, weights, mode="same") for column in values.T], axis=1)
    found = lowpass(values, TIMES, CUTOFF)
    np.testing.assert_allclose(found[33:-33], expected[33:-33], atol=1e-12)
    # filtfilt runs the filter forwards and backwards, so twice through ours is the same.
    twice = lowpass(found, TIMES, CUTOFF)
    expected = filtfilt(weights, [1.0], values, axis=0)
    np.testing.assert_allclose(twice[100:-100], expected[100:-100], atol=1e-12)


@pytest.mark.parametrize(
    ("frequency", "gain"), [(0.5, 1), (2.5, 1), (5, 0.5), (7.5, 0), (20, 0), (40, 0)]
)
def test_sine(frequency, gain):
    sine = np.sin(2 * np.pi * frequency * TIMES)[:, None]
    inner = slice(100, -100)
    found = lowpass(sine, TIMES, CUTOFF)[inner]
    np.testing.assert_allclose(found, gain * sine[inner], atol=0.01)


@pytest.mark.parametrize("frequency", [0.3, 3.0, 4.0, 5.0, 5.5, 6.0, 9.0, 23.0])
def test_frequency_response_is_that_of_the_weights(frequency):
    """The gain, measured on sines of both phases, is scipy's; the phase shift is none."""
    weights = firwin(2 * 33 + 1, CUTOFF, window="hamming", fs=RATE)
    response = freqz(weights, worN=[frequency], fs=RATE)[1][0]
    response *= np.exp(2j * np.pi * frequency * 33 / RATE)  # freqz's taps start at time zero
    wave = np.exp(2j * np.pi * frequency * TIMES)
    found = lowpass(np.stack([wave.real, wave.imag], axis=1), TIMES, CUTOFF)[100:-100]
    gain = (found[:, 0] + 1j * found[:, 1]) / wave[100:-100]
    np.testing.assert_allclose(gain, response, atol=1e-9)
    assert abs(response.imag) < 1e-12


def test_impulse_stays_in_place_and_keeps_its_area():
    impulse = np.zeros((1000, 1))
    impulse[400] = 1
    found = lowpass(impulse, TIMES, CUTOFF)[:, 0]
    assert found.argmax() == 400
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(found[300:400], found[500:400:-1], atol=1e-15)
    reach = int(np.ceil(half_width(CUTOFF) * RATE))
    assert np.flatnonzero(np.abs(found) > 1e-15)[[0, -1]] == pytest.approx(
        [400 - reach, 400 + reach]
    )


def test_missing_samples_stay_missing_and_spoil_no_others():
    values = np.tile(np.sin(2 * np.pi * TIMES)[:, None], (1, 3))
    whole = lowpass(values, TIMES, CUTOFF)
    values[500:503, 0] = np.nan
    values[:, 2] = np.nan
    found = lowpass(values, TIMES, CUTOFF)
    assert np.isnan(found[500:503, 0]).all()
    assert np.isnan(found[:, 2]).all()
    np.testing.assert_array_equal(found[:, 1], whole[:, 1])
    others = np.r_[0:500, 503:1000]
    np.testing.assert_allclose(found[others, 0], whole[others, 0], atol=1e-3)


def test_uneven_samples():
    times = TIMES + np.random.default_rng(1).uniform(-0.002, 0.002, len(TIMES))
    wave = np.sin(2 * np.pi * times) + np.sin(2 * np.pi * 15 * times)
    found = lowpass(wave[:, None], times, CUTOFF)[:, 0]
    inner = slice(100, -100)
    np.testing.assert_allclose(found[inner], np.sin(2 * np.pi * times)[inner], atol=0.03)


def test_a_cutoff_above_half_the_rate_is_refused():
    with pytest.raises(
        ValueError, match="a low-pass at 50 Hz needs more than 100 samples a second"
    ):
        lowpass(np.zeros((1000, 1)), TIMES, 50.0)
