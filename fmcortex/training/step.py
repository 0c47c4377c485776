"""One training step: the micro-batches of a rank's lanes, then the shared part and its sessions.

Gradients follow the spec: a shared parameter gets the mean over the lanes that train its stream in
this step, over all ranks; a session parameter the mean over its session's own micro-batches. What
nobody trains is not stepped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmcortex.config import TrainingConfig
from fmcortex.data.loader import Batch
from fmcortex.data.plan import SamplingPlan
from fmcortex.device import Compute
from fmcortex.errors import DataError
from fmcortex.model.network import SessionPart
from fmcortex.model.parameters import rule_of
from fmcortex.training.engine import SharedEngine, session_optimizer, step_session
from fmcortex.training.objective import is_finite, objective
from fmcortex.training.schedule import learning_rate


@dataclass(frozen=True)
class StepReport:
    """What a step did on this rank.

    Attributes:
        step: from 0.
        lr: learning rate.
        losses: of each of this rank's lanes, by lane.
        sessions: of each of these lanes.
    """

    step: int
    lr: float
    losses: dict[int, float]
    sessions: dict[int, str]


def trained(module: nn.Module, stream: int) -> dict[str, Tensor]:
    """The parameters of `module` that a loss on `stream` trains, by name."""
    return {
        name: p
        for name, p in module.named_parameters()
        if p.requires_grad and rule_of(p).stream in (None, stream)
    }


def add_weighted(
    sums: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    gradients: Sequence[Tensor | None],
    of_stream: int,
    of_all: int,
) -> None:
    """Add to `sums`, by name, each gradient's share of a mean over micro-batches.

    Args:
        sums: of the step so far.
        parameters: by name.
        gradients: in the same order; None for no gradient.
        of_stream: the micro-batches that a stream's parameter is averaged over.
        of_all: the same for a parameter that all streams share.
    """
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is not None:
            share = gradient / (of_all if rule_of(p).stream is None else of_stream)
            sums[name] = sums[name] + share if name in sums else share


class Trainer:
    """The state of a rank: its engine, its sessions and their optimizers.

    Args:
        config: of the training.
        plan: what is trained when; the same on every rank.
        engine: of the shared part.
        sessions: the parts of this rank's sessions.
        compute: device and arithmetic.
    """

    def __init__(
        self,
        config: TrainingConfig,
        plan: SamplingPlan,
        engine: SharedEngine,
        sessions: Mapping[str, SessionPart],
        compute: Compute,
    ) -> None:
        self.config, self.plan, self.engine, self.compute = config, plan, engine, compute
        self.sessions = dict(sessions)
        self.optimizers = {
            name: session_optimizer(part, config) for name, part in self.sessions.items()
        }

    def learning_rate(self, step: int) -> float:
        """The learning rate at `step`."""
        c = self.config
        return learning_rate(
            step // c.steps_per_epoch, c.lr, c.epochs, c.warmup_epochs, c.warmup_cycles, c.cycles
        )

    def step(self, step: int, batches: Sequence[Batch]) -> StepReport:
        """Train one step on the micro-batches of this rank's lanes.

        Raises:
            DataError: a loss is not finite; names the session and the step.
        """
        lanes = range(len(self.plan.lanes))
        streams = self.plan.stream_of_lanes(step)
        drawn = [self.plan.session(lane, step) for lane in lanes]
        of_stream = Counter(streams)
        of_session = Counter(drawn)
        of_both = Counter(zip(drawn, streams, strict=True))

        losses: dict[int, Tensor] = {}
        of_shared: dict[str, Tensor] = {}
        of_parts: dict[str, dict[str, Tensor]] = {}
        for batch in batches:
            name, stream = batch.draw.session, batch.draw.stream
            loss = self._loss(self.sessions[name], batch.to(self.compute.device))
            if not is_finite(loss):
                raise DataError(
                    f"session {name}: the loss is not finite at step {step} (trials "
                    f"{sorted({clip.trial for clip in batch.draw.clips})}); lower training.lr, "
                    "or check these trials with `fmcortex data verify`"
                )
            shared = trained(self.engine.module, stream)
            part = trained(self.sessions[name], stream)
            gradients = torch.autograd.grad(
                loss, [*shared.values(), *part.values()], allow_unused=True
            )
            add_weighted(of_shared, shared, gradients[: len(shared)], of_stream[stream], 1)
            add_weighted(
                of_parts.setdefault(name, {}),
                part,
                gradients[len(shared) :],
                of_both[name, stream],
                of_session[name],
            )
            losses[batch.draw.lane] = loss.detach()

        lr = self.learning_rate(step)
        self.engine.step(of_shared, lr, set(streams))
        for name, sums in of_parts.items():
            step_session(self.optimizers[name], self.config, lr, sums)
        return StepReport(
            step=step,
            lr=lr,
            losses={lane: float(loss) for lane, loss in losses.items()},
            sessions={batch.draw.lane: batch.draw.session for batch in batches},
        )

    def _loss(self, part: SessionPart, batch: Batch) -> Tensor:
        stream = batch.draw.stream
        noise = torch.Generator().manual_seed(batch.draw.noise_seed)
        retina, behaviour = part.inputs(
            batch.stimuli, batch.perspectives, batch.modulations, stream, noise
        )
        with self.compute.autocast():
            core = self.engine.module(retina, behaviour, stream, noise)
        raw = part.outputs(core.float(), stream, noise)[:, :, 0]
        return objective(raw, batch.responses, self.config.burnin, part.config.unit)
