"""Predictions piece by piece: the same responses, from memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fmcortex.errors import DataError
from fmcortex.model import prediction
from fmcortex.model.network import Network

Build = Callable[..., Network]
Arrays = tuple[np.ndarray, ...]


def arrays(samples: int, frames: int) -> Arrays:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (samples, frames, 10, 16), dtype=np.uint8)
    return video, rng.normal(size=(samples, frames, 2)), rng.normal(size=(samples, frames, 2))


def whole(network: Network, given: Arrays) -> np.ndarray:
    """All frames at once."""
    video, *others = (torch.from_numpy(x) for x in given)
    with torch.no_grad():
        return network(video, *(x.float() for x in others)).numpy()


@pytest.mark.parametrize("recurrent", ["convlstm", "cvtlstm"])
@pytest.mark.parametrize("pieces", [[1] * 11, [2, 1, 5, 3], [11]])
@pytest.mark.parametrize("frames_at_a_time", [1, 4, 100])
def test_pieces_have_the_responses_of_the_whole(
    alive: Build,
    monkeypatch: pytest.MonkeyPatch,
    recurrent: str,
    pieces: list[int],
    frames_at_a_time: int,
) -> None:
    monkeypatch.setattr(prediction, "segment_frames", lambda *_: frames_at_a_time)
    network = alive(recurrent=recurrent, streams=3, block_temporals=(3, 4))
    given = arrays(2, 11)
    stream, found, start = network.stream(), [], 0
    for frames in pieces:
        found.append(stream.feed(*(x[:, start : start + frames] for x in given)))
        start += frames
    joined = np.concatenate(found, axis=1)
    np.testing.assert_allclose(joined, whole(network, given), rtol=2e-5, atol=1e-6)


def test_streams_do_not_know_of_each_other(alive: Build) -> None:
    network, given = alive(), arrays(1, 6)
    one, two = network.stream(), network.stream()
    first = one.feed(*(x[0, :3] for x in given))
    np.testing.assert_array_equal(two.feed(*(x[0, :3] for x in given)), first)
    assert first.shape == (3, 5)
    later = one.feed(*(x[0, 3:] for x in given))
    np.testing.assert_allclose(np.concatenate([first, later]), whole(network, given)[0], rtol=2e-5)


def test_the_number_of_videos_must_not_change(alive: Build) -> None:
    stream, given = alive().stream(), arrays(2, 4)
    stream.feed(*given)
    with pytest.raises(DataError, match="stimuli: 1 videos, but this stream was begun with 2"):
        stream.feed(*(x[0] for x in given))


def test_no_activation_grows_with_the_video(alive: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "NUMBERS", {"cpu": 20_000})
    network = alive()
    assert prediction.segment_frames(network.config, 1, torch.device("cpu")) > 1
    largest = []

    def look(module: torch.nn.Module, inputs: object, out: object) -> None:
        if isinstance(out, Tensor):
            largest[-1] = max(largest[-1], out.numel())

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    for frames in (60, 240):
        largest.append(0)
        network.predict(*(x[0] for x in arrays(1, frames)))
    for hook in hooks:
        hook.remove()
    assert largest[0] == largest[1]
