import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d

from data_prep import resampling
from data_prep.resampling import (
    Moments,
    area_weights,
    fill_gaps,
    has_hole,
    longest_gap,
    longest_gap_between,
    reduce_area,
    reduce_bilinear,
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


def test_resample_equals_scipy():
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.uniform(0.05, 0.2, 50))
    values = rng.normal(size=(50, 3))
    at = rng.uniform(times[0], times[-1], 400)
    expected = interp1d(times, values, axis=0)(at)
    np.testing.assert_allclose(resample(values, times, at), expected, rtol=0, atol=1e-12)
    delays = np.array([0.0, 0.01, -0.02])
    inside = at[(at > times[0] + 0.02) & (at < times[-1] - 0.02)]
    expected = [interp1d(times + delay, values[:, j])(inside) for j, delay in enumerate(delays)]
    found = resample(values, times, inside, delays)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("cuts", [[400], [1, 1, 300, 302], [0], [1000]])
def test_joined_moments_equal_those_of_all_at_once(cuts):
    values = np.random.default_rng(1).normal([0, 1e8, -3], [1, 1e6, 1e-3], size=(1000, 3))
    joined = Moments(3)
    for block in np.split(values, cuts):  # some are empty, also the first or the last
        part = Moments(3)
        part.add(block)
        before = part.count, part.mean.copy(), part.std
        joined.join(part)
        assert part.count == before[0]  # joining leaves the other alone
        np.testing.assert_array_equal([part.mean, part.std], before[1:])
    whole = Moments(3)
    whole.add(values)
    assert joined.count == whole.count == 1000
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(joined.std, whole.std, rtol=1e-9)
    # It goes on from there.
    joined.add(values[:10] * 2)
    both = np.concatenate([values, values[:10] * 2])
    np.testing.assert_allclose(joined.std, both.std(0), rtol=1e-9)


def test_area_averaging_by_hand():
    video = np.array([[[0, 100, 200], [20, 120, 220]]], np.uint8)
    # The middle column counts half to either side.
    expected = [[[(0 + 20 + 50 + 60) / 3, (200 + 220 + 50 + 60) / 3]]]
    np.testing.assert_array_equal(reduce_area(video, 1, 2), np.rint(expected))
    np.testing.assert_allclose(area_weights(144, 36).sum(1), 1)
    with pytest.raises(ValueError, match="cannot enlarge 2 x 3 pixels to 4 x 3"):
        reduce_area(video, 4, 3)
    with pytest.raises(ValueError, match="cannot enlarge 2 x 3 pixels to 1 x 4"):
        reduce_area(video, 1, 4)


def test_area_averaging_of_uneven_areas_by_hand():
    # Five pixels to three: areas of 5/3 pixels, cut at 5/3 and 10/3.
    line = np.array([10.0, 40.0, 70.0, 160.0, 250.0])
    across = [
        (10 + 40 * 2 / 3) * 3 / 5,
        (40 / 3 + 70 + 160 / 3) * 3 / 5,
        (160 * 2 / 3 + 250) * 3 / 5,
    ]
    np.testing.assert_allclose(area_weights(5, 3) @ line, across, rtol=1e-14)
    video = np.stack([line, line + 4]).astype(np.uint8)[None]  # [1, 2, 5]
    np.testing.assert_array_equal(reduce_area(video, 2, 3)[0, 0], np.rint(across))
    np.testing.assert_array_equal(reduce_area(video, 1, 3)[0, 0], np.rint(np.add(across, 2)))


@pytest.mark.parametrize("size", [(36, 64), (18, 32), (9, 8), (12, 64), (1, 1), (4, 2)])
def test_area_averaging_by_whole_factors_equals_torch(size):
    video = np.random.default_rng(2).integers(0, 256, (4, 36, 64), dtype=np.uint8)
    found = reduce_area(video, *size)
    assert found.dtype == np.uint8
    frames = torch.from_numpy(video.astype(np.float64))[:, None]
    expected = torch.nn.functional.interpolate(frames, size, mode="area")[:, 0].numpy()
    # Halves may go either way by the last bit of a sum in another order.
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("size", [(7, 11), (13, 8), (12, 21), (2, 20), (1, 2)])
def test_area_averaging_equals_means_of_split_pixels(size):
    """Where areas cut pixels, PyTorch counts these whole; here each is split into equal parts."""
    video = np.random.default_rng(2).integers(0, 256, (3, 13, 21), dtype=np.uint8)
    split = video.repeat(size[0], axis=1).repeat(size[1], axis=2).astype(np.float64)
    expected = split.reshape(3, size[0], 13, size[1], 21).mean(axis=(2, 4))
    assert np.abs(reduce_area(video, *size) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("reduce", [reduce_area, reduce_bilinear])
@pytest.mark.parametrize("size", [(7, 11), (13, 6), (1, 1), (13, 21)])
def test_resizing_does_not_depend_on_the_block(monkeypatch, reduce, size):
    video = np.random.default_rng(0).integers(0, 256, (9, 13, 21), dtype=np.uint8)
    whole = reduce(video, *size)
    weights = area_weights(13, size[0]), area_weights(21, size[1])
    if reduce is reduce_area:
        expected = np.rint(weights[0] @ (video.astype(np.float64) @ weights[1].T))
        np.testing.assert_array_equal(whole, expected)
    for frames in (0.5, 1, 4):  # less than one frame is one
        monkeypatch.setattr(resampling, "RESIZE_BYTES", int(frames * 8 * 13 * 21))
        np.testing.assert_array_equal(reduce(video, *size), whole)
    assert reduce(video[:0], *size).shape == (0, *size)


def test_bilinear_by_hand():
    video = np.array([[[0, 100, 200, 240], [20, 120, 220, 40]]], np.uint8)
    np.testing.assert_array_equal(reduce_bilinear(video, 1, 2), [[[60, 175]]])
    # Four pixels to three: centres at 1/6, 3/2 and 17/6.
    np.testing.assert_array_equal(
        reduce_bilinear(video, 2, 3)[0], np.rint([[100 / 6, 150, 233.33], [220 / 6, 170, 70]])
    )
    # Enlarged: quarters between the centres, and the outermost pixels hold.
    line = np.array([[[0, 100]]], np.uint8)
    np.testing.assert_array_equal(reduce_bilinear(line, 1, 4), [[[0, 25, 75, 100]]])
    # Reduced to less than a half, pixels are left out: it aliases.
    comb = np.array([[[255, 0, 0, 0, 0, 255, 0, 0, 255, 0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(reduce_bilinear(comb, 1, 3), [[[0, 128, 0]]])
    with pytest.raises(ValueError, match="cannot resize to 0 x 4 pixels"):
        reduce_bilinear(video, 0, 4)


@pytest.mark.parametrize(
    "size", [(36, 64), (17, 23), (18, 32), (5, 90), (72, 128), (1, 1), (100, 3)]
)
def test_bilinear_equals_torch(size):
    video = np.random.default_rng(1).integers(0, 256, (4, 36, 64), dtype=np.uint8)
    found = reduce_bilinear(video, *size)
    assert found.dtype == np.uint8
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(video.astype(np.float64))[:, None],
        size,
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )[:, 0].numpy()
    # Halves may go either way by the last bit of a sum in another order.
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


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
