"""One simulated recording session: a mouse, its neurons, and what was recorded in each trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep.simulator.behaviour import (
    LONGEST_BRIDGED,
    Behaviour,
    apply_blinks,
    sample_blinks,
    simulate_behaviour,
    slow_noise,
)
from data_prep.simulator.eye import TRACKING_STD, EyeMap, gaze_trace, sample_eye_map
from data_prep.simulator.movies import natural_movie
from data_prep.simulator.plan import Plan, Trial, make_plan, render, screen_of
from data_prep.simulator.population import Population, sample_population
from data_prep.simulator.randomness import Purpose, generator
from data_prep.simulator.recording import Scanner, image
from data_prep.simulator.response import Responder, behaviour_gain
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.stimuli import Screen, to_contrast

#: Scenes the filters' scales are set on: enough that a scale is good to a few per cent.
CALIBRATION_MOVIES = 8
CALIBRATION_SECONDS = 8


def session_name(index: int) -> str:
    """Folder name of session `index` (from 0): animal, session and scan number."""
    return f"mouse{index + 1:02d}-1-1"


# One set of scenes for all mice, so that a filter's scale is a property of the filter.
@lru_cache(maxsize=2)
def _calibration(seed: int, screen: Screen) -> list[np.ndarray]:
    """Natural movies [T, H, W] uint8 that filters are scaled on; shown to nobody."""
    frames = round(CALIBRATION_SECONDS * screen.frame_rate)
    size = (screen.height, screen.width, screen.frame_rate)
    return [
        natural_movie(frames, *size, generator(seed, Purpose.CALIBRATION, number))
        for number in range(CALIBRATION_MOVIES)
    ]


@dataclass(frozen=True)
class Recorded:
    """What was recorded in one trial of T frames, and the gaze behind it.

    Attributes:
        trial: what was shown and when.
        video: [T, H, W] uint8.
        responses: deconvolved activity [T, U], a.u.
        scans: what it is interpolated between [n, U], and `scan_times`, seconds [n] of the
            session before the neurons' delays.
        pupil_radius: camera pixels [T], NaN in long gaps.
        pupil_centre: camera pixels [T, 2], NaN in long gaps.
        treadmill: cm/s [T].
        gaze: true gaze, degrees [T, 2].
    """

    trial: Trial
    video: np.ndarray
    responses: np.ndarray
    pupil_radius: np.ndarray
    pupil_centre: np.ndarray
    treadmill: np.ndarray
    gaze: np.ndarray
    scans: np.ndarray
    scan_times: np.ndarray


class Session:
    """A mouse in front of the monitor; a pure function of the settings and its index."""

    def __init__(self, settings: SimulationSettings, index: int) -> None:
        """Draw the mouse, its behaviour and the order of trials.

        Args:
            settings: of the experiment.
            index: of the session, from 0; how many others there are plays no part.
        """
        self.settings = settings
        self.index = index
        self.plan: Plan = make_plan(settings, index)
        frames = self.plan.frames
        screen = screen_of(settings)
        half = (
            settings.width * settings.degrees_per_pixel / 2,
            settings.height * settings.degrees_per_pixel / 2,
        )
        self.population: Population = sample_population(
            settings.neurons, half, settings.imaging_planes, self._rng(Purpose.POPULATION)
        )
        self.responder = Responder(self.population, screen, _calibration(settings.seed, screen))
        eye = self._rng(Purpose.EYE)
        self.eye: EyeMap = sample_eye_map(eye)
        self.gaze = gaze_trace(frames, settings.frame_rate, settings.eye_movement, eye)
        tracked = self.eye.pupil(self.gaze) + eye.normal(0, TRACKING_STD, self.gaze.shape)
        self.behaviour: Behaviour = simulate_behaviour(
            frames, settings.frame_rate, self._rng(Purpose.BEHAVIOUR)
        )
        gaps = self._gaps()
        self.pupil_centre = apply_blinks(tracked, gaps)
        self.pupil_radius = apply_blinks(self.behaviour.pupil_radius, gaps)
        imaging = self._rng(Purpose.IMAGING)
        rate = imaging.uniform(*settings.imaging_rate)
        delay = self.population.plane / settings.imaging_planes / rate
        self.scanner = Scanner(rate, delay)
        self.shared = slow_noise(frames, 2.0, settings.frame_rate, self._rng(Purpose.VARIABILITY))

    @property
    def name(self) -> str:
        """Folder name."""
        return session_name(self.index)

    def record(self) -> Iterator[Recorded]:
        """The session's trials in the order they were shown."""
        cache: dict[str, np.ndarray] = {}
        for number, trial in enumerate(self.plan.trials):
            video = cache.get(trial.video.name)
            if video is None:
                video, _ = render(trial.video, self.settings)
                if trial.video.tier != "train":
                    cache[trial.video.name] = video
            yield self._record(number, trial, video)

    def gain(self, window: slice | np.ndarray) -> np.ndarray:
        """Gain [T, U] by behaviour and by the shared fluctuation at the session frames `window`."""
        gain = behaviour_gain(
            self.population,
            self.behaviour.treadmill[window],
            self.behaviour.arousal[window],
            self.settings.behaviour_gain,
        )
        # Slow fluctuations shared by neurons are a part of what makes trials differ (Goris et al.,
        # Nat. Neurosci. 17, 858-865, 2014), so they come and go with the noise setting.
        shared = self.population.gain_shared * self.shared[window, None]
        spread = np.sqrt(self.settings.noise)
        return gain * np.exp(spread * shared - spread**2 * self.population.gain_shared**2 / 2)

    def _record(self, number: int, trial: Trial, video: np.ndarray) -> Recorded:
        settings = self.settings
        around = self.scanner.frames_around(settings.frame_rate)
        frames = trial.video.frames
        shown = slice(trial.start, trial.start + frames)
        window = np.arange(trial.start - around, trial.start + frames + around)
        window = np.clip(window, 0, self.plan.frames - 1)
        contrast = np.zeros((len(window), *video.shape[1:]), np.float32)
        contrast[around : around + frames] = to_contrast(video)
        rates = self.responder.rates(contrast, self.gaze[window]) * self.gain(window)
        imaged = image(
            rates,
            around,
            trial.start / settings.frame_rate,
            settings.frame_rate,
            self.scanner,
            settings.noise,
            self._rng(Purpose.VARIABILITY, 1, number),
        )
        return Recorded(
            trial=trial,
            video=video,
            responses=imaged.responses,
            pupil_radius=self.pupil_radius[shown].astype(np.float32),
            pupil_centre=self.pupil_centre[shown].astype(np.float32),
            treadmill=self.behaviour.treadmill[shown].astype(np.float32),
            gaze=self.gaze[shown].astype(np.float32),
            scans=imaged.scans,
            scan_times=imaged.times,
        )

    def _gaps(self) -> list[tuple[int, int]]:
        settings = self.settings
        gaps = sample_blinks(
            self.plan.frames,
            settings.frame_rate,
            settings.blink_rate,
            settings.long_blinks,
            self._rng(Purpose.BLINKS),
        )
        if settings.blinks_in_tests:
            return gaps
        tests = np.zeros(self.plan.frames, bool)
        for trial in self.plan.trials:
            tests[trial.start : trial.start + trial.video.frames] |= trial.video.tier != "train"
        return [
            (start, stop)
            for start, stop in gaps
            if stop - start <= LONGEST_BRIDGED or not tests[start:stop].any()
        ]

    def _rng(self, purpose: Purpose, *numbers: int) -> np.random.Generator:
        return generator(self.settings.seed, purpose, self.index, *numbers)
