"""Whether a run may go on: with these settings, and on this data."""

from __future__ import annotations

from typing import Any

from fmcortex.config import RunConfig, TrainingConfig
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.identity import changed_sessions, trained_sessions
from fmcortex.errors import ConfigError
from fmcortex.training.checkpoint import Checkpoint
from fmcortex.training.fit import sessions_of

#: Settings of each section that change nothing of what is trained.
FREE = {
    "training": ("precision", "device", "checkpoint_activations", "max_skipped", "cycles"),
    "data": (
        *("sessions", "mixed", "accept_changes"),
        *("cache_mb", "cache_gb", "cache_folder", "cache_unpacked", "prefetch", "threads"),
    ),
}


def different_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings in which two configurations of runs would train differently, but for sessions.

    More `training.cycles` are no difference: the learning rate of the cycles before stays.
    """
    different = []
    for section in ("model", "data", "training"):
        ours, theirs = old.get(section, {}), new.get(section, {})
        different += [
            f"{section}.{key}"
            for key in sorted({*ours, *theirs} - set(FREE.get(section, ())))
            if ours.get(key, _default(section, key)) != theirs.get(key, _default(section, key))
        ]
    return different


def _default(section: str, key: str) -> Any:
    """What a setting was for a version that did not know it."""
    fields = type(getattr(RunConfig(), section)).model_fields
    return fields[key].get_default(call_default_factory=True) if key in fields else None


def refuse_other_settings(output: str, different: list[str]) -> None:
    """Refuse to take one run for another.

    Args:
        output: folder of the run.
        different: settings that differ, as `different_settings` gives them.

    Raises:
        ConfigError: there are any.
    """
    if not different:
        return
    schedule = {"training.epochs", "training.steps_per_epoch", "training.warmup_epochs"}
    hint = ""
    if set(different) <= schedule:
        hint = (
            " (the learning rate follows training.epochs from the first step on; to train for "
            "longer, set training.cycles higher)"
        )
    raise ConfigError(
        f"output: {output} holds a run with other settings in {', '.join(different)}{hint}; "
        "choose another output, or remove that folder"
    )


def check_reached(output: str, done: int, training: TrainingConfig) -> None:
    """Refuse a run that has gone further than it now should.

    Raises:
        ConfigError: it has.
    """
    if done > training.steps:
        raise ConfigError(
            f"training.cycles: {training.cycles} are {training.steps} steps, but the run in "
            f"{output} has done {done}; choose another output, or set it to more"
        )


def accepted_changes(
    checkpoint: Checkpoint, config: RunConfig, dataset: PreparedDataset
) -> list[str]:
    """The sessions that were prepared anew since a checkpoint, where going on was asked for.

    Sessions that were added or left out are none; nor is what a checkpoint of an earlier version
    does not tell.

    Raises:
        ConfigError: there are some, and it was not asked for; or they have other neurons.
    """
    trains = sessions_of(config, dataset)
    before = {n: data for n, data in checkpoint.manifest.data.items() if n in trains}
    now = trained_sessions(dataset, list(before))
    for name in sorted(set(checkpoint.manifest.units) & set(trains)):
        had, has = checkpoint.manifest.units[name], dataset.session(name).manifest.neurons
        if had != has:
            raise ConfigError(
                f"session {name} of {dataset.url} has {has} neurons, but {had} when the run in "
                f"{config.output} was trained; choose another output"
            )
    changed = changed_sessions(before, now)
    if changed and not config.data.accept_changes:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{dataset.url} was prepared anew since step {checkpoint.step} of the run in "
            f"{config.output}: {', '.join(changed[:5])}{more}; prepare it as it was, choose "
            "another output, or set data.accept_changes=true to go on with it"
        )
    return changed
