"""What a rank of a run holds in memory and hands to collectives in a step, before it is run.

What the frameworks take for themselves, memory that an allocator has cut up, and clips that are
read ahead are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fmcortex.config import RunConfig
from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.model.sizes import ModelConfig
from fmcortex.training.activations import Activations

#: Bytes of a parameter, of its gradient and of a moment of it: all are float32.
FLOAT = 4
#: Numbers that the optimizer keeps for each parameter.
MOMENTS = {"sgd": 1, "adamw": 2}


@dataclass(frozen=True)
class Numbers:
    """How many parameters a model has.

    Attributes:
        shared: of the shared part.
        session: of a session's part, whatever its neurons.
        unit: of each of its neurons.
    """

    shared: int
    session: int
    unit: int

    def of(self, units: int) -> int:
        """Parameters of the part of a session with `units` neurons."""
        return self.session + self.unit * units


def numbers(model: ModelConfig) -> Numbers:
    """The numbers of parameters of `model`."""

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        shared = count(SharedPart(model))
        one, two = (count(SessionPart(model, units)) for units in (1, 2))
    return Numbers(shared, 2 * one - two, two - one)


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds at the most, by kind.

    Attributes:
        parameters: of the shared part and of its sessions.
        gradients: of both. Of the shared part: the sum over the rank's lanes, that over ranks, and
            from ZeRO stage 1 on what DeepSpeed is given of it: all, or from stage 2 on a share.
        optimizer: moments of both, and from ZeRO stage 1 on DeepSpeed's copy of the weights that
            it steps.
        activations: kept for the backward pass of the largest micro-batch; a rank's lanes run one
            after another.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def rank_memory(
    config: RunConfig, counts: Numbers, kept: Activations, units: Sequence[int], ranks: int
) -> Memory:
    """What a rank holds.

    Args:
        config: of the run.
        counts: parameters of its model.
        kept: activations of its micro-batches.
        units: neurons of each session that lives on the rank.
        ranks: of the run.
    """
    stage, moments = config.cluster.zero_stage, MOMENTS[config.training.optimizer]
    own = sum(counts.of(count) for count in units)
    whole, part = counts.shared, -(-counts.shared // ranks)
    # Gathered, the weights are whole on every rank in stage 3, too: it is a small part.
    given = {0: 0, 1: whole}.get(stage, part)
    stepped = whole * moments if stage == 0 else part * (moments + 1)
    return Memory(
        parameters=FLOAT * (own + whole + (part if stage == 3 else 0)),
        gradients=FLOAT * (own + 2 * whole + given),
        optimizer=FLOAT * (own * moments + stepped),
        activations=kept.of(max(units, default=0)),
    )


def shared_traffic(config: RunConfig, counts: Numbers, ranks: int) -> int:
    """Bytes of the shared part that a rank hands to collectives in a step.

    Without ZeRO, its gradient once. With stages 1 and 2, twice (summed whole for the clipping, and
    given to DeepSpeed), and the stepped weights: the rank's part and the whole. With stage 3 the
    sum once, and the part and the whole three times: weights for the lanes, weights for DeepSpeed's
    backward pass, and the gradients given to it. Measured on two ranks, as is all of it
    (tests/cluster/test_parity.py).
    """
    if ranks == 1:
        return 0
    stage = config.cluster.zero_stage
    times = {0: 1.0, 3: 1 + 3 * (1 + 1 / ranks)}.get(stage, 2 + 1 + 1 / ranks)
    return round(FLOAT * counts.shared * times)


def session_traffic(
    counts: Numbers, units: Mapping[str, int], holders: Mapping[str, Sequence[int]], ranks: int
) -> list[int]:
    """Bytes of the gradients of sessions on several ranks, handed to collectives in a step.

    They are the most: what belongs to a stream that a session does not train in a step is not sent.

    Args:
        counts: parameters of the model.
        units: neurons of each session.
        holders: the ranks of each session.
        ranks: of the run.

    Returns:
        Bytes of each rank.
    """
    sent = [0] * ranks
    for name, held in holders.items():
        for rank in held if len(held) > 1 else ():
            sent[rank] += FLOAT * counts.of(units[name])
    return sent
