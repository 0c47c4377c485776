"""The state that a rank starts with: new, or from the newest checkpoint that all ranks can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cluster.engine import DeepSpeedEngine
from cluster.peers import Ranks
from cluster.placement import Placement, micro_batch_costs, place_lanes, read_costs
from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.plan import Origin, SamplingPlan
from fmcortex.device import Compute
from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import SHARED, Checkpoint, CheckpointManifest
from fmcortex.training.fit import neurons_of, plan_of
from fmcortex.training.going_on import load_newest
from fmcortex.training.optimizer import load_optimizer_state
from fmcortex.training.same_run import accepted_changes
from fmcortex.training.step import Trainer


@dataclass(frozen=True)
class Start:
    """Where a rank starts.

    Attributes:
        trainer: with all weights and optimizer states.
        placement: of lanes on ranks.
        step: the first step to train.
        kept: steps of checkpoints that must not be removed.
        news: what a user should know of the start.
        changed: whether it goes on with sessions that were prepared anew.
    """

    trainer: Trainer
    placement: Placement
    step: int
    kept: list[int]
    news: list[str]
    changed: bool = False


@dataclass(frozen=True)
class Loaded:
    """What a rank has read of a checkpoint."""

    checkpoint: Checkpoint
    plan: SamplingPlan
    placement: Placement
    shared: SharedPart
    state: dict[str, Tensor]
    parts: dict[str, SessionPart]
    part_states: dict[str, dict[str, Tensor]]

    @property
    def manifest(self) -> CheckpointManifest:
        return self.checkpoint.manifest


def start_rank(
    config: RunConfig,
    dataset: PreparedDataset,
    compute: Compute,
    rank: int,
    ranks: int,
    warn: Callable[[str], None] = lambda line: None,
    stage: Callable[[str], None] = lambda what: None,
) -> Start:
    """Make the state of this rank; all ranks must call it, after `torch.distributed` is up.

    Args:
        config: of the run.
        dataset: that is trained on.
        compute: device of this rank.
        rank: of this process.
        ranks: of the run.
        warn: hears of checkpoints that are passed over; on rank 0.
        stage: hears what is done.

    Raises:
        ConfigError: the configuration does not fit the dataset, or that has changed.
        CheckpointError: there are checkpoints, and none can be read.
    """

    peers = Ranks({}, compute)
    costs_url = config.cluster.costs
    # Read by one rank: should the file change meanwhile, all must still place alike.
    measured = peers.gather(read_costs(costs_url) if costs_url and rank == 0 else None)[0]

    def place(plan: SamplingPlan) -> Placement:
        costs = micro_batch_costs(neurons_of(dataset, plan.sessions), measured)
        return place_lanes(plan.lanes, costs, ranks)

    def load(checkpoint: Checkpoint) -> Loaded:
        manifest = checkpoint.manifest
        accepted_changes(checkpoint, config, dataset)
        plan = plan_of(config, dataset, Origin(manifest.step, manifest.drawn))
        placement = place(plan)
        own = [name for name in placement.sessions[rank] if name in manifest.units]
        return Loaded(
            checkpoint,
            plan,
            placement,
            checkpoint.shared(),
            checkpoint.tensors(SHARED, optimizer=True),
            {name: checkpoint.session(name) for name in own},
            {name: checkpoint.tensors(name, optimizer=True) for name in own},
        )

    found = load_newest(config.output, load, peers, rank, warn)
    seed = config.training.seed
    plan = found.plan if found else plan_of(config, dataset)
    placement = found.placement if found else place(plan)
    parts = dict(found.parts) if found else {}
    for name in placement.sessions[rank]:
        if name not in parts:
            units = dataset.session(name).manifest.neurons
            parts[name] = build_session(config.model, units, seed, name)
    shared = found.shared if found else build_shared(config.model, seed)
    for module in (shared, *parts.values()):
        module.to(compute.device)
    shared.checkpoint_activations(config.training.checkpoint_activations)
    stage("starting DeepSpeed")
    engine = DeepSpeedEngine(
        shared,
        config.training,
        compute,
        config.cluster.zero_stage,
        found.state if found else None,
    )
    trainer = Trainer(
        config.training,
        plan,
        engine,
        parts,
        compute,
        Ranks(placement.holders, compute),
        skipped=found.manifest.skipped if found else 0,
    )
    if found is None:
        return Start(trainer, placement, 0, [], [])
    for name, state in found.part_states.items():
        load_optimizer_state(trainer.optimizers[name], state)
    kept, news = list(found.manifest.kept), []
    changes = _changes(set(found.manifest.units), set(plan.sessions))
    if changes:
        kept.append(found.manifest.step)
        news.append(
            f"going on from step {found.manifest.step} with {changes}; the checkpoint of that "
            "step is kept"
        )
    changed = accepted_changes(found.checkpoint, config, dataset)
    if changed:
        kept.append(found.manifest.step)
        news.append(
            f"going on from step {found.manifest.step} although data was prepared anew: "
            f"{', '.join(changed)}; the checkpoint of that step is kept"
        )
    return Start(trainer, placement, found.manifest.step, sorted({*kept}), news, bool(changed))


def _changes(before: set[str], now: set[str]) -> str:
    """The sessions that were added and removed, in words; empty if none."""
    found = []
    for what, names in (("new", sorted(now - before)), ("without", sorted(before - now))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            found.append(f"{what} {', '.join(names[:5])}{more}")
    return ", ".join(found)
