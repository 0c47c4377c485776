"""The first pass over a session: check every trial, find the repeats, gather the statistics.

Nothing is written before the whole session has been read once, so that bad input is found first.
The session is read in parts of a fixed number of trials, which may be read side by side; what
they found is joined in their order, so that the result does not depend on who read what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from data_prep.alignment import align
from data_prep.checks import (
    LEAVE_OUT,
    MISSING,
    ResponseStatistics,
    Showing,
    check_apart,
    check_levels,
    check_neurons,
    check_not_centred,
    check_precision,
    check_refs,
    check_responding,
)
from data_prep.readers.npy import content_name
from data_prep.readers.protocol import Reader, SessionInfo, TrialRef
from data_prep.resampling import Moments
from data_prep.scaling import response_divisor
from data_prep.settings import PrepSettings
from fmcortex.data.manifest import Document, Excluded, Sealed, Sha256, Tier
from fmcortex.data.movies import movie_name
from fmcortex.errors import DataError
from fmcortex.names import InsidePath

#: Trials that one task reads.
PART = 64


class SurveyedTrial(Document):
    """What the first pass found of a trial that is kept.

    Attributes:
        key, tier, domain: as the source or the split has them.
        video: the source's name of what was shown, None in the training tier where it has none.
        shown: hash of the stimulus as read, the same for every repeat.
        source: the file of the stimulus, for messages.
        frames: T, on the prepared dataset's frames.
        bytes: of its arrays but the movie, uncompressed.
        movie: name of the movie as it is stored.
        filled: the part of its behaviour that was interpolated over.
    """

    key: InsidePath
    tier: Tier
    domain: str
    video: str | None
    shown: str
    frames: int = Field(gt=0)
    bytes: int = Field(gt=0)
    movie: Sha256
    filled: float


class ChannelMoments(Document):
    """Mean and population standard deviation of each channel over the training trials.

    Attributes:
        lowest: the least value of each, of responses only.
    """

    mean: list[float]
    std: list[float]
    lowest: list[float] | None = None


class Survey(Sealed):
    """What the first pass found of a session: `survey.json` beside its shards.

    Attributes:
        inputs_sha256: over the source and the settings that it depends on.
        pixels: height and width of the videos as read.
        height, width: as stored.
        trials: that are kept, in the source's order.
        excluded: those that are not, and why.
        training_frames: frames over which the moments were taken.
        responses: [U], before scaling.
        perspectives, modulations: [P], [M], before standardising.
        delays: seconds [U] after a scan's time at which each neuron was imaged, if any.
        left_out: neurons that are not among the U, counted from 0 as the source has them.
    """

    inputs_sha256: Sha256
    pixels: tuple[int, int]
    height: int
    width: int
    trials: list[SurveyedTrial]
    excluded: list[Excluded]
    training_frames: int
    responses: ChannelMoments
    perspectives: ChannelMoments
    modulations: ChannelMoments
    delays: list[float] | None
    left_out: list[int] = Field(default_factory=list)


@dataclass
class Part:
    """What was found in some of a session's trials."""

    trials: list[SurveyedTrial]
    sources: list[str]
    excluded: list[Excluded]
    responses: Moments
    perspectives: Moments
    modulations: Moments
    pixels: tuple[int, int] | None = None
    pixels_source: str = ""
    size: tuple[int, int] = (0, 0)
    delays: np.ndarray | None = None
    shown: list[Showing] = field(default_factory=list)
    brightest: int = 0


def check_session(reader: Reader) -> list[TrialRef]:
    """Check what is known of a session before its trials are read; its trials.

    Raises:
        DataError: naming what is malformed.
    """
    refs = reader.trials()
    check_refs(refs, reader.info)
    check_neurons(reader.neurons(), reader.info)
    return refs


def survey_part(reader: Reader, refs: Sequence[TrialRef], settings: PrepSettings) -> Part:
    """Read some trials once.

    Raises:
        DataError: a trial is malformed; the message names the file.
        ConfigError: the settings do not fit the session.
    """
    info = reader.info
    part = Part(
        [],
        [],
        [],
        Moments(info.neurons),
        Moments(len(info.perspectives)),
        Moments(len(info.modulations)),
    )
    for ref in refs:
        if ref.left_out is not None:
            part.excluded.append(Excluded(trial=ref.key, tier=ref.tier, reason=ref.left_out))
            continue
        raw = reader.read(ref)
        trial = align(raw, info, part.pixels, settings)
        part.brightest = max(part.brightest, int(raw.stimulus.max()))
        if raw.onset is not None and raw.frame_times is not None:
            last = raw.onset + float(raw.frame_times[-1])
            part.shown.append(Showing(ref.key, raw.onset, last))
        if part.pixels is None:
            part.pixels = (raw.stimulus.shape[1], raw.stimulus.shape[2])
            part.pixels_source = raw.stimulus_source
        if isinstance(trial, str):
            part.excluded.append(Excluded(trial=ref.key, tier=ref.tier, reason=trial))
            continue
        part.size = (trial.stimulus.shape[1], trial.stimulus.shape[2])
        if part.delays is None and trial.scans:
            part.delays = np.concatenate([scans.delays for scans in trial.scans])
        if ref.tier == "train":
            part.responses.add(trial.responses)
            part.perspectives.add(trial.perspectives)
            part.modulations.add(trial.modulations)
        rows = sum(scans.values.size for scans in trial.scans) or trial.responses.size
        channels = len(info.perspectives) + len(info.modulations)
        part.trials.append(
            SurveyedTrial(
                key=ref.key,
                tier=ref.tier,
                domain=raw.ref.domain,
                video=raw.ref.video,
                shown=content_name(raw.stimulus),
                frames=len(trial.stimulus),
                bytes=4 * (rows + len(trial.stimulus) * channels),
                movie=movie_name(trial.stimulus),
                filled=trial.filled,
            )
        )
        part.sources.append(raw.stimulus_source)
    return part


def join(
    parts: Sequence[Part], info: SessionInfo, settings: PrepSettings, inputs_sha256: str
) -> Survey:
    """Put together what was found in all trials of a session.

    Raises:
        DataError: the parts do not fit together, no training trial is left, or a neuron never
            responded; the message names the file or session.
    """
    first = next((part for part in parts if part.pixels is not None), None)
    trials = [trial for part in parts for trial in part.trials]
    excluded = [item for part in parts for item in part.excluded]
    if first is None or not any(trial.tier == "train" for trial in trials):
        reasons = "; ".join(sorted({item.reason for item in excluded}))
        advice = f"; {LEAVE_OUT}" if MISSING in reasons else ""
        raise DataError(f"{info.source}: every training trial is excluded: {reasons}{advice}")
    assert first.pixels is not None
    for part in parts:
        if part.pixels not in (None, first.pixels):
            raise DataError(
                f"{part.pixels_source}: frames of {part.pixels} pixels, those of the session's"
                f" other videos have {first.pixels}; are the axes in order?"
            )
    check_levels(max(part.brightest for part in parts), info.source)
    check_apart([showing for part in parts for showing in part.shown], info.source)
    _check_repeats(trials, [source for part in parts for source in part.sources])
    moments = {}
    for name in ("responses", "perspectives", "modulations"):
        moments[name] = Moments(len(getattr(first, name).mean))
        for part in parts:
            moments[name].join(getattr(part, name))
    delays = next((part.delays for part in parts if part.delays is not None), None)
    height, width = next(part.size for part in parts if part.size != (0, 0))
    survey = Survey(
        inputs_sha256=inputs_sha256,
        pixels=first.pixels,
        height=height,
        width=width,
        trials=trials,
        excluded=excluded,
        training_frames=moments["responses"].count,
        delays=None if delays is None or not delays.any() else delays.tolist(),
        **{
            name: ChannelMoments(
                mean=found.mean.tolist(),
                std=found.std.tolist(),
                lowest=found.lowest.tolist() if name == "responses" else None,
            )
            for name, found in moments.items()
        },
    )
    check_survey(survey, info.source, settings)
    return survey


def check_survey(survey: Survey, source: str, settings: PrepSettings) -> None:
    """Check what settings ask of a survey that it does not depend on.

    Raises:
        DataError: a neuron never responded, or its responses cannot be scaled or stored as the
            settings say; the message names it.
    """
    found, divide_by = survey.responses, settings.response_normalisation
    lowest = None if found.lowest is None else np.array(found.lowest)
    responses = ResponseStatistics(np.array(found.mean), np.array(found.std), lowest)
    if divide_by == "mean":
        check_not_centred(responses, source)
    if settings.silent_neurons == "error":
        check_responding(responses, source, "mean" if divide_by == "mean" else "std")
    scale = response_divisor(found, divide_by)
    check_precision(responses, scale, settings.response_dtype, source)


def _check_repeats(trials: list[SurveyedTrial], sources: list[str]) -> None:
    """Refuse videos of the validation and test tiers that are called alike and are not."""
    first: dict[tuple[str, str | None], SurveyedTrial] = {}
    for trial, source in zip(trials, sources, strict=True):
        if trial.tier == "train":
            continue
        other = first.setdefault((trial.tier, trial.video), trial)
        if (trial.shown, trial.domain) != (other.shown, other.domain):
            raise DataError(
                f"{source}: shows another stimulus than the first repeat of video"
                f" {trial.video} (trial {other.key})"
            )


@dataclass(frozen=True)
class RepeatedVideo:
    """A video of the validation or test tier, and the trials that show it."""

    name: str
    tier: Literal["validation", "test"]
    trials: list[SurveyedTrial]


def repeated_videos(trials: Sequence[SurveyedTrial]) -> list[RepeatedVideo]:
    """The videos of the validation and test tiers, sorted, with names of their own.

    One that is in both tiers is called after its tier.
    """
    found: dict[tuple[str, str], list[SurveyedTrial]] = {}
    for trial in trials:
        if trial.tier != "train":
            assert trial.video is not None
            found.setdefault((trial.tier, trial.video), []).append(trial)
    names = [video for _, video in found]
    videos = [
        RepeatedVideo(f"{tier}-{video}" if names.count(video) > 1 else video, tier, shown)  # type: ignore[arg-type]
        for (tier, video), shown in found.items()
    ]
    return sorted(videos, key=lambda video: (video.tier, video.name))
