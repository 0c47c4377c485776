"""The network as a whole: streams, noise, time, and what `predict` accepts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fmcortex.errors import DataError
from fmcortex.model.network import Network, SessionPart, SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.model.sizes import ModelConfig

Build = Callable[..., Network]
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]
KINDS = ("convlstm", "cvtlstm")


@pytest.fixture
def inputs() -> Inputs:
    """Three sequences of 9 frames: a video of 10 x 16 pixels, the pupil, the behaviour."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (3, 9, 10, 16), dtype=np.uint8)
    return video, rng.normal(size=(3, 9, 2)), rng.normal(size=(3, 9, 2))


@pytest.fixture
def tensors(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The same as tensors."""
    return torch.from_numpy(inputs[0]), *(torch.from_numpy(x).float() for x in inputs[1:])


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: object, b: object) -> bool:
    return np.allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)


def test_the_response_is_that_of_the_mean_raw_output(
    alive: Build, tensors: tuple[torch.Tensor, ...]
) -> None:
    network = alive(streams=3)
    with torch.no_grad():
        streams = [network.raw(*tensors, stream)[:, :, 0] for stream in range(3)]
        raw = network.raw(*tensors)
        response = network(*tensors)
        alone = network(*tensors, 1)
    assert raw.shape == (3, 9, 3, 5)
    for stream in range(3):
        assert close(raw[:, :, stream], streams[stream])
        assert not close(streams[stream], streams[stream - 1])
    assert close(response, torch.exp(sum(streams) / 3))
    assert not close(response, sum(s.exp() for s in streams) / 3)
    assert close(alone, streams[1].exp())


def test_the_unit_of_the_lesion_study(alive: Build, tensors: tuple[torch.Tensor, ...]) -> None:
    network = alive(unit="elu")
    with torch.no_grad():
        raw, response = network.raw(*tensors).mean(2), network(*tensors)
    assert raw.min() < 0 < raw.max()
    assert close(response, torch.where(raw > 0, raw + 1, raw.exp()))


def test_a_stream_trains_its_own_weights_only(
    alive: Build, tensors: tuple[torch.Tensor, ...]
) -> None:
    network = alive()
    network.raw(*tensors, 1, noise(0)).square().sum().backward()
    for name, p in network.named_parameters():
        trained = p.grad is not None and bool(p.grad.any())
        assert trained == (rule_of(p).stream in (None, 1)), name
    # All that is shared among mice belongs to some stream.
    assert {rule_of(p).stream for p in network.shared.parameters()} == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [0, 1, 2])
@pytest.mark.parametrize("frame", [0, 4, 8])
def test_the_future_does_not_change_the_past(
    alive: Build, inputs: Inputs, kind: str, changed: int, frame: int
) -> None:
    network = alive(recurrent=kind)
    before = network.predict(*inputs)
    inputs[changed][:, frame] = 255 - inputs[changed][:, frame]
    after = network.predict(*inputs)
    assert np.allclose(before[:, :frame], after[:, :frame], rtol=0, atol=1e-7)
    # The frame itself, and what follows, does change.
    assert (np.abs(after - before).max(axis=(0, 2)) > 1e-6)[frame:].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_recording_is_the_start_of_the_longer(
    alive: Build, inputs: Inputs, kind: str
) -> None:
    network = alive(recurrent=kind)
    whole = network.predict(*inputs)
    for frames in (1, 2, 5):
        assert close(network.predict(*(x[:, :frames] for x in inputs)), whole[:, :frames])


def test_sequences_of_a_batch_do_not_mix(alive: Build, inputs: Inputs) -> None:
    network = alive()
    together = network.predict(*inputs)
    for i in range(3):
        assert close(network.predict(*(x[i] for x in inputs)), together[i])
        assert network.predict(*(x[i] for x in inputs)).shape == (9, 5)
    assert not close(together[0], together[1])


def test_noise_is_a_function_of_its_seed(alive: Build, tensors: tuple[torch.Tensor, ...]) -> None:
    network = alive(dropout=0.3)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (network.raw(*tensors, 0, noise(seed)) for seed in (5, 5, 6))
        quiet = [network.raw(*tensors, 0) for _ in range(2)]
    assert torch.equal(first, again)
    assert torch.equal(*quiet)
    assert not close(first, other)
    assert not close(first, quiet[0])
    assert torch.equal(torch.get_rng_state(), state)  # no other generator is drawn from


@pytest.mark.parametrize(
    "still", [("center_std", "angle_std"), ("center_std", "sigma"), ("angle_std", "sigma")]
)
def test_each_noise_is_drawn_once_a_sample(
    alive: Build, tensors: tuple[torch.Tensor, ...], still: tuple[str, ...]
) -> None:
    network = alive()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(still):
                p.zero_()
        video, eye, behaviour = (x[:1, :1].expand(3, 9, *x.shape[2:]) for x in tensors)
        quiet = network.session.inputs(video, eye, behaviour)[0]
        retina = network.session.inputs(video, eye, behaviour, 0, noise(0))[0]
        position = network.readout.position(3, noise(0))
    monitor = "sigma" in still
    assert close(retina, quiet) != monitor
    assert close(position, network.readout.position(3).detach()) == monitor
    jittered = retina if monitor else position
    assert not close(jittered[0], jittered[1])  # samples differ,
    assert all(close(retina[:, 0], retina[:, t]) for t in range(9))  # frames do not


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_masks_hold_for_a_whole_sequence(
    alive: Build, tensors: tuple[torch.Tensor, ...], kind: str
) -> None:
    network = alive(dropout=0.4, recurrent=kind)
    seen: dict[str, torch.Tensor] = {}
    watched = {
        "first": network.core.feedforward.blocks[0].convs[0],
        "second": network.core.feedforward.blocks[1].convs[0],
        "hidden": network.core.recurrent.out,
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach())
        )
    dropped = {}
    for seed in (0, 1):
        network.raw(*tensors, 0, noise(seed))
        for name, x in seen.items():
            zero = (x == 0).all(dim=(3, 4))  # [N, C, T]
            assert torch.equal(zero.all(dim=2), zero.any(dim=2)), name
            dropped[name, seed] = zero[:, :, 0]
            assert not torch.equal(zero[0, :, 0], zero[1, :, 0])
    for name in watched:
        both = torch.cat([dropped[name, 0], dropped[name, 1]]).float()
        assert 0.2 < both.mean() < 0.6, name
        assert not torch.equal(dropped[name, 0], dropped[name, 1])
    # What is kept is scaled up so that its mean stays.
    still = network.session.inputs(*tensors, 0)[0]
    network.core.feedforward(still, 0)
    plain = seen["first"].clone()
    network.core.feedforward(still, 0, noise(3))
    kept = (seen["first"] != 0).any(dim=(2, 3, 4), keepdim=True)
    assert close(seen["first"], plain * kept / 0.6)


def test_prediction_drops_nothing(alive: Build, inputs: Inputs) -> None:
    network = alive(dropout=0.5)
    plain = alive()
    plain.load_state_dict(network.state_dict())
    assert close(network.train().predict(*inputs), plain.eval().predict(*inputs))


def test_networks_of_several_mice_share_one_part(small: ModelConfig, inputs: Inputs) -> None:
    shared = SharedPart(small)
    one, two = (Network(shared, SessionPart(small, units)) for units in (2, 4))
    assert one.core is two.core
    assert one.modulation.lstm is two.modulation.lstm
    assert one.shared is shared
    names = {*one.shared.state_dict(), *one.session.state_dict()}
    assert names == set(one.state_dict())
    assert not set(one.shared.state_dict()) & set(one.session.state_dict())
    prefixes = {name.split(".")[0] for name in one.shared.state_dict()}
    assert prefixes == {"core", "modulation"}
    # A new readout says nothing yet: every response is exp(0).
    assert np.array_equal(two.predict(*inputs), np.ones((3, 9, 4), np.float32))


def test_predict_takes_any_array_of_the_right_shape(alive: Build, inputs: Inputs) -> None:
    network = alive()
    video, eye, behaviour = inputs
    expected = network.predict(*inputs)
    assert expected.dtype == np.float32
    strided = np.asfortranarray(video)[:, ::1]
    assert close(network.predict(strided, eye.astype("f4"), behaviour), expected)
    flipped = np.ascontiguousarray(video[..., ::-1])[..., ::-1]
    assert close(network.predict(flipped, eye, behaviour), expected)
    assert all(p.grad is None for p in network.parameters())


def test_bytes_are_levels_of_255(alive: Build, tensors: tuple[torch.Tensor, ...]) -> None:
    network, (video, eye, behaviour) = alive(), tensors
    with torch.no_grad():
        assert close(network(video, eye, behaviour), network(video.float() / 255, eye, behaviour))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, e, b: (v / 255, e, b), r"stimuli: expected uint8 .*got float64 \[3, 9, \d"),
        (lambda v, e, b: (v[0] / 255, e, b), r"stimuli: .*, got float64 \[9, \d+, \d+\]$"),
        (lambda v, e, b: (v[0, 0], e, b), r"stimuli: expected uint8 .*, got uint8 \[\d+, \d+\]$"),
        (lambda v, e, b: (v[..., None], e, b), r"stimuli: .*, got uint8 \[3, 9, \d+, \d+, 1\]$"),
        (lambda v, e, b: (v[0, :0], e[0, :0], b[0, :0]), r"stimuli: .*, got \[0, \d+, \d+\]$"),
        (lambda v, e, b: (v, e[:, :8], b), r"perspectives: expected shape \[3, 9, 2\], got \[3, 8"),
        (lambda v, e, b: (v, e, b[..., :1]), r"modulations: expected shape .*got \[3, 9, 1\]"),
        (lambda v, e, b: (v, e[0], b), r"perspectives: expected shape .*got \[9, 2\]"),
        (lambda v, e, b: (v[0], e, b), r"perspectives: expected shape \[9, 2\], got \[3, 9, 2\]"),
        (lambda v, e, b: (v, np.where(e > 1, np.nan, e), b), "perspectives: contains NaN or inf"),
        (lambda v, e, b: (v, e, np.where(b > 1, np.inf, b)), "modulations: contains NaN or inf"),
    ],
)
def test_predict_refuses_what_does_not_fit(
    alive: Build, inputs: Inputs, change: Callable[..., Inputs], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        alive().predict(*change(*inputs))


@pytest.mark.parametrize("cut", [np.s_[:, :0], np.s_[:, :, :, :1]])
def test_predict_refuses_empty_videos(alive: Build, inputs: Inputs, cut: tuple) -> None:
    video, eye, behaviour = inputs
    frames = video[cut].shape[1]
    with pytest.raises(DataError, match="stimuli: "):
        alive().predict(video[cut], eye[:, :frames], behaviour[:, :frames])
