"""The two ways that `session_sharding.py` compares: a session on one rank, or all on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cluster.engine import DeepSpeedEngine
from cluster.peers import Ranks
from cluster.placement import micro_batch_costs, place_lanes
from fmcortex.config import TrainingConfig
from fmcortex.data.loader import Batch
from fmcortex.data.plan import SamplingPlan
from fmcortex.device import Compute
from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.model.sizes import PRESETS, ModelConfig
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.objective import objective
from fmcortex.training.step import Trainer

#: A small core with the released model's number of readout weights a neuron. One stream, so that a
#: step trains every weight: replicated, the streams that rest would be sent as zeros.
MODEL = ModelConfig.model_validate(
    {
        **PRESETS["small"].model_dump(),
        "streams": 1,
        "feedforward_out": 128,
        "recurrent_in": 128,
        "recurrent_hidden": 128,
        "recurrent_common": 256,
        "recurrent_out": 512,
    }
)
TRAINING = TrainingConfig(burnin=1, epochs=2, warmup_epochs=1, steps_per_epoch=100)
CPU = Compute(torch.device("cpu"))


class Sharded:
    """Each session on the rank that trains it, as a run does."""

    def __init__(self, rank: int, ranks: int, plan: SamplingPlan, neurons: int, stage: int) -> None:
        costs = micro_batch_costs(dict.fromkeys(plan.sessions, neurons))
        placement = place_lanes(plan.lanes, costs, ranks)
        self.lanes = placement.lanes[rank]
        parts = {n: build_session(MODEL, neurons, 0, n) for n in placement.sessions[rank]}
        engine = DeepSpeedEngine(build_shared(MODEL, 0), TRAINING, CPU, stage)
        peers = Ranks(placement.holders, CPU)
        self.trainer = Trainer(TRAINING, plan, engine, parts, CPU, peers)
        self.parameters = [*engine.module.parameters()]
        self.parameters += [p for part in parts.values() for p in part.parameters()]

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Train a step."""
        self.trainer.step(step, batches)

    @property
    def stepping(self) -> tuple[Any, str]:
        """The object and the name of its method that is called when gradients are ready."""
        return self.trainer.engine, "step"

    def states(self) -> Iterable[Tensor]:
        """The optimizers' states."""
        engine: Any = self.trainer.engine
        for optimizer in (engine.optimizer, *self.trainer.optimizers.values()):
            for state in optimizer.state.values():
                yield from (v for v in state.values() if isinstance(v, Tensor))
        # The weights that ZeRO steps, in its own precision.
        yield from getattr(engine.engine.optimizer, "single_partition_of_fp32_groups", [])


class Everything(nn.Module):
    """The shared part and the parts of all sessions."""

    def __init__(self, shared: SharedPart, parts: Mapping[str, SessionPart]) -> None:
        super().__init__()
        self.shared, self.parts = shared, nn.ModuleDict(parts)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a micro-batch."""
        part = self.parts[batch.draw.session]
        noise = torch.Generator().manual_seed(batch.draw.noise_seed)
        stream = batch.draw.stream
        inputs = part.inputs(batch.stimuli, batch.perspectives, batch.modulations, stream, noise)
        core = self.shared(*inputs, stream, noise)
        raw = part.outputs(core, stream, noise)[:, :, 0]
        return objective(raw, batch.responses, TRAINING.burnin)


class Replicated:
    """Everything on every rank, gradients averaged by DistributedDataParallel.

    Set up to its advantage: gradients live in the buckets that are sent, and are sent once a step,
    with a rank's last lane.
    """

    def __init__(self, rank: int, ranks: int, plan: SamplingPlan, neurons: int) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.lanes = list(range(rank, len(plan.lanes), ranks))
        self.scale = ranks / len(plan.lanes)
        parts = {n: build_session(MODEL, neurons, 0, n) for n in plan.sessions}
        module = Everything(build_shared(MODEL, 0), parts)
        self.module = nn.parallel.DistributedDataParallel(
            module, find_unused_parameters=True, gradient_as_bucket_view=True
        )
        self.module.register_comm_hook(None, allreduce_hook)
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, 1e-3, momentum=0.9, nesterov=True)

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Train a step."""
        for batch in batches[:-1]:
            with self.module.no_sync():
                (self.module(batch) * self.scale).backward()
        (self.module(batches[-1]) * self.scale).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    @property
    def stepping(self) -> tuple[Any, str]:
        """See `Sharded.stepping`."""
        return self.optimizer, "step"

    def states(self) -> Iterable[Tensor]:
        """See `Sharded.states`."""
        for state in self.optimizer.state.values():
            yield from (v for v in state.values() if isinstance(v, Tensor))
