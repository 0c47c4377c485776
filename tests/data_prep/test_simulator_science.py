"""The simulated mouse does what its ground truth says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_prep.simulator.behaviour import apply_blinks, sample_blinks, simulate_behaviour
from data_prep.simulator.eye import EyeMap, gaze_trace, retinal_image, sample_eye_map
from data_prep.simulator.movies import natural_movie
from data_prep.simulator.population import Population, sample_population
from data_prep.simulator.recording import Scanner, image
from data_prep.simulator.response import Responder, behaviour_gain
from data_prep.simulator.session import Session
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.stimuli import DOMAIN_STIMULI, Screen, grating

SCREEN = Screen(36, 64, 30.0, 120 / 64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def population(neurons: int, seed: int = 0) -> Population:
    return sample_population(neurons, (60.0, 33.75), 5, rng(seed))


@pytest.fixture(scope="module")
def responder() -> Responder:
    movies = [natural_movie(150, 36, 64, 30.0, rng(seed)) for seed in range(4)]
    neurons = population(60)
    return Responder(replace(neurons, direction_weight=np.full(60, 0.7)), SCREEN, movies)


def octaves(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(np.log2(found / expected))


def test_gratings_recover_preferred_direction(responder: Responder) -> None:
    neurons = responder.population
    directions = np.arange(0, 360, 22.5)
    tuning = np.empty((len(directions), len(neurons)))
    for row, direction in enumerate(directions):
        # Each neuron is best driven at its own frequencies; a middle one serves for all.
        drive = responder.drive(grating(SCREEN, 60, direction, 0.045, 2.0))
        tuning[row] = drive[30:].mean(0)
    vector = (tuning * np.exp(1j * np.radians(directions))[:, None]).sum(0)
    error = np.angle(vector * np.exp(-1j * np.radians(neurons.direction)), deg=True)
    assert np.median(np.abs(error)) < 12
    assert np.mean(np.abs(error) < 45) > 0.9


def test_gratings_recover_preferred_frequencies(responder: Responder) -> None:
    neurons = responder.population
    frequencies = np.geomspace(0.015, 0.12, 10)
    rates = np.geomspace(0.7, 9, 9)
    for index in range(0, len(neurons), 12):
        direction, sf = neurons.direction[index], neurons.spatial_frequency[index]
        tf = neurons.temporal_frequency[index]
        single = replace(
            neurons,
            **{name: column[index : index + 1] for name, column in neurons.columns().items()},
        )
        # A neuron alone is normalised by itself only, which keeps the place of its peak.
        alone = Responder(single, SCREEN, [natural_movie(60, 36, 64, 30.0, rng())])
        over_space = [
            alone.drive(grating(SCREEN, 90, direction, f, tf))[60:].mean() for f in frequencies
        ]
        assert octaves(frequencies[np.argmax(over_space)], sf) < 0.6
        over_time = [alone.drive(grating(SCREEN, 90, direction, sf, f))[60:].mean() for f in rates]
        assert octaves(rates[np.argmax(over_time)], tf) < 1.0


def test_direction_weight_silences_the_null_direction() -> None:
    half = population(20, seed=3)
    # Every neuron has a twin with the opposite direction, so that the pool has none.
    both = {name: np.concatenate([column] * 2) for name, column in half.columns().items()}
    neurons = replace(
        half,
        **both
        | {"direction": np.repeat([0.0, 180.0], 20)}
        | {"direction_weight": np.tile(np.linspace(0, 1, 20), 2)},
    )
    drives = Responder(neurons, SCREEN, [natural_movie(150, 36, 64, 30.0, rng())])
    preferred, null = (
        drives.drive(grating(SCREEN, 90, angle, 0.045, 2.5))[30:, :20].mean(0) for angle in (0, 180)
    )
    index = (preferred - null) / (preferred + null)
    assert abs(index[0]) < 0.1
    assert np.median(index[-5:]) > 0.85
    assert np.corrcoef(index, np.linspace(0, 1, 20))[0, 1] > 0.85


def test_complex_cells_do_not_see_phase(responder: Responder) -> None:
    neurons = responder.population
    modulation = np.empty(len(neurons))
    for index in range(len(neurons)):
        movie = grating(SCREEN, 90, neurons.direction[index], neurons.spatial_frequency[index], 2.0)
        drive = responder.drive(movie)[45:90, index]  # three cycles
        modulation[index] = 2 * np.abs(np.mean(drive * np.exp(2j * np.pi * np.arange(45) / 15)))
        modulation[index] /= drive.mean()
    # F1/F0 divides simple from complex cells at 1 (Skottun et al. 1991).
    assert np.median(modulation[neurons.is_complex]) < 0.3
    assert np.median(modulation[~neurons.is_complex]) > 1.0


def test_normalisation_saturates_contrast(responder: Responder) -> None:
    movie = grating(SCREEN, 60, 90.0, 0.045, 2.0)
    low, half, full = (responder.drive(c * movie)[30:].mean() for c in (0.1, 0.5, 1.0))
    assert low < half < full
    assert full / half < 1.6, "far below the factor 2.6 of the exponent alone"


def test_responses_are_causal_and_late(responder: Responder) -> None:
    movie = np.zeros((60, 36, 64), np.float32)
    movie[20:] = natural_movie(40, 36, 64, 30.0, rng(7)) / np.float32(127.5) - 1
    drive = responder.drive(movie)
    # One frame after 60 ms is the earliest; single precision leaves a trace of the transform.
    assert np.abs(drive[:21]).max() < 1e-3 * drive.max()
    assert (drive[26:32].max(0) > 10 * np.abs(drive[:21]).max()).mean() > 0.8


def test_the_eye_moves_the_receptive_field() -> None:
    eye = EyeMap(np.array([300.0, 200.0]), np.array([[0.3, 0.02], [-0.01, 0.25]]))
    pupil = np.array([[320.0, 210.0]])
    gaze = eye.gaze(pupil)
    np.testing.assert_allclose(eye.pupil(gaze), pupil)
    neurons = population(8, seed=2)
    neurons = replace(neurons, is_complex=np.ones(8, bool), phase=np.zeros(8))
    responder = Responder(neurons, SCREEN, [natural_movie(60, 36, 64, 30.0, rng())])
    x, y = SCREEN.grid()

    def mapped(gaze: np.ndarray) -> np.ndarray:
        """Centre of mass, degrees [U, 2], of where impulses of light drive the neurons."""
        total, weight = np.zeros((8, 2)), np.zeros((8, 1))
        for row in range(1, 36, 2):
            for column in range(1, 64, 2):
                movie = np.zeros((8, 36, 64), np.float32)
                movie[0, row, column] = 1
                power = responder.drive(movie, np.repeat(gaze, 8, 0)).sum(0)[:, None]
                total += power * [x[0, column], y[row, 0]]
                weight += power
        return total / weight

    shift = mapped(gaze) - mapped(np.zeros((1, 2)))
    np.testing.assert_allclose(np.median(shift, 0), gaze[0], atol=1.0)
    centre = mapped(np.zeros((1, 2)))
    assert np.median(np.abs(centre - neurons.centre)) < 1.0


def test_retinal_image_shifts_by_the_gaze() -> None:
    video = np.zeros((3, 36, 64), np.float32)
    video[:, 10, 20] = 1
    gaze = np.array([[0, 0], [2, -1], [0.5, 0]]) * SCREEN.degrees_per_pixel
    seen = retinal_image(video, gaze, SCREEN.degrees_per_pixel)
    assert seen[0, 10, 20] == 1
    assert seen[1, 11, 18] == 1
    assert seen[2, 10, 20] == seen[2, 10, 19] == 0.5
    far = retinal_image(video, gaze + 500, SCREEN.degrees_per_pixel)
    assert not far.any(), "beyond the monitor is grey"


def test_mice_have_their_own_eyes_and_gazes_move() -> None:
    first, second = sample_eye_map(rng(1)), sample_eye_map(rng(2))
    assert not np.allclose(first.gain, second.gain)
    gaze = gaze_trace(30 * 300, 30.0, 1.0, rng())
    assert 2.5 < gaze[:, 0].std() < 6
    steps = np.abs(np.diff(gaze[:, 0]))
    assert np.median(steps) < 0.5
    assert steps.max() > 5, "saccades"
    assert not gaze_trace(100, 30.0, 0.0, rng()).any()


def test_running_raises_responses() -> None:
    neurons = population(100)
    rest, run = (behaviour_gain(neurons, np.array([v]), np.zeros(1), 1.0)[0] for v in (0.0, 20.0))
    np.testing.assert_allclose(rest, 1)
    assert (run > 1).all()
    assert 1.2 < np.median(run) < 2.5
    np.testing.assert_allclose(behaviour_gain(neurons, np.array([20.0]), np.ones(1), 0.0), 1)


def test_pupil_follows_running_in_part() -> None:
    behaviour = simulate_behaviour(30 * 900, 30.0, rng())
    assert (behaviour.treadmill >= 0).all()
    assert 0.1 < (behaviour.treadmill > 2).mean() < 0.7
    assert 0.2 < np.corrcoef(behaviour.treadmill, behaviour.pupil_radius)[0, 1] < 0.9


def test_blinks() -> None:
    gaps = sample_blinks(30 * 3600, 30.0, 2.0, 0.05, rng())
    lengths = np.array([stop - start for start, stop in gaps])
    assert 90 < len(gaps) < 150
    assert 0.01 < (lengths > 10).mean() < 0.12
    trace = np.arange(60.0)[:, None] * [1, 2]
    trace[5:8] = 99
    filled = apply_blinks(trace, [(5, 8), (20, 40)])
    np.testing.assert_allclose(filled[4:9, 0], [4, 5, 6, 7, 8])
    assert np.isnan(filled[20:40]).all()
    assert np.isfinite(filled[40:]).all()


def test_long_blinks_stay_out_of_tests() -> None:
    settings = SimulationSettings(
        neurons=1, minutes=0.5, trial_seconds=3, blink_rate=30, long_blinks=0.5
    )
    for recorded in Session(settings, 0).record():
        if recorded.trial.video.tier != "train":
            assert np.isfinite(recorded.pupil_centre).all()
            assert np.isfinite(recorded.pupil_radius).all()
    everywhere = Session(settings.model_copy(update={"blinks_in_tests": True}), 0)
    assert any(
        np.isnan(recorded.pupil_radius).any()
        for recorded in everywhere.record()
        if recorded.trial.video.tier == "test"
    )


def test_areas_and_layers_differ() -> None:
    neurons = population(4000)
    median = {
        area: (
            np.median(neurons.spatial_frequency[neurons.area == area]),
            np.median(neurons.temporal_frequency[neurons.area == area]),
        )
        for area in ("V1", "LM", "AL", "RL")
    }
    assert median["V1"][0] > median["LM"][0] > median["AL"][0]
    assert median["AL"][1] > median["RL"][1] > median["V1"][1]
    share = {
        layer: neurons.is_complex[neurons.layer == layer].mean() for layer in set(neurons.layer)
    }
    assert share["L4"] < share["L2/3"] < share["L5"]
    assert len(set(neurons.unit_id)) == 4000
    v1 = neurons.area == "V1"
    assert np.corrcoef(neurons.coordinates[v1, 0], neurons.centre[v1, 0])[0, 1] > 0.95
    lm = neurons.area == "LM"
    assert np.corrcoef(neurons.coordinates[lm, 0], neurons.centre[lm, 0])[0, 1] < -0.95


def test_imaging_keeps_time_and_activity() -> None:
    scanner = Scanner(7.0, np.linspace(0, 1 / 7, 5, endpoint=False))
    around = scanner.frames_around(30.0)
    frame, centroids, totals = 60, [], []
    for start in np.linspace(0, 1, 40):
        rates = np.zeros((120 + 2 * around, 5))
        rates[around + frame] = 1
        trace = image(rates, around, start, 30.0, scanner, 0.0, rng()).responses
        assert trace.shape == (120, 5)
        centroids.append((trace * np.arange(120)[:, None]).sum(0) / trace.sum(0))
        totals.append(trace.sum(0))
    # The middle of the frame plus half a scan period, for every plane.
    expected = frame + 0.5 + 0.5 * 30 / 7
    np.testing.assert_allclose(np.mean(centroids, axis=0), expected, atol=0.5)
    np.testing.assert_allclose(np.mean(totals, axis=0), 1, rtol=0.05)
    flat = image(np.full((100, 5), 2.0), around, 0.3, 30.0, scanner, 0.0, rng()).responses
    np.testing.assert_allclose(flat, 2, rtol=1e-5)
    noisy = image(np.full((30000, 5), 2.0), around, 0.3, 30.0, scanner, 1.0, rng()).responses
    np.testing.assert_allclose(noisy.mean(0), 2, rtol=0.06)
    quieter = image(np.full((30000, 5), 2.0), around, 0.3, 30.0, scanner, 0.25, rng()).responses
    np.testing.assert_allclose(noisy.var(0) / quieter.var(0), 4, rtol=0.25)


def test_movies_have_natural_spectra_and_cuts() -> None:
    slopes = []
    for seed in range(6):
        movie = natural_movie(300, 36, 64, 30.0, rng(seed)).astype(float)
        window = np.hanning(36)[:, None] * np.hanning(64)[None]
        contrast = (movie[::10] - movie[::10].mean((1, 2), keepdims=True)) * window
        power = (np.abs(np.fft.fft2(contrast)) ** 2).mean(0)
        radius = np.hypot(np.fft.fftfreq(36)[:, None], np.fft.fftfreq(64)[None])
        band = (radius > 0.05) & (radius < 0.3)
        slopes.append(np.polyfit(np.log(radius[band]), np.log(power[band]), 1)[0])
        change = np.abs(np.diff(movie, axis=0)).mean((1, 2))
        cuts = np.flatnonzero(change > 4 * np.median(change) + 10)
        assert 1 <= len(cuts) <= 8
        assert 15 < movie.std() < 75
    assert -3.6 < np.mean(slopes) < -1.6, "power falls with about the square of frequency"


@pytest.mark.parametrize("domain", sorted(DOMAIN_STIMULI))
def test_domains_make_videos_and_say_how(domain: str) -> None:
    video, events = DOMAIN_STIMULI[domain](100, SCREEN, rng())
    assert video.dtype == np.uint8
    assert video.shape == (100, 36, 64)
    assert video.std() > 5
    assert events[0]["start"] == 0
    assert all(0 <= event["start"] < event["stop"] <= 100 for event in events)
    again, _ = DOMAIN_STIMULI[domain](100, SCREEN, rng())
    assert np.array_equal(video, again)


def test_domain_events_are_what_is_shown() -> None:
    x, y = SCREEN.grid()
    video, events = DOMAIN_STIMULI["gaussian_dots"](90, SCREEN, rng())
    for event in events:
        deviation = video[event["start"]].astype(float) - 128
        row, column = np.unravel_index(np.argmax(np.abs(deviation)), deviation.shape)
        assert abs(x[0, column] - event["x"]) <= SCREEN.degrees_per_pixel
        assert abs(y[row, 0] - event["y"]) <= SCREEN.degrees_per_pixel
        assert np.sign(deviation[row, column]) == event["sign"]
    video, events = DOMAIN_STIMULI["pink_noise"](90, SCREEN, rng())
    for event in events:
        # The shift of the pattern over two frames, by phase correlation.
        frames = video[event["start"] : event["start"] + 13 : 4].astype(float) - 127.5
        heading = np.radians(event["direction"])
        pixels = event["speed"] / 30 * 4 / SCREEN.degrees_per_pixel
        moved = [
            np.corrcoef(
                a[8:-8, 8:-8].ravel(),
                np.roll(
                    b,
                    (-round(s * pixels * np.sin(heading)), -round(s * pixels * np.cos(heading))),
                    (0, 1),
                )[8:-8, 8:-8].ravel(),
            )[0, 1]
            for s in (1, -1)
            for a, b in [frames[:2]]
        ]
        assert moved[0] > moved[1]


def test_reliability_is_that_of_real_recordings() -> None:
    settings = SimulationSettings(neurons=40, minutes=0.1, domains=(), validation_videos=0)
    session = Session(settings, 0)
    repeats: dict[str, list[np.ndarray]] = {}
    for recorded in session.record():
        if recorded.trial.video.tier == "test":
            repeats.setdefault(recorded.trial.video.name, []).append(recorded.responses[10:])
    responses = np.concatenate([np.stack(each) for each in repeats.values()], axis=1)
    count = len(responses)
    mean = responses.mean(0)
    total = responses.var(1, ddof=1).mean(0)
    signal = (count * mean.var(0, ddof=1) - total) / (count - 1)
    reliable = np.sqrt(np.maximum(signal, 0) / mean.var(0))
    assert 0.6 < np.median(reliable) < 0.85
    assert 0.2 < np.median(responses.mean((0, 1))) < 2


def test_gain_matters_but_does_not_dominate() -> None:
    session = Session(SimulationSettings(neurons=40, minutes=1.5, noise=0.0), 0)
    still, moving = [], []
    for trial in session.plan.trials[:25]:
        window = slice(trial.start, trial.start + trial.video.frames)
        still.append(
            session.responder.rates(
                natural_movie(trial.video.frames, 36, 64, 30.0, rng(trial.start))
            )
        )
        moving.append(still[-1] * session.gain(window))
    a, b = np.concatenate(still), np.concatenate(moving)
    unexplained = [1 - np.corrcoef(a[:, u], b[:, u])[0, 1] ** 2 for u in range(a.shape[1])]
    assert 0.05 < np.median(unexplained) < 0.3
