"""Activations computed again in the backward pass: the same results from less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmcortex.model.network import Network
from fmcortex.model.recurrent import segment_length

Build = Callable[..., Network]


def run(network: Network, on: bool, frames: int, stream: int | None, bf16: bool) -> Tensor:
    """Raw outputs of fixed inputs and noise."""
    network.shared.checkpoint_activations(on)
    inputs = torch.Generator().manual_seed(1)
    stimuli = torch.rand(2, frames, 12, 20, generator=inputs)
    pupil, behaviour = (torch.randn(2, frames, 2, generator=inputs) for _ in range(2))
    noise = torch.Generator().manual_seed(2)
    retina, features = network.session.inputs(stimuli, pupil, behaviour, stream, noise)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        core = network.shared(retina, features, stream, noise)
    raw = network.session.outputs(core.float(), stream, noise)
    return torch.cat([raw.flatten(), torch.rand(1, generator=noise)])  # what is drawn next, too


def gradients(network: Network, raw: Tensor, backward: bool) -> list[Tensor | None]:
    loss = raw.square().mean()
    parameters = list(network.parameters())
    if not backward:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))
    network.zero_grad(set_to_none=True)
    loss.backward()
    return [p.grad for p in parameters]


@pytest.mark.parametrize("recurrent", ["convlstm", "cvtlstm"])
@pytest.mark.parametrize(
    ("dropout", "stream", "bf16", "backward"),
    [
        (0.0, None, False, False),
        (0.3, 1, False, False),
        (0.3, None, False, True),
        (0.3, 0, True, False),
    ],
)
def test_outputs_and_gradients_are_the_same(
    alive: Build, recurrent: str, dropout: float, stream: int | None, bf16: bool, backward: bool
) -> None:
    network = alive(recurrent=recurrent, dropout=dropout)
    kept = run(network, False, 11, stream, bf16)
    again = run(network, True, 11, stream, bf16)
    assert torch.equal(kept, again)
    for one, two in zip(
        gradients(network, kept, backward), gradients(network, again, backward), strict=True
    ):
        assert (one is None) == (two is None)
        assert one is None or two is None or torch.equal(one, two)


def saved_bytes(network: Network, on: bool) -> int:
    """Bytes of distinct storages that the shared part keeps of 36 frames for the backward pass."""
    network.shared.checkpoint_activations(on)
    retina, features = torch.rand(2, 36, 12, 18), torch.rand(2, 8, 36)
    found: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        core = network.shared(retina, features, 0)
    assert core.requires_grad
    return sum(x.untyped_storage().nbytes() for x in found.values())


@pytest.mark.parametrize("recurrent", ["convlstm", "cvtlstm"])
def test_less_is_kept(alive: Build, recurrent: str) -> None:
    network = alive(recurrent=recurrent)
    assert saved_bytes(network, True) < 0.4 * saved_bytes(network, False)


def test_evaluation_is_not_touched(alive: Build) -> None:
    network = alive()
    with torch.no_grad():
        assert torch.equal(run(network, True, 5, None, False), run(network, False, 5, None, False))


def test_it_is_not_saved(alive: Build) -> None:
    network = alive()
    before = set(network.state_dict())
    network.shared.checkpoint_activations(True)
    assert set(network.state_dict()) == before


def test_segments_are_of_about_the_root_of_the_frames() -> None:
    assert [segment_length(frames) for frames in (1, 2, 4, 5, 9, 10, 70, 100)] == [
        1, 2, 2, 3, 3, 4, 9, 10,
    ]  # fmt: skip
