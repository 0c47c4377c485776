"""What a run holds and sends, told beforehand: against the tensors of real runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fmcortex.config import RunConfig
from fmcortex.model.network import Network, SessionPart, SharedPart
from fmcortex.model.sizes import ModelConfig, preset
from fmcortex.training.activations import (
    Activations,
    Kept,
    MicroBatch,
    activations,
    run_micro_batch,
)
from fmcortex.training.memory import (
    Numbers,
    numbers,
    rank_memory,
    session_traffic,
    shared_traffic,
)

NO_ACTIVATIONS = Activations(0, 0, 0)


@pytest.fixture
def small() -> ModelConfig:
    return preset("tiny").model_copy(
        update={"retina_height": 12, "retina_width": 18, "dropout": 0.2}
    )


def run_config(stage: int = 0, optimizer: str = "sgd") -> RunConfig:
    return RunConfig.model_validate(
        {"cluster": {"zero_stage": stage}, "training": {"optimizer": optimizer}}
    )


def real(of: MicroBatch, units: int, burnin: int) -> Kept:
    torch.manual_seed(0)
    parts = SharedPart(of.model), [SessionPart(of.model, units)]
    return run_micro_batch(*parts, of, of.frames, burnin)[0]


@pytest.mark.parametrize("recurrent", ["convlstm", "cvtlstm"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_of_a_real_run(
    small: ModelConfig, recurrent: str, bf16: bool, recompute: bool
) -> None:
    model = small.model_copy(update={"recurrent": recurrent})
    of = MicroBatch(model, 2, 40, 18, 32, bf16, recompute)
    told = activations(of)
    for units in (50, 800):
        # Not counted beforehand: that the frames of the burn-in have no loss.
        exact = real(of, units, 0).total
        assert told.base + told.unit * units == pytest.approx(exact, rel=1e-6)
        burnt = real(of, units, 8).total
        assert told.base + told.unit * units == pytest.approx(burnt, rel=0.05)
        assert told.of(units) == pytest.approx(exact + told.again, rel=1e-6)
    assert (told.again > 0) == recompute


def test_what_is_computed_again_is_the_largest_stage(small: ModelConfig) -> None:
    of = MicroBatch(small, 2, 40, 18, 32, recompute=True)
    stages = real(MicroBatch(small, 2, 40, 18, 32), 5, 0).of
    assert set(stages) == {"block 0", "block 1", "recurrent"}
    stages["recurrent"] *= 7 / 40  # frames of a segment
    assert activations(of).again == pytest.approx(max(stages.values()), rel=1e-6)


def test_the_count_is_that_of_autograd() -> None:
    """A network of one multiplication: what it keeps can be said by hand."""
    network = Network.build(preset("tiny"), 3)
    kept, x = Kept(network.shared, [network.session]), torch.zeros(10, 7, requires_grad=True)
    with kept.count():
        y = (x * network.session.readout.position.mu.sum()).exp()  # keeps x, the sum, its result
        y[0].square()  # keeps y once more
    assert kept.total == 4 * (70 + 1 + 70)


def test_numbers_of_parameters(small: ModelConfig) -> None:
    network = Network.build(small, 37)
    found = numbers(small)
    assert found.shared == sum(p.numel() for p in network.shared.parameters())
    assert found.of(37) == sum(p.numel() for p in network.session.parameters())


@pytest.mark.parametrize(
    ("stage", "optimizer", "expected"),
    [
        # 1000 shared parameters on 4 ranks, and sessions of 100 + 10 * 5 and 100 + 10 * 7.
        (0, "sgd", (1320, 2320, 1320)),
        (0, "adamw", (1320, 2320, 2640)),
        (1, "sgd", (1320, 3320, 320 + 500)),
        (2, "sgd", (1320, 2570, 320 + 500)),
        (2, "adamw", (1320, 2570, 640 + 750)),
        (3, "sgd", (1570, 2570, 320 + 500)),
    ],
)
def test_memory_of_a_rank(stage: int, optimizer: str, expected: tuple[int, ...]) -> None:
    kept = Activations(1e6, 1e3, 5e5)
    memory = rank_memory(run_config(stage, optimizer), Numbers(1000, 100, 10), kept, [5, 7], 4)
    assert (memory.parameters, memory.gradients, memory.optimizer) == tuple(4 * n for n in expected)
    assert memory.activations == 1_507_000  # of the larger session alone
    assert memory.total == 4 * sum(expected) + 1_507_000


@pytest.mark.parametrize(
    ("stage", "ranks", "times"),
    [
        (0, 2, 1),
        (1, 2, 3.5),
        (2, 2, 3.5),
        (1, 64, 3 + 1 / 64),
        (3, 2, 5.5),
        (3, 64, 4 + 3 / 64),
        (1, 1, 0),
    ],
)
def test_bytes_of_the_shared_part(stage: int, ranks: int, times: float) -> None:
    sent = shared_traffic(run_config(stage), Numbers(1000, 0, 0), ranks)
    assert sent == pytest.approx(4000 * times, abs=1)


def test_bytes_of_sessions_on_several_ranks() -> None:
    holders: dict[str, Any] = {"a": [0, 2], "b": [1], "c": [0, 1, 2]}
    sent = session_traffic(Numbers(9, 100, 10), {"a": 1, "b": 2, "c": 3}, holders, 3)
    assert sent == [4 * (110 + 130), 4 * 130, 4 * (110 + 130)]
