"""Training in one process, without Ray or DeepSpeed: for notebooks, new mice and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset, open_dataset
from fmcortex.data.identity import check_alike, kind_of_session, trained_sessions
from fmcortex.data.lanes import place_sessions, session_weights
from fmcortex.data.loader import ClipLoader
from fmcortex.data.plan import Origin, SamplingPlan
from fmcortex.data.subset import nested_trials
from fmcortex.device import choose
from fmcortex.errors import ConfigError
from fmcortex.model.network import Network, SessionPart, SharedPart
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import (
    SHARED,
    Checkpoint,
    CheckpointManifest,
    step_folder,
    write_manifest,
)
from fmcortex.training.diagnosis import check_trained
from fmcortex.training.engine import LocalEngine
from fmcortex.training.optimizer import load_optimizer_state
from fmcortex.training.snapshot import take_snapshot, write_snapshot
from fmcortex.training.step import StepReport, Trainer


@dataclass
class FitResult:
    """What `fit` returns.

    Attributes:
        shared: the shared part.
        sessions: the parts of the sessions trained, by name.
        steps: a report of each step.
        checkpoint: folder of the checkpoint that was saved; None if there was none.
        done: steps done, those before `start` included.
        skipped: of them, that were left out because something was not finite.
    """

    shared: SharedPart
    sessions: dict[str, SessionPart]
    steps: list[StepReport] = field(default_factory=list)
    checkpoint: str | None = None
    done: int = 0
    skipped: int = 0

    def network(self, session: str) -> Network:
        """The whole network of a session."""
        return Network(self.shared, self.sessions[session])


def dataset_of(config: RunConfig) -> PreparedDataset:
    """The prepared dataset that a run trains on.

    Raises:
        ConfigError: the configuration names none.
        DataError: there is none where it says.
    """
    if not config.data.url:
        raise ConfigError("data.url: missing; name a prepared dataset (--set data.url=...)")
    data = config.data
    disk = int(data.cache_gb * 2**30)
    return open_dataset(data.url, data.cache_mb << 20, disk, data.cache_folder, data.cache_unpacked)


def sessions_of(config: RunConfig, dataset: PreparedDataset) -> list[str]:
    """The sessions that a run trains, sorted.

    Raises:
        ConfigError: one is not in the dataset.
    """
    if config.data.sessions is None:
        return list(dataset.sessions)
    unknown = sorted(set(config.data.sessions) - set(dataset.sessions))
    if unknown:
        raise ConfigError(
            f"data.sessions: {', '.join(unknown)} not in {dataset.url} "
            f"(it has {', '.join(dataset.sessions)})"
        )
    if len(set(config.data.sessions)) != len(config.data.sessions):
        raise ConfigError("data.sessions: a session is named twice")
    return sorted(config.data.sessions)


def neurons_of(dataset: PreparedDataset, names: Sequence[str]) -> dict[str, int]:
    """Neurons of each of these sessions."""
    return {name: dataset.session(name).manifest.neurons for name in names}


def plan_of(
    config: RunConfig, dataset: PreparedDataset, origin: Origin | None = None
) -> SamplingPlan:
    """The sampling plan of a run, the same on every rank.

    Args:
        config: of the run.
        dataset: that it trains on.
        origin: where the sessions stood when the run went on with other sessions or lanes.

    Raises:
        ConfigError: the configuration does not fit the dataset.
    """
    names = sessions_of(config, dataset)
    if not config.data.mixed:
        check_alike(
            {name: kind_of_session(dataset.session(name).manifest) for name in names},
            "choose among them with data.sessions, or set data.mixed=true to train them together",
        )
    frames: dict[str, Sequence[int]] = {}
    trials, costs, minutes = {}, {}, {}
    for name in names:
        manifest = dataset.session(name).manifest
        for field_, have in (
            ("perspectives", len(manifest.perspectives)),
            ("modulations", len(manifest.modulations)),
        ):
            if getattr(config.model, field_) != have:
                raise ConfigError(
                    f"model.{field_}: {getattr(config.model, field_)}, but session {name} "
                    f"has {have}"
                )
        frames[name] = [trial.frames for trial in manifest.trials]
        trials[name] = nested_trials(name, frames[name], manifest.frame_rate, config.data.minutes)
        costs[name] = float(manifest.neurons)  # never measured ones: what is drawn must not change
        chosen = sum(frames[name][t] for t in trials[name])
        minutes[name] = chosen / manifest.frame_rate / 60
    weights = session_weights(config.training.session_weights, minutes)
    lanes = place_sessions(weights, costs, config.training.lanes or len(names))
    return SamplingPlan(
        config.training.seed,
        lanes,
        frames,
        trials,
        config.data.frames,
        config.data.batch,
        config.model.streams,
        origin,
    )


def check_parts(
    config: RunConfig,
    dataset: PreparedDataset,
    shared: SharedPart,
    sessions: Mapping[str, SessionPart],
) -> None:
    """Refuse parts of another model or another recording.

    Raises:
        ConfigError: naming the part and what differs.
    """
    for name, model in {
        "shared": shared.config,
        **{n: p.config for n, p in sessions.items()},
    }.items():
        different = [k for k, v in config.model.model_dump().items() if getattr(model, k) != v]
        if different:
            raise ConfigError(
                f"part {name}: of another model; it differs in model.{', model.'.join(different)}"
            )
    for name, part in sessions.items():
        units = dataset.session(name).manifest.neurons
        if part.units != units:
            raise ConfigError(f"part {name}: of {part.units} neurons, but the session has {units}")


def fit(
    config: RunConfig,
    shared: SharedPart | None = None,
    sessions: Mapping[str, SessionPart] | None = None,
    freeze_shared: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    save: bool = False,
    start: Checkpoint | None = None,
    after_step: Callable[[Trainer, int], bool] | None = None,
) -> FitResult:
    """Train in this process.

    Args:
        config: of the run; `cluster` and `tracking` are not looked at.
        shared: the shared part to start from; None for a new one.
        sessions: parts to start from, by name; new ones for those not given.
        freeze_shared: train the sessions' parts only (transfer to new mice).
        on_step: hears of every step.
        save: write a checkpoint to `config.output` at the end.
        start: a checkpoint of the same run to go on from, in place of `shared` and `sessions`; the
            result has the same bits as that of a run without an interruption.
        after_step: called with the state and the steps done after each step; True stops.

    Raises:
        ConfigError: the configuration does not fit the dataset.
        DataError: a shard is corrupt, or losses are not finite.
    """
    dataset = dataset_of(config)
    origin = None
    if start is not None:
        shared = start.shared()
        sessions = {name: start.session(name) for name in start.sessions}
        origin = Origin(start.step, start.manifest.drawn)
    plan = plan_of(config, dataset, origin)
    trainer, shared, parts = _trainer(config, dataset, plan, shared, sessions or {}, freeze_shared)
    if start is not None:
        _load_state(trainer, start)
    steps, first = config.training.steps, start.step if start is not None else 0
    loader = ClipLoader(
        dataset,
        plan,
        range(len(plan.lanes)),
        first,
        steps,
        config.data.prefetch,
        config.data.threads,
        pin=trainer.compute.device.type == "cuda",
    )
    result = FitResult(shared, parts, done=first, skipped=trainer.skipped)
    for step, batches in enumerate(loader, start=first):
        report = trainer.step(step, batches)
        result.steps.append(report)
        result.done, result.skipped = step + 1, trainer.skipped
        if result.done == steps:
            check_trained(trainer.skipped, steps)
        if on_step:
            on_step(report)
        if after_step and after_step(trainer, result.done):
            break
    if save:
        result.checkpoint = save_checkpoint(config, trainer, result.done, dataset)
    return result


def _trainer(
    config: RunConfig,
    dataset: PreparedDataset,
    plan: SamplingPlan,
    shared: SharedPart | None,
    sessions: Mapping[str, SessionPart],
    frozen: bool,
) -> tuple[Trainer, SharedPart, dict[str, SessionPart]]:
    """The state of a run in one process, with the parts that are not given made anew."""
    compute = choose(config.training.device, config.training.precision)
    seed = config.training.seed
    shared = shared or build_shared(config.model, seed)
    check_parts(config, dataset, shared, sessions)
    shared.to(compute.device).checkpoint_activations(config.training.checkpoint_activations)
    parts = dict(sessions)
    for name in plan.sessions:
        if name not in parts:
            units = dataset.session(name).manifest.neurons
            parts[name] = build_session(config.model, units, seed, name)
        parts[name].to(compute.device)
    engine = LocalEngine(shared, config.training, frozen=frozen)
    return Trainer(config.training, plan, engine, parts, compute), shared, parts


def _load_state(trainer: Trainer, start: Checkpoint) -> None:
    """Set the optimizers' states and the count of skipped steps to those of a checkpoint."""
    assert isinstance(trainer.engine, LocalEngine)
    load_optimizer_state(trainer.engine.optimizer, start.tensors(SHARED, optimizer=True))
    for name, optimizer in trainer.optimizers.items():
        load_optimizer_state(optimizer, start.tensors(name, optimizer=True))
    trainer.skipped = start.manifest.skipped


def save_checkpoint(
    config: RunConfig,
    trainer: Trainer,
    step: int,
    dataset: PreparedDataset,
    kept: Sequence[int] = (),
) -> str:
    """Write the checkpoint after `step` steps of a run in one process; its folder.

    Args:
        config: of the run.
        trainer: its state.
        step: steps done.
        dataset: that it trains on.
        kept: steps of older checkpoints that are never removed.

    Raises:
        DataError: some of the state is not finite.
        StorageError: it cannot be written.
    """
    folder = step_folder(config.output, step)
    snapshot = take_snapshot(trainer, step)
    files = write_snapshot(folder, snapshot)
    write_manifest(
        folder,
        CheckpointManifest(
            step=snapshot.step,
            model=config.model,
            units=snapshot.units,
            files=files,
            config=config.model_dump(mode="json"),
            drawn=snapshot.drawn,
            data=trained_sessions(dataset, sorted(snapshot.units)),
            skipped=snapshot.skipped,
            kept=sorted(kept),
        ),
    )
    return folder
