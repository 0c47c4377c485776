"""One training step: the micro-batches of a rank's lanes, then the shared part and its sessions.

Gradients follow the spec: a shared parameter gets the mean over the lanes that train its stream in
this step, over all ranks; a session parameter the mean over its session's own micro-batches,
whichever ranks have them. What nobody trains is not stepped. A step in which a loss or a gradient
of any rank is not finite is left out by all of them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmcortex.config import TrainingConfig
from fmcortex.data.loader import Batch
from fmcortex.data.plan import SamplingPlan
from fmcortex.device import Compute
from fmcortex.errors import DataError
from fmcortex.model.network import SessionPart
from fmcortex.model.parameters import rule_of
from fmcortex.training.diagnosis import Trouble, diagnose, explain
from fmcortex.training.engine import SharedEngine, step_parameters
from fmcortex.training.objective import objective
from fmcortex.training.optimizer import Prepared, make_optimizer, prepare_gradients
from fmcortex.training.peers import Alone, Peers
from fmcortex.training.schedule import learning_rate


@dataclass(frozen=True)
class StepReport:
    """What a step did on this rank.

    Attributes:
        step: from 0.
        lr: learning rate.
        losses: of each of this rank's lanes, by lane.
        sessions: of each of these lanes.
        norms: of the gradient, scaled and adaptively clipped: `all`, `shared`, `sessions`; the same
            on every rank.
        clipped: fraction of the units that adaptive clipping shortened, over all ranks.
        coefficient: that clipping by the global norm multiplied all gradients with.
        skipped: whether nothing was stepped, because something was not finite.
        seconds: that the micro-batch of each of this rank's lanes took.
    """

    step: int
    lr: float
    losses: dict[int, float]
    sessions: dict[int, str]
    norms: dict[str, float] = field(default_factory=dict)
    clipped: float = 0.0
    coefficient: float = 1.0
    skipped: bool = False
    seconds: dict[int, float] = field(default_factory=dict)


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
        peers: the other ranks.
        skipped: steps that were left out so far.
    """

    def __init__(
        self,
        config: TrainingConfig,
        plan: SamplingPlan,
        engine: SharedEngine,
        sessions: Mapping[str, SessionPart],
        compute: Compute,
        peers: Peers | None = None,
        skipped: int = 0,
    ) -> None:
        self.config, self.plan, self.engine, self.compute = config, plan, engine, compute
        self.peers: Peers = peers or Alone()
        self.sessions = dict(sorted(sessions.items()))
        self.optimizers = {
            name: make_optimizer(dict(part.named_parameters()), config)
            for name, part in self.sessions.items()
        }
        self.skipped = skipped

    def learning_rate(self, step: int) -> float:
        """The learning rate at `step`."""
        c = self.config
        return learning_rate(
            step // c.steps_per_epoch, c.lr, c.epochs, c.warmup_epochs, c.warmup_cycles, c.cycles
        )

    def step(self, step: int, batches: Sequence[Batch]) -> StepReport:
        """Train one step on the micro-batches of this rank's lanes.

        Raises:
            DataError: on every rank, when more steps had to be skipped than the configuration
                allows; names the sessions, neurons and trials whose loss was not finite.
        """
        streams = self.plan.stream_of_lanes(step)
        drawn = [self.plan.session(lane, step) for lane in range(len(self.plan.lanes))]
        self.engine.gather()
        seconds: dict[int, float] = {}
        losses, of_shared, of_parts, troubles = self._micro_batches(
            step, batches, streams, drawn, seconds
        )
        shared = self._prepare(self.engine.reduce(of_shared, set(streams)), self.engine.module)
        parts = {}
        for name in sorted(set(drawn) & set(self.sessions)):  # the same order on every rank
            sums = of_parts.pop(name, {})  # not kept beside what is made of it
            if self.peers.shared_by_ranks(name):
                streams_of = {s for n, s in zip(drawn, streams, strict=True) if n == name}
                sums = self.peers.sum_session(name, self._whole(name, sums, streams_of))
            parts[name] = self._prepare(sums, self.sessions[name])
            del sums

        report = self._agree(step, shared, parts, troubles)
        report.losses.update({lane: float(loss) for lane, loss in losses.items()})
        report.seconds.update(seconds)
        report.sessions.update({batch.draw.lane: batch.draw.session for batch in batches})
        if report.skipped:
            self.skipped += 1
            self.engine.step({}, report.lr, set())
            if self.skipped > self.config.max_skipped:
                told = [trouble for some in self.peers.gather(troubles) for trouble in some]
                raise DataError(explain(told, step, self.skipped))
            return report
        if report.coefficient < 1:
            for prepared in (shared, *parts.values()):
                for gradient in prepared.gradients.values():
                    gradient.mul_(report.coefficient)
        self.engine.step(shared.gradients, report.lr, set(streams))
        for name, prepared in parts.items():
            step_parameters(self.optimizers[name], prepared.gradients, report.lr)
        return report

    def _micro_batches(
        self,
        step: int,
        batches: Sequence[Batch],
        streams: list[int],
        drawn: list[str],
        seconds: dict[int, float],
    ) -> tuple[dict[int, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]], list[Trouble]]:
        """This rank's losses, its share of all means, and what was not finite; fills `seconds`."""
        of_stream, of_session = Counter(streams), Counter(drawn)
        of_both = Counter(zip(drawn, streams, strict=True))
        losses: dict[int, Tensor] = {}
        of_shared: dict[str, Tensor] = {}
        of_parts: dict[str, dict[str, Tensor]] = {}
        troubles: list[Trouble] = []
        for batch in batches:
            began = time.perf_counter()
            name, stream = batch.draw.session, batch.draw.stream
            batch = batch.to(self.compute.device)
            raw = self._raw(self.sessions[name], batch)
            loss = objective(
                raw, batch.responses, self.config.burnin, self.sessions[name].config.unit
            )
            losses[batch.draw.lane] = loss.detach()
            if not torch.isfinite(loss):
                troubles.append(diagnose(batch, raw.detach(), step, self.config.burnin))
                continue
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
            self.compute.synchronize()
            seconds[batch.draw.lane] = time.perf_counter() - began
        return losses, of_shared, of_parts, troubles

    def _raw(self, part: SessionPart, batch: Batch) -> Tensor:
        """Raw outputs [N, T, U] of the stream that is trained."""
        stream = batch.draw.stream
        noise = torch.Generator().manual_seed(batch.draw.noise_seed)
        retina, behaviour = part.inputs(
            batch.stimuli, batch.perspectives, batch.modulations, stream, noise
        )
        with self.compute.autocast():
            core = self.engine.module(retina, behaviour, stream, noise)
        return part.outputs(core.float(), stream, noise)[:, :, 0]

    def _whole(self, name: str, sums: Mapping[str, Tensor], streams: set[int]) -> dict[str, Tensor]:
        """`sums`, with zeros for parameters that only other ranks have a gradient of."""
        return {
            key: sums[key] if key in sums else torch.zeros_like(p)
            for key, p in self.sessions[name].named_parameters()
            if rule_of(p).stream is None or rule_of(p).stream in streams
        }

    def _prepare(self, gradients: Mapping[str, Tensor], module: nn.Module) -> Prepared:
        return prepare_gradients(
            gradients, dict(module.named_parameters()), self.config.clip, self.config.eps
        )

    def _agree(
        self,
        step: int,
        shared: Prepared,
        parts: Mapping[str, Prepared],
        troubles: Sequence[Trouble],
    ) -> StepReport:
        """What all ranks together find: the norms, and whether to skip the step."""
        own = [prepared for name, prepared in parts.items() if self.peers.counts(name)]
        told = torch.tensor(
            [
                float(len(troubles)),
                float(sum(prepared.squares for prepared in own)),
                float(sum(prepared.clipped for prepared in own)),
                float(sum(prepared.units for prepared in own)),
            ],
            dtype=torch.float64,
        )
        bad, squares, clipped, units = self.peers.sum(told).tolist()
        total = squares + float(shared.squares)
        norm = math.sqrt(total) if math.isfinite(total) else math.nan
        limit = self.config.clip_norm
        return StepReport(
            step=step,
            lr=self.learning_rate(step),
            losses={},
            sessions={},
            norms={
                "all": norm,
                "shared": math.sqrt(float(shared.squares)),
                "sessions": math.sqrt(squares),
            },
            clipped=(clipped + float(shared.clipped)) / max(units + shared.units, 1.0),
            coefficient=1.0 if limit is None or norm <= limit else limit / norm,
            skipped=bad > 0 or not math.isfinite(total),
        )
