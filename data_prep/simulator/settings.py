"""What a simulated experiment is: the one description of the simulator's settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmcortex.config import Seed
from fmcortex.data.manifest import DOMAINS

#: The five domains that a model trained on natural movies has never seen.
OTHER_DOMAINS = tuple(name for name in DOMAINS if name != "natural_movie")

#: Of scans, Hz.
Rate = Annotated[float, Field(ge=2, le=1000)]

Layout = Literal["sensorium2023", "digital_twin", "signals"]


class SimulationSettings(BaseModel):
    """Settings of `simulate`; a session is a pure function of these and its index."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Seed = Field(0, description="seed of everything random")
    mice: int = Field(3, ge=1, le=9999, description="mice, one recording session each")
    neurons: int = Field(100, ge=1, le=1_000_000, description="neurons per mouse")
    minutes: float = Field(
        6.0, gt=0, le=100_000, description="minutes of training movies per mouse"
    )
    layout: Layout = Field("sensorium2023", description="file layout of the recordings")

    height: int = Field(36, ge=8, le=8192, description="height of the videos, pixels")
    width: int = Field(64, ge=8, le=8192, description="width of the videos, pixels")
    monitor_degrees: float = Field(
        120.0, gt=0, lt=180, description="visual angle that the monitor's width spans, degrees"
    )
    frame_rate: float = Field(30.0, gt=0, le=1000, description="stimulus frames per second, Hz")
    trial_seconds: float = Field(10.0, ge=1, le=3600, description="length of a full trial, seconds")
    gap_seconds: float = Field(
        1.0, ge=0.5, le=3600, description="grey screen between trials, seconds"
    )
    short_trials: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the videos that end early (at 60-95% of a full trial)",
    )

    test_videos: int = Field(
        2, ge=0, le=10_000, description="distinct natural movies of the test tier"
    )
    test_repeats: int = Field(10, ge=1, le=10_000, description="times each test video is shown")
    validation_videos: int = Field(
        2, ge=0, le=10_000, description="distinct natural movies of the validation (oracle) tier"
    )
    validation_repeats: int = Field(
        5, ge=1, le=10_000, description="times each validation video is shown"
    )
    domains: tuple[str, ...] = Field(
        OTHER_DOMAINS, description="further stimulus domains to show in the test tier"
    )
    domain_videos: int = Field(
        1, ge=1, le=10_000, description="distinct test videos of each further domain"
    )
    shared_movies: bool = Field(
        True,
        description="whether all mice see the same validation and test videos "
        "(training movies are each mouse's own)",
    )
    videos: tuple[str, ...] = Field(
        (),
        description="video files to cut the natural movies from instead of making them: anything "
        "imageio reads, or .npy arrays [T, H, W] uint8 at `frame_rate`; their validation and test "
        "clips are the same for all mice and never occur in training",
    )

    imaging_rate: tuple[Rate, Rate] = Field(
        (6.0, 8.0), description="range that a session's scan rate is drawn from, Hz"
    )
    eye_rate: float = Field(
        20.0,
        gt=0,
        le=10_000,
        description="frames of the eye camera per second, Hz (signals layout)",
    )
    treadmill_rate: float = Field(
        60.0,
        gt=0,
        le=10_000,
        description="samples of the treadmill per second, Hz (signals layout)",
    )
    imaging_planes: int = Field(
        5,
        ge=1,
        le=1000,
        description="planes of the volume, scanned one after another within a scan period",
    )
    noise: float = Field(
        1.0, ge=0, le=100, description="trial-to-trial variability; 1 is realistic, 0 none at all"
    )
    behaviour_gain: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="strength of the gain by running and pupil; 1 is realistic, 0 none",
    )
    eye_movement: float = Field(
        1.0, ge=0, le=10, description="size of eye movements; 1 is realistic, 0 a still eye"
    )
    blink_rate: float = Field(
        2.0, ge=0, le=1000, description="gaps in the pupil's trace per minute; most are short"
    )
    long_blinks: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the gaps longer than 10 frames; those stay NaN, shorter ones are "
        "interpolated",
    )
    blinks_in_tests: bool = Field(
        False, description="whether validation and test trials may have long gaps too"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.domains) - set(OTHER_DOMAINS))
        if unknown:
            raise ValueError(f"domains: {unknown[0]!r} is none of {', '.join(OTHER_DOMAINS)}")
        if len(set(self.domains)) < len(self.domains):
            raise ValueError("domains: each may be named once")
        low, high = self.imaging_rate
        if not low <= high <= self.frame_rate:
            raise ValueError("imaging_rate: must be low, high with low <= high <= frame_rate")
        return self

    @property
    def degrees_per_pixel(self) -> float:
        """Visual angle of a pixel; pixels are square."""
        return self.monitor_degrees / self.width

    @property
    def trial_frames(self) -> int:
        """Stimulus frames of a full trial."""
        return max(1, round(self.trial_seconds * self.frame_rate))
