import numpy as np
import pytest

from data_prep.resampling import (
    Moments,
    area_weights,
    fill_gaps,
    longest_gap,
    reduce_area,
    resample,
)

NAN = np.nan


def test_resample_by_hand():
    values = np.array([[0.0, 10.0], [4.0, 20.0], [2.0, 40.0]])
    times = np.array([0.0, 1.0, 3.0])
    result = resample(values, times, np.array([0.0, 0.25, 1.0, 2.0, 3.0]))
    expected = [[0, 10], [1, 12.5], [4, 20], [3, 30], [2, 40]]
    np.testing.assert_allclose(result, expected)


def test_resample_keeps_missing_samples_missing():
    values = np.array([[0.0], [NAN], [2.0], [3.0]])
    times = np.arange(4.0)
    result = resample(values, times, np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]))[:, 0]
    np.testing.assert_array_equal(result, [0, NAN, NAN, NAN, 2, 2.5])


def test_resample_holds_one_interval_and_no_more():
    result = resample(np.array([[1.0], [2.0]]), np.array([0.0, 1.0]), np.array([-2, -1, 2, 2.5]))
    np.testing.assert_array_equal(result[:, 0], [NAN, 1, 2, NAN])


@pytest.mark.parametrize("times", [[0.0, 0.0, 1.0], [0.0, 1.0], [1.0, 0.5, 2.0]])
def test_resample_refuses_bad_times(times):
    with pytest.raises(ValueError, match="times must increase"):
        resample(np.zeros((3, 1)), np.array(times), np.zeros(1))


@pytest.mark.parametrize("onset", [0.31, 1.0, 1.777])
@pytest.mark.parametrize("rate", [100.0, 61.3])
def test_impulse_lands_within_half_a_frame(onset, rate):
    """The time axis is right: an impulse in the signal is found on the frame nearest to it."""
    frame_rate = 30.0
    times = np.arange(0, 3, 1 / rate)
    # As wide as a frame, so that no frame steps over it.
    values = np.clip(1 - np.abs(times - onset) * frame_rate, 0, None)[:, None]
    frames = resample(values, times, np.arange(80) / frame_rate)[:, 0]
    centre = (frames * np.arange(80)).sum() / frames.sum() / frame_rate
    assert abs(centre - onset) < 0.5 / frame_rate
    assert abs(frames.argmax() / frame_rate - onset) <= 0.5 / frame_rate + 1 / rate


def test_gaps_by_hand():
    values = np.array([[NAN, 1.0], [2.0, NAN], [NAN, NAN], [NAN, 7.0], [8.0, NAN]])
    assert longest_gap(values) == 2
    np.testing.assert_allclose(fill_gaps(values), [[2, 1], [2, 3], [4, 5], [6, 7], [8, 7]])
    assert longest_gap(np.zeros((3, 2))) == 0
    assert longest_gap(np.full((3, 1), NAN)) == 3


def test_moments_equal_those_of_the_whole_and_survive_a_large_mean():
    values = np.random.default_rng(0).normal([0, 1e8, -3], size=(1000, 3))
    moments = Moments(3)
    for block in np.split(values, [1, 1, 300, 302]):
        moments.add(block)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, values.std(0), rtol=1e-7)


def test_area_averaging_by_hand():
    video = np.array([[[0, 100, 200], [20, 120, 220]]], np.uint8)
    # The middle column counts half to either side.
    expected = [[[(0 + 20 + 50 + 60) / 3, (200 + 220 + 50 + 60) / 3]]]
    np.testing.assert_array_equal(reduce_area(video, 1, 2), np.rint(expected))
    np.testing.assert_allclose(area_weights(144, 36).sum(1), 1)
    with pytest.raises(ValueError, match="cannot enlarge 2 x 3 pixels to 4 x 3"):
        reduce_area(video, 4, 3)
