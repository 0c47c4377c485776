import numpy as np
import pytest

from data_prep.resampling import (
    Moments,
    area_weights,
    fill_gaps,
    has_hole,
    longest_gap,
    longest_gap_between,
    reduce_area,
    resample,
    resample_over_gaps,
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


def test_resample_with_delays_by_hand():
    values = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    delays = np.array([0.0, 0.25, 0.5])
    found = resample(values, np.arange(4.0), np.array([1.0, 1.25, 1.5]), delays)
    np.testing.assert_allclose(found, [[1, 0.75, 0.5], [0.75, 1, 0.75], [0.5, 0.75, 1]])


@pytest.mark.parametrize(
    ("values", "times", "gap"),
    [
        ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 0),
        ([1, NAN, NAN, 4, 5], [0, 1, 2, 3, 4], 2),
        ([1, 2, 5, 6, 7], [0, 1, 4, 5, 6], 2),  # samples lack from the times
        ([1, NAN, 5, 6, 7, 8], [0, 1, 4, 5, 6, 7], 3),  # both
        ([NAN, NAN, 1, 2, 3], [-2, -1, 0, 1, 2], 0),  # ends before the trial
        ([NAN, NAN, NAN, 2, 3], [-2, -1, 0, 1, 2], 3),  # begins before the trial
        ([1, 2, 3], [2.5, 3.5, 4.5], 1),  # starts late
        ([1, 2, NAN, NAN], [0, 1, 2, 3], 2),
        ([NAN, NAN], [0, 1], None),
    ],
)
def test_gaps_are_counted_in_samples_of_the_signal(values, times, gap):
    values = np.stack([values, np.arange(len(values))], axis=1).astype(float)
    times = np.array(times, float)
    assert longest_gap_between(values, times, 0.9, min(2.1, times[-1])) == gap


def test_resample_over_gaps_by_hand():
    values = np.array([[NAN, 1.0], [2.0, NAN], [NAN, 3.0], [8.0, NAN]])
    times = np.array([0.0, 1.0, 2.0, 4.0])
    found = resample_over_gaps(values, times, np.array([0.0, 1.0, 2.5, 4.0]))
    np.testing.assert_allclose(found, [[2, 1], [2, 2], [5, 3], [8, 3]])


def test_holes():
    times = np.array([0.0, 1.0, 2.0, 4.0, 5.0])
    assert has_hole(times, 3.0, 4.5)
    assert not has_hole(times, 0.5, 2.0)
