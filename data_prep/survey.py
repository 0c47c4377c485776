"""The first pass over a session: check every trial, find the repeats, gather the statistics.

Nothing is written before the whole session has been read once, so that bad input is found first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.alignment import AlignedTrial, align
from data_prep.checks import check_neurons, check_refs, check_responding
from data_prep.readers.npy import content_name
from data_prep.readers.protocol import RawTrial, Reader, TrialRef
from data_prep.resampling import Moments
from data_prep.settings import PrepSettings
from fmcortex.data.manifest import Excluded, Tier
from fmcortex.data.shards import TrialArrays
from fmcortex.errors import DataError


@dataclass(frozen=True)
class Scaling:
    """What responses are divided by, and what behaviour is centred on and divided by.

    Attributes:
        response: float64 [U].
        perspective_mean, perspective_std: float64 [P].
        modulation_mean, modulation_std: float64 [M].
    """

    response: np.ndarray
    perspective_mean: np.ndarray
    perspective_std: np.ndarray
    modulation_mean: np.ndarray
    modulation_std: np.ndarray

    def apply(self, trial: AlignedTrial) -> TrialArrays:
        """The trial as the prepared dataset stores it."""
        perspectives = (trial.perspectives - self.perspective_mean) / self.perspective_std
        modulations = (trial.modulations - self.modulation_mean) / self.modulation_std
        return TrialArrays(
            stimulus=trial.stimulus,
            responses=(trial.responses / self.response).astype("<f4"),
            perspectives=perspectives.astype("<f4"),
            modulations=modulations.astype("<f4"),
        )


@dataclass
class RepeatedVideo:
    """A video of the validation or test tier, and the trials that show it.

    Attributes:
        video: its name.
        tier, domain: those of its trials.
        frames: stimulus frames T that are kept.
        content: hash of the stimulus as read, the same for every repeat.
        refs: the repeats.
    """

    video: str
    tier: Tier
    domain: str
    frames: int
    content: str
    refs: list[TrialRef] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What the first pass found; `pixels` is the size of the videos as read."""

    pixels: tuple[int, int]
    height: int
    width: int
    neurons: dict[str, np.ndarray]
    training: list[TrialRef]
    videos: list[RepeatedVideo]
    excluded: list[Excluded]
    scaling: Scaling


def survey(reader: Reader, settings: PrepSettings) -> Survey:
    """Read every trial of a session once.

    Raises:
        DataError: anything of the session is malformed; the message names the file.
        ConfigError: the settings do not fit the session.
    """
    info = reader.info
    refs = reader.trials()
    check_refs(refs, info)
    neurons = reader.neurons()
    check_neurons(neurons, info)
    responses = Moments(info.neurons)
    perspectives = Moments(len(info.perspectives))
    modulations = Moments(len(info.modulations))
    training: list[TrialRef] = []
    videos: dict[tuple[str, str], RepeatedVideo] = {}
    excluded: list[Excluded] = []
    pixels: tuple[int, int] | None = None
    size = (0, 0)
    for ref in refs:
        raw = reader.read(ref)
        trial = align(raw, info, pixels, settings)
        pixels = (raw.stimulus.shape[1], raw.stimulus.shape[2])
        if isinstance(trial, str):
            excluded.append(Excluded(trial=ref.key, tier=ref.tier, reason=trial))
            continue
        size = (trial.stimulus.shape[1], trial.stimulus.shape[2])
        if ref.tier == "train":
            training.append(ref)
            responses.add(trial.responses)
            perspectives.add(trial.perspectives)
            modulations.add(trial.modulations)
        else:
            _add_repeat(videos, raw, len(trial.stimulus))
    if not training or pixels is None:
        reasons = "; ".join(sorted({item.reason for item in excluded}))
        raise DataError(f"{info.source}: every training trial is excluded: {reasons}")
    divide_by = settings.response_normalisation
    if settings.silent_neurons == "error":
        check_responding(responses, info, "std" if divide_by == "none" else divide_by)
    scaling = Scaling(
        response=_divisor(
            None if divide_by == "none" else getattr(responses, divide_by), info.neurons
        ),
        perspective_mean=perspectives.mean,
        perspective_std=_divisor(perspectives.std, len(info.perspectives)),
        modulation_mean=modulations.mean,
        modulation_std=_divisor(modulations.std, len(info.modulations)),
    )
    return Survey(
        pixels, *size, neurons, training, _named(list(videos.values())), excluded, scaling
    )


def _add_repeat(videos: dict[tuple[str, str], RepeatedVideo], raw: RawTrial, frames: int) -> None:
    ref = raw.ref
    assert ref.video is not None
    assert ref.tier != "train"
    content = content_name(raw.stimulus)
    entry = videos.setdefault(
        (ref.tier, ref.video),
        RepeatedVideo(ref.video, ref.tier, ref.domain, frames, content),
    )
    if (content, ref.domain) != (entry.content, entry.domain):
        raise DataError(
            f"{raw.stimulus_source}: shows another stimulus than the first repeat of video"
            f" {ref.video} (trial {entry.refs[0].key})"
        )
    entry.refs.append(ref)


def _named(videos: list[RepeatedVideo]) -> list[RepeatedVideo]:
    """The videos with names of their own: one that is in both tiers is called after its tier."""
    tiers: dict[str, int] = {}
    for entry in videos:
        tiers[entry.video] = tiers.get(entry.video, 0) + 1
    for entry in videos:
        if tiers[entry.video] > 1:
            entry.video = f"{entry.tier}-{entry.video}"
    return sorted(videos, key=lambda entry: (entry.tier, entry.video))


def _divisor(values: np.ndarray | None, channels: int) -> np.ndarray:
    """`values` to divide by: a channel that never varies, or a silent neuron, stays unscaled."""
    if values is None:
        return np.ones(channels)
    return np.where(values > 0, values, 1.0)
