"""What the repeated videos of a session tell: reliability of responses, neurons that miss.

One video is in memory at a time, and of all videos of a tier only some neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.quality.metrics import flat_lines
from data_prep.quality.types import FlatLine, Reliability, Videos
from fmcortex.data.dataset import PreparedSession
from fmcortex.data.manifest import Video
from fmcortex.evaluation.metrics import cc_max, join

#: First frames of each video that do not count: the default of `evaluate_session`.
BURNIN = 10
#: Responses of all repeats that are joined at a time, 8 bytes each: 128 MiB.
VALUES_TOGETHER = 1 << 24

Say = Callable[[str], None]


@dataclass(frozen=True)
class Repeats:
    """What was found while all repeats were read once.

    Attributes:
        missing: number of repeats that each neuron misses, int [U].
        flat: stretches in which each channel stands still, perspectives first.
    """

    missing: np.ndarray
    flat: list[list[FlatLine]]


def count_videos(session: PreparedSession) -> list[Videos]:
    """The repeated videos by tier and domain."""
    manifest = session.manifest
    found: dict[tuple[str, str], list[Video]] = {}
    for video in manifest.videos:
        found.setdefault((video.tier, video.domain), []).append(video)
    return [
        Videos(
            tier=tier,
            domain=domain,
            videos=len(videos),
            least=min(video.repeats for video in videos),
            most=max(video.repeats for video in videos),
            minutes=sum(v.frames * v.repeats for v in videos) / manifest.frame_rate / 60,
        )
        for (tier, domain), videos in sorted(found.items())
    ]


def look_at_repeats(session: PreparedSession, say: Say) -> Repeats:
    """Read every repeat once.

    Raises:
        DataError, StorageError: one is damaged or cannot be read.
    """
    manifest = session.manifest
    missing = np.zeros(manifest.neurons, int)
    flat: list[list[FlatLine]] = [[] for _ in manifest.perspectives + manifest.modulations]
    for video in manifest.videos:
        say(f"video {video.name}")
        arrays = session.video(video.name)
        missing += np.isnan(arrays.responses).any(axis=1).sum(axis=0)
        for number, trial in enumerate(video.shown):
            both = arrays.perspectives[number], arrays.modulations[number]
            found = flat_in_trial(both, manifest.frame_rate, trial.key, video.tier)
            for channel, lines in zip(flat, found, strict=True):
                channel += lines
    return Repeats(missing, flat)


def flat_in_trial(
    signals: tuple[np.ndarray, np.ndarray], frame_rate: float, trial: str, tier: str
) -> Iterator[list[FlatLine]]:
    """Where each channel of a trial stands still.

    Args:
        signals: perspectives [T, P] and modulations [T, M].
        frame_rate: Hz.
        trial: its name.
        tier: of the trial.
    """
    for signal in signals:
        for channel in signal.T:
            yield [
                FlatLine(trial, tier, start / frame_rate, frames / frame_rate)
                for start, frames in flat_lines(channel, frame_rate)
            ]


def reliability(
    session: PreparedSession, burnin: int, areas: np.ndarray | None, say: Say
) -> Reliability | None:
    """CC_max of every neuron over the videos of the test tier, or else the validation tier.

    Args:
        session: of the prepared dataset.
        burnin: first frames of each video that do not count.
        areas: of the neurons [U], if known.
        say: is told what is read.

    Returns:
        None where no video is shown more than once and long enough.

    Raises:
        DataError, StorageError: a video is damaged or cannot be read.
    """
    for tier in ("test", "validation"):
        all_videos = session.videos(tier)
        # As the evaluation has it: correlations need two frames.
        videos = [video for video in all_videos if video.frames > burnin + 1]
        if any(video.repeats > 1 for video in videos):
            break
    else:
        return None
    found, of_domain = _cc_max(session, videos, burnin, say)
    by_area = {}
    if areas is not None:
        by_area = {str(area): middle(found[areas == area]) for area in np.unique(areas)}
    return Reliability(
        tier=tier,
        videos=len(videos),
        too_short=[video.name for video in all_videos if video not in videos],
        repeats=max(video.repeats for video in videos),
        burnin=burnin,
        cc_max=[float(value) if np.isfinite(value) else None for value in found],
        without=int(np.isnan(found).sum()),
        median=middle(found),
        by_area=by_area,
        by_domain={domain: middle(values) for domain, values in of_domain.items()},
    )


def _cc_max(
    session: PreparedSession, videos: list[Video], burnin: int, say: Say
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """CC_max [U] over all videos, and over those of each domain.

    The videos are read again for every block of neurons, as the definition joins all of them.
    """
    neurons = session.manifest.neurons
    samples = max(v.repeats for v in videos) * sum(v.frames - burnin for v in videos)
    together = max(1, VALUES_TOGETHER // samples)
    found = np.full(neurons, np.nan)
    of_domain = {d: np.full(neurons, np.nan) for d in sorted({v.domain for v in videos})}
    for first in range(0, neurons, together):
        some = slice(first, first + together)
        blocks: dict[str, list[np.ndarray]] = {domain: [] for domain in of_domain}
        for video in videos:
            say(f"CC_max, neurons from {first}, video {video.name}")
            responses = session.video(video.name).responses[:, burnin:, some]
            blocks[video.domain].append(responses.copy())  # lets go of the other neurons
        found[some] = cc_max(join([one for domain in blocks.values() for one in domain]))
        for domain, responses_of in blocks.items():
            of_domain[domain][some] = (
                found[some] if len(blocks) == 1 else cc_max(join(responses_of))
            )
    return found, of_domain


def middle(values: np.ndarray) -> float | None:
    """Median of the values that are there; None if none is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
