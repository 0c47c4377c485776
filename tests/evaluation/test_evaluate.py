"""Scores of a session: the right frames, repeats and behaviour, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmcortex.data.dataset import PreparedSession, open_dataset
from fmcortex.errors import DataError
from fmcortex.evaluation import evaluate
from fmcortex.evaluation.evaluate import SessionScore, evaluate_session, predict_video
from fmcortex.evaluation.metrics import cc_max
from fmcortex.model.network import Network
from fmcortex.model.sizes import preset

MOVIES = ("natural_movie-0", "natural_movie-1")
BURNIN = 7


@pytest.fixture(scope="module")
def network() -> Network:
    """A network of 7 neurons whose weights are moved from where they start."""
    config = preset("tiny").model_copy(update={"retina_height": 12, "retina_width": 18})
    network = Network.build(config, 7)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(p + 0.2 * torch.randn(p.shape, generator=noise))
    return network


@pytest.fixture
def session(prepared: str) -> PreparedSession:
    """Two natural test movies and one of Gabors, 4 repeats each; a validation movie of 3."""
    return open_dataset(prepared).session("mouse01-1-1")


@pytest.fixture
def score(network: Network, session: PreparedSession) -> SessionScore:
    return evaluate_session(network, session, burnin=BURNIN)


def predictions(network: Network, session: PreparedSession, *shown: str) -> np.ndarray:
    """Mean predictions [T, U] of the natural movies joined, another video shown in each."""
    found = []
    for name, other in zip(MOVIES, shown, strict=True):
        video, stimulus = session.video(name), session.video(other).stimulus
        repeats = [
            network.predict(stimulus, video.perspectives[i], video.modulations[i]) for i in range(4)
        ]
        found.append(np.mean(repeats, axis=0)[BURNIN:])
    return np.concatenate(found)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a silent neuron has none
        return np.array([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(x.shape[1])])


def test_each_repeat_is_predicted_with_its_own_behaviour(
    network: Network, session: PreparedSession
) -> None:
    video = session.video(MOVIES[0])
    predicted = predict_video(network, video)
    assert predicted.shape == video.responses.shape == (4, 90, 7)
    for i in range(4):
        alone = network.predict(video.stimulus, video.perspectives[i], video.modulations[i])
        assert predicted[i] == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert np.abs(predicted[0] - predicted[1]).max() > 1e-3


def test_memory_is_bounded_without_a_difference(
    network: Network, session: PreparedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = session.video(MOVIES[0])
    whole = predict_video(network, video)
    sizes: list[int] = []
    hook = network.perspective.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    for together, expected in ((3, [3, 1]), (1, [1, 1, 1, 1]), (9, [4])):
        sizes.clear()
        monkeypatch.setattr(evaluate, "TOGETHER", together)
        assert predict_video(network, video) == pytest.approx(whole, rel=1e-4, abs=1e-6)
        assert sizes == expected
    hook.remove()


def test_another_stimulus_is_repeated_or_cut(network: Network, session: PreparedSession) -> None:
    video = session.video(MOVIES[0])
    other = session.video(MOVIES[1]).stimulus
    twice = np.concatenate([other[:50], other[:40]])
    assert np.allclose(
        predict_video(network, video, other[:50]), predict_video(network, video, twice)
    )
    longer = np.concatenate([other, other[::-1]])
    assert np.allclose(predict_video(network, video, longer), predict_video(network, video, other))


def test_the_scores_are_those_of_numpy(
    network: Network, session: PreparedSession, score: SessionScore
) -> None:
    recorded = np.concatenate(
        [session.video(name).responses[:, BURNIN:] for name in MOVIES], axis=1
    ).astype(float)
    absolute = correlations(predictions(network, session, *MOVIES), recorded.mean(axis=0))
    most = cc_max(recorded)
    found = score.domain("natural_movie")
    assert (found.videos, found.repeats, found.neurons) == (2, 4, 7)
    neurons = {k: np.array(v, float) for k, v in score.per_neuron["natural_movie"].items()}
    assert neurons["cc_abs"] == pytest.approx(absolute, abs=1e-5)
    assert neurons["cc_max"] == pytest.approx(most, nan_ok=True)
    assert neurons["cc_norm"] == pytest.approx(absolute / most, abs=1e-4, nan_ok=True)
    assert found.without_cc_max == np.isnan(most).sum()
    assert found.cc_abs == pytest.approx(np.median(absolute), abs=1e-5)
    assert found.cc_norm == pytest.approx(np.nanmedian(absolute / most), abs=1e-4)
    assert found.cc_norm_published == found.cc_norm  # as all videos were shown equally often
    exchanged = correlations(predictions(network, session, *MOVIES[::-1]), recorded.mean(axis=0))
    assert found.baseline_cc_norm == pytest.approx(np.nanmedian(exchanged / most), abs=1e-4)
    assert abs(np.nanmedian((exchanged - absolute) / most)) > 1e-3


def test_the_single_trial_score_is_the_mean_over_neurons(
    network: Network, session: PreparedSession, score: SessionScore
) -> None:
    pairs = []
    for name in MOVIES:
        video = session.video(name)
        for i in range(4):
            p = network.predict(video.stimulus, video.perspectives[i], video.modulations[i])
            pairs.append((p[BURNIN:], video.responses[i, BURNIN:]))
    predicted, recorded = (np.concatenate(column) for column in zip(*pairs, strict=True))
    expected = correlations(predicted, recorded).mean()
    assert score.domain("natural_movie").single_trial == pytest.approx(expected, abs=1e-5)


def test_a_video_without_another_is_exchanged_for_its_reverse(
    network: Network, session: PreparedSession, score: SessionScore
) -> None:
    video = session.video("drifting_gabor-0")
    recorded = video.responses[:, BURNIN:].astype(float)
    backwards = predict_video(network, video, video.stimulus[::-1])[:, BURNIN:]
    expected = correlations(backwards.mean(axis=0), recorded.mean(axis=0)) / cc_max(recorded)
    found = score.domain("drifting_gabor")
    assert found.baseline_cc_norm == pytest.approx(np.nanmedian(expected), abs=1e-4)


def test_tiers_and_domains(network: Network, session: PreparedSession, score: SessionScore) -> None:
    assert [d.domain for d in score.domains] == ["drifting_gabor", "natural_movie"]
    assert (score.session, score.tier) == ("mouse01-1-1", "test")
    heard: list[str] = []
    one = evaluate_session(
        network, session, "validation", ["natural_movie"], 0, False, heard.append
    )
    assert heard == ["validation_natural_movie-0"]
    [domain] = one.domains
    assert (domain.videos, domain.repeats, domain.baseline_cc_norm) == (1, 3, None)
    with pytest.raises(
        DataError, match="no validation videos of domain 'drifting_gabor'; its domains are natural"
    ):
        one.domain("drifting_gabor")


def test_the_scores_are_json(score: SessionScore) -> None:
    text = score.model_dump_json()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, which is not JSON
    assert SessionScore.model_validate_json(text) == score


def test_a_perfect_prediction(
    session: PreparedSession, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicting the mean response gives 1; what comes before the burn-in does not count."""

    def perfect(network: Network, video: Any, stimulus: Any = None) -> np.ndarray:
        mean = np.broadcast_to(video.responses.mean(axis=0), video.responses.shape).copy()
        mean[:, :BURNIN] = 1e6
        return mean

    monkeypatch.setattr(evaluate, "predict_video", perfect)
    score = evaluate_session(network, session, burnin=BURNIN)
    for found in score.domains:
        assert found.cc_abs == pytest.approx(1)
    for neurons in score.per_neuron.values():
        for norm, most in zip(neurons["cc_norm"], neurons["cc_max"], strict=True):
            assert (norm is None) == (most is None)
            assert norm is None or norm == pytest.approx(1 / most)


def test_a_network_that_predicts_nothing_has_no_score(session: PreparedSession) -> None:
    new = Network.build(preset("tiny").model_copy(update={"retina_height": 12}), 7)
    found = evaluate_session(new, session, domains=["natural_movie"]).domain("natural_movie")
    assert (found.cc_abs, found.cc_norm, found.single_trial) == (None, None, None)
    assert found.cc_max is not None


def test_dropout_is_off_and_the_mode_is_kept(network: Network, session: PreparedSession) -> None:
    network.train()
    modes: list[bool] = []
    hook = network.perspective.register_forward_hook(lambda m, *_: modes.append(m.training))
    evaluate_session(network, session, domains=["drifting_gabor"])
    assert modes == [False, False]
    assert network.training
    with pytest.raises(DataError):
        evaluate_session(network, session, domains=["dots"])
    assert network.training
    network.eval()
    evaluate_session(network, session, domains=["drifting_gabor"], baseline=False)
    assert not network.training
    hook.remove()


def test_a_dataset_that_has_only_videos_of_the_other_tier(
    network: Network, session: PreparedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = session.manifest.videos
    validation = [video for video in videos if video.tier == "validation"]
    for kept, tier, said in (
        (validation, "test", "there are 1 validation videos: evaluate on these with --tier val"),
        (videos[:0], "test", "no test videos to evaluate on: no video was repeated"),
    ):
        left = session.manifest.model_copy(update={"videos": kept})
        monkeypatch.setattr(session, "manifest", left)
        with pytest.raises(DataError, match=said):
            evaluate_session(network, session, tier)
        with pytest.raises(DataError, match=r"validation videos|no video was repeated"):
            evaluate_session(network, session, tier, ["natural_movie"])


def test_what_is_refused(network: Network, session: PreparedSession, prepared: str) -> None:
    other = open_dataset(prepared).session("mouse02-1-1")
    with pytest.raises(DataError, match="mouse02-1-1: the network has 7 neurons, the dataset 12"):
        evaluate_session(network, other)
    with pytest.raises(
        DataError,
        match="mouse01-1-1: no test videos of domain 'dots'; its domains are drifting_gabor, nat",
    ):
        evaluate_session(network, session, domains=["natural_movie", "dots"])
    with pytest.raises(DataError, match="are natural_movie; --tier test has it"):
        evaluate_session(network, session, "validation", ["drifting_gabor"])
    with pytest.raises(DataError, match="no train videos to evaluate on"):
        evaluate_session(network, session, tier="train")
    with pytest.raises(DataError, match="no frames after the burn-in of 89"):
        evaluate_session(network, session, burnin=89)


def test_a_damaged_video_is_named(network: Network, session: PreparedSession) -> None:
    shard = Path(session.url) / "test-00000.tar"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[: len(content) // 2])
        damaged = open_dataset(str(Path(session.url).parents[1])).session(session.manifest.session)
        with pytest.raises(DataError, match=r"test-00000.tar: trial natural_movie-\d/\d: .*short"):
            evaluate_session(network, damaged)
    finally:
        shard.write_bytes(content)
