"""Evaluation of networks on the repeated videos of a prepared dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fmcortex.data.dataset import PreparedSession, VideoArrays
from fmcortex.errors import DataError
from fmcortex.evaluation.metrics import (
    cc_abs,
    cc_max,
    cc_max_published,
    join,
    single_trial_correlation,
)
from fmcortex.model.network import Network

#: The domain that a model is trained on, which its headline score is of.
NATURAL = "natural_movie"
#: Repeats that are predicted side by side.
TOGETHER = 16


class DomainScore(BaseModel):
    """How well a network predicts one session's responses to one stimulus domain.

    Attributes:
        domain: of the stimuli.
        videos: that were shown.
        repeats: the most that one was shown.
        neurons: of the session.
        without_cc_max: neurons whose signal power is not positive, which have no CC_norm.
        cc_abs: median over neurons.
        cc_max: median over the neurons that have one.
        cc_norm: median over the neurons that have one; None if none has.
        single_trial: mean over neurons of the single-trial correlation.
        baseline_cc_norm: median CC_norm of the same network shown other videos instead, with the
            same behaviour: what it gets without the stimulus's content.
        cc_norm_published: median CC_norm by the formula of Wang et al. 2025
            (`fmcortex.evaluation.metrics.cc_max_published`), which is too low where videos were
            not all shown equally often, and the same where they were.
    """

    model_config = ConfigDict(extra="forbid")

    domain: str
    videos: int
    repeats: int
    neurons: int
    without_cc_max: int
    cc_abs: float | None
    cc_max: float | None
    cc_norm: float | None
    single_trial: float | None
    baseline_cc_norm: float | None = None
    cc_norm_published: float | None = None


class SessionScore(BaseModel):
    """Scores of one session, by stimulus domain, and of each of its neurons."""

    model_config = ConfigDict(extra="forbid")

    session: str
    tier: str
    domains: list[DomainScore]
    per_neuron: dict[str, dict[str, list[float | None]]]

    def domain(self, name: str) -> DomainScore:
        """The score on the domain called `name`.

        Raises:
            DataError: the session has no videos of it.
        """
        for score in self.domains:
            if score.domain == name:
                return score
        known = ", ".join(score.domain for score in self.domains)
        raise DataError(
            f"session {self.session}: no {self.tier} videos of domain {name!r}; its domains are "
            f"{known}"
        )


def predict_video(
    network: Network, video: VideoArrays, stimulus: np.ndarray | None = None
) -> np.ndarray:
    """Predicted responses [R, T, U] to a repeated video, each repeat with its own behaviour.

    Args:
        network: of the session.
        video: as recorded.
        stimulus: [T', H, W] to show instead; it is repeated or cut to T frames.
    """
    shown = video.stimulus if stimulus is None else np.resize(stimulus, video.stimulus.shape)
    repeats = len(video.perspectives)
    predicted = np.empty((repeats, len(shown), network.session.units), np.float32)
    for first in range(0, repeats, TOGETHER):
        some = slice(first, min(first + TOGETHER, repeats))
        eye, behaviour = video.perspectives[some], video.modulations[some]
        seen = np.broadcast_to(shown, (len(eye), *shown.shape))  # not copied
        predicted[some] = network.predict(seen, eye, behaviour)
    return predicted


def evaluate_session(
    network: Network,
    session: PreparedSession,
    tier: str = "test",
    domains: Sequence[str] | None = None,
    burnin: int = 10,
    baseline: bool = True,
    on_video: Callable[[str], None] | None = None,
) -> SessionScore:
    """Score a network on a session's repeated videos.

    Args:
        network: of this session.
        session: of the prepared dataset.
        tier: validation or test.
        domains: of the stimuli; None for all.
        burnin: first frames of each video that do not count.
        baseline: score it on exchanged videos too.
        on_video: hears the name of each video.

    Raises:
        DataError: the session has no such videos, or another number of neurons.
        ValueError: the burn-in is negative.
    """
    if burnin < 0:
        raise ValueError(f"burnin: {burnin} is below 0")
    name = session.manifest.session
    if network.session.units != session.manifest.neurons:
        raise DataError(
            f"session {name}: the network has {network.session.units} neurons, the dataset "
            f"{session.manifest.neurons}; they are not the same recording"
        )
    videos = session.videos(tier)
    wanted = sorted({v.domain for v in videos}) if domains is None else list(domains)
    if not wanted:
        raise DataError(
            f"session {name}: no {tier} videos to evaluate on{_elsewhere(session, tier)}"
        )
    for domain in wanted:
        check_domain(session, tier, domain)
    was_training = network.training
    network.eval()
    scores, per_neuron = [], {}
    try:
        for domain in wanted:
            chosen = [v for v in videos if v.domain == domain]
            score, neurons = _score_domain(network, session, chosen, burnin, baseline, on_video)
            scores.append(score)
            per_neuron[domain] = neurons
    finally:
        network.train(was_training)
    return SessionScore(session=name, tier=tier, domains=scores, per_neuron=per_neuron)


def _elsewhere(session: PreparedSession, tier: str) -> str:
    """What to add to "there are no videos": which there are, and how to score these."""
    for other in ("test", "validation"):
        found = len(session.videos(other))
        if found and other != tier:
            return f"; there are {found} {other} videos: evaluate on these with --tier {other}"
    return ": no video was repeated"


def check_domain(session: PreparedSession, tier: str, domain: str) -> None:
    """Refuse a domain of which the session has no videos.

    Raises:
        DataError: naming those that it has.
    """
    if session.videos(tier, domain):
        return
    known = sorted({video.domain for video in session.videos(tier)})
    said = f"session {session.manifest.session}: no {tier} videos of domain {domain!r}"
    if not known:
        raise DataError(said + _elsewhere(session, tier))
    others = [o for o in ("test", "validation") if o != tier and session.videos(o, domain)]
    hint = f"; --tier {others[0]} has it" if others else ""
    raise DataError(f"{said}; its domains are {', '.join(known)}{hint}")


def _score_domain(
    network: Network,
    session: PreparedSession,
    videos: Sequence[Any],
    burnin: int,
    baseline: bool,
    on_video: Callable[[str], None] | None,
) -> tuple[DomainScore, dict[str, list[float | None]]]:
    short = [v.name for v in videos if v.frames <= burnin + 1]
    if short:
        raise DataError(
            f"session {session.manifest.session}: video {short[0]} has no frames after the "
            f"burn-in of {burnin}"
        )
    arrays = [session.video(v.name) for v in videos]
    recorded, predicted, exchanged = [], [], []
    for i, (entry, video) in enumerate(zip(videos, arrays, strict=True)):
        if on_video:
            on_video(entry.name)
        recorded.append(video.responses[:, burnin:])
        predicted.append(predict_video(network, video)[:, burnin:])
        if baseline:
            exchanged.append(predict_video(network, video, _other(arrays, i))[:, burnin:])
    truth, model = join(recorded), join(predicted)
    absolute, most = cc_abs(model, truth), cc_max(truth)
    normalised, published = absolute / most, absolute / cc_max_published(truth)
    without = cc_abs(join(exchanged), truth) / most if baseline else None
    single = single_trial_correlation(model, truth)
    score = DomainScore(
        domain=videos[0].domain,
        videos=len(videos),
        repeats=truth.shape[0],
        neurons=truth.shape[2],
        without_cc_max=int(np.isnan(most).sum()),
        cc_abs=_median(absolute),
        cc_max=_median(most),
        cc_norm=_median(normalised),
        single_trial=_number(float(np.nanmean(single))) if np.isfinite(single).any() else None,
        baseline_cc_norm=None if without is None else _median(without),
        cc_norm_published=_median(published),
    )
    neurons = {
        key: [_number(float(value)) for value in values]
        for key, values in (("cc_abs", absolute), ("cc_max", most), ("cc_norm", normalised))
    }
    return score, neurons


def _other(arrays: Sequence[VideoArrays], i: int) -> np.ndarray:
    """The next video; where there is only one, the same played backwards."""
    if len(arrays) == 1:
        return arrays[0].stimulus[::-1]
    return arrays[(i + 1) % len(arrays)].stimulus


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _median(values: np.ndarray) -> float | None:
    """Median over the neurons that have a value."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
