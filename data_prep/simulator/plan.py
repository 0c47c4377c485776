"""What a session shows: its videos, how often, in which order and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.simulator.movies import natural_movie
from data_prep.simulator.randomness import Purpose, generator
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.stimuli import DOMAIN_STIMULI, Event, Screen
from data_prep.simulator.video_files import Clip, list_clips, load_video
from fmcortex.data.manifest import DOMAINS
from fmcortex.errors import DataError

Tier = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Video:
    """A video that a session shows.

    Attributes:
        name: its identity within the session; "train_...", "validation_..." or "<domain>-<n>".
        domain: one of `fmcortex.data.manifest.DOMAINS`.
        tier: what it is for.
        frames: its length.
        purpose, numbers: what its generator is seeded with.
        clip: where it is cut from, if from a file.
    """

    name: str
    domain: str
    tier: Tier
    frames: int
    purpose: Purpose
    numbers: tuple[int, ...]
    clip: Clip | None = None


@dataclass(frozen=True)
class Trial:
    """One showing of a video: `repeat` counts the video's showings, `start` is a session frame."""

    video: Video
    repeat: int
    start: int


@dataclass(frozen=True)
class Plan:
    """All trials of a session in the order they were shown, and the session's length in frames."""

    trials: list[Trial]
    frames: int

    def repeated(self) -> list[Video]:
        """The videos of the validation and test tiers."""
        seen = {trial.video.name: trial.video for trial in self.trials}
        return sorted(
            (video for video in seen.values() if video.tier != "train"), key=lambda v: v.name
        )


def screen_of(settings: SimulationSettings) -> Screen:
    """The monitor of an experiment."""
    return Screen(settings.height, settings.width, settings.frame_rate, settings.degrees_per_pixel)


def make_plan(settings: SimulationSettings, session: int) -> Plan:
    """The trials of a session: training and repeated videos in random order, grey between them.

    Raises:
        DataError: the user's video files do not hold enough clips.
    """
    repeated = _repeated_videos(settings, session)
    shown = [(video, 0) for video in _training_videos(settings, session)]
    for video in repeated:
        times = settings.test_repeats if video.tier == "test" else settings.validation_repeats
        shown += [(video, repeat) for repeat in range(times)]
    order = generator(settings.seed, Purpose.PLAN, session).permutation(len(shown))
    gap = int(np.ceil(settings.gap_seconds * settings.frame_rate))
    trials, start, repeats = [], gap, dict.fromkeys((video.name for video in repeated), 0)
    for index in order:
        video = shown[index][0]
        # Repeats are numbered in the order they are shown.
        repeat = repeats.get(video.name, 0)
        repeats[video.name] = repeat + 1
        trials.append(Trial(video, repeat, start))
        start += video.frames + gap
    return Plan(trials, start)


def render(video: Video, settings: SimulationSettings) -> tuple[np.ndarray, list[Event]]:
    """The pixels [T, H, W] uint8 of a video, and the events it is made of (none for movies)."""
    if video.clip is not None:
        source = load_video(video.clip.path, settings.height, settings.width, settings.frame_rate)
        return source[video.clip.start : video.clip.start + video.frames], []
    rng = generator(settings.seed, video.purpose, *video.numbers)
    if video.domain == "natural_movie":
        size = (settings.height, settings.width)
        return natural_movie(video.frames, *size, settings.frame_rate, rng), []
    return DOMAIN_STIMULI[video.domain](video.frames, screen_of(settings), rng)


def _video(
    settings: SimulationSettings,
    name: str,
    domain: str,
    tier: Tier,
    purpose: Purpose,
    numbers: tuple[int, ...],
    clip: Clip | None = None,
) -> Video:
    """A video with its length: most last a full trial, some end early."""
    rng = generator(settings.seed, Purpose.LENGTH, int(purpose), *numbers)
    share = rng.uniform(0.6, 0.95) if rng.random() < settings.short_trials else 1.0
    frames = max(1, round(share * settings.trial_frames))
    return Video(name, domain, tier, frames, purpose, numbers, clip)


def _repeated_videos(settings: SimulationSettings, session: int) -> list[Video]:
    # A shared video is seeded without the session, one of a mouse's own with its number (from 1).
    owner = 0 if settings.shared_movies else session + 1
    clips = _reserved_clips(settings)
    tests = range(settings.test_videos)
    validations = range(settings.validation_videos)
    videos = [
        _video(
            settings, f"natural_movie-{n}", "natural_movie", "test",
            Purpose.TEST_MOVIE, (owner, n), clips[n] if clips else None,
        )
        for n in tests
    ]  # fmt: skip
    videos += [
        _video(
            settings, f"validation_natural_movie-{n}", "natural_movie", "validation",
            Purpose.VALIDATION_MOVIE, (owner, n), clips[len(tests) + n] if clips else None,
        )
        for n in validations
    ]  # fmt: skip
    for domain in settings.domains:
        videos += [
            _video(
                settings, f"{domain}-{n}", domain, "test",
                Purpose.OTHER_DOMAIN, (owner, DOMAINS.index(domain), n),
            )
            for n in range(settings.domain_videos)
        ]  # fmt: skip
    return videos


def _training_videos(settings: SimulationSettings, session: int) -> list[Video]:
    """Training movies until they last `minutes`; a mouse's own, none of them shown twice.

    With video files, a mouse goes through the clips in its own random order, and through them again
    when they are used up.
    """
    clips = _clip_order(settings)[settings.test_videos + settings.validation_videos :]
    if settings.videos:
        order = generator(settings.seed, Purpose.CLIPS, session + 1).permutation(len(clips))
        clips = [clips[index] for index in order]
    wanted = settings.minutes * 60 * settings.frame_rate
    videos: list[Video] = []
    total = 0
    while total < wanted:
        number = len(videos)
        clip = clips[number % len(clips)] if clips else None
        name = f"train_{clip.name}" if clip else f"train_natural_movie-{session + 1}-{number}"
        # A clip keeps its length however often it is shown: a video's name stands for its pixels.
        numbers = (session + 1, number % len(clips) if clips else number)
        video = _video(
            settings, name, "natural_movie", "train", Purpose.TRAINING_MOVIE, numbers, clip
        )
        videos.append(video)
        total += video.frames
    return videos


def _clip_order(settings: SimulationSettings) -> list[Clip]:
    """The clips of the user's files in an order that all mice share; none without files."""
    if not settings.videos:
        return []
    clips = list_clips(
        settings.videos,
        settings.trial_frames,
        settings.height,
        settings.width,
        settings.frame_rate,
    )
    reserved = settings.test_videos + settings.validation_videos
    if len(clips) <= reserved:
        raise DataError(
            f"{settings.videos[0]}: the video files hold {len(clips)} clips of "
            f"{settings.trial_seconds:g} s; {reserved} test and validation videos and at least one "
            "training video are needed"
        )
    order = generator(settings.seed, Purpose.CLIPS).permutation(len(clips))
    return [clips[index] for index in order]


def _reserved_clips(settings: SimulationSettings) -> list[Clip]:
    return _clip_order(settings)[: settings.test_videos + settings.validation_videos]
