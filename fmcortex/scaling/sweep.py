"""What a sweep is: a grid over mice and minutes, as runs on nested subsets of one dataset.

The mice of a smaller point are among those of a larger one, and so are the trials of a mouse: two
points differ in the amount of data, not in luck. A point carries a hash of everything that affects
its result, so that a finished one is known again whatever else has changed in the sweep's file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fmcortex import storage
from fmcortex.config import (
    DataConfig,
    Minutes,
    RunConfig,
    Section,
    Seed,
    TrainingConfig,
    read_yaml,
    validated,
    with_overrides,
)
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.subset import nested_trials, seed_of
from fmcortex.errors import ConfigError, DataError
from fmcortex.evaluation.evaluate import NATURAL, check_domain
from fmcortex.scaling.power_law import Form
from fmcortex.scaling.results import Axis
from fmcortex.yaml_text import SettingsOf


class MetricConfig(Section):
    """What a point is scored by: the median over sessions of the median over neurons."""

    score: Literal["cc_norm", "cc_abs"] = "cc_norm"
    domain: str = Field(NATURAL, description="of the stimuli")
    tier: Literal["validation", "test"] = "test"
    sessions: Literal["own", "common"] = Field(
        "own", description="the point's own mice, or those that all points have"
    )

    @property
    def label(self) -> str:
        """Name of the score, for tables and axes."""
        name = {"cc_norm": "CC_norm", "cc_abs": "CC_abs"}[self.score]
        return f"median {name}, {self.domain.replace('_', ' ')}s ({self.tier})"


class TransferConfig(Section):
    """Score a mouse that no point is pretrained on, fitted with the shared part frozen."""

    session: str
    minutes: Minutes | None = Field(None, description="of its training data; null for all")
    steps: int = Field(500, ge=1, le=10**9, description="of fitting")


class SweepConfig(Section):
    """A sweep."""

    base: Annotated[dict[str, Any], SettingsOf(RunConfig)] = Field(
        default_factory=dict, description="a run's configuration, or the path of its file"
    )
    mice: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)
    minutes: list[Minutes | None] = Field([None], min_length=1, description="a mouse; null for all")
    seeds: list[Seed] = Field([0], min_length=1)
    metric: MetricConfig = Field(default_factory=MetricConfig)
    transfer: TransferConfig | None = None
    axis: Axis = Field("neuron_hours", description="the amount of data that the law is in")
    law: Form | Literal["auto"] = "auto"
    order_seed: Seed = Field(0, description="of the order in which mice are added")
    output: str = Field(
        "runs/sweep", min_length=1, description="folder of the sweep, any fsspec URL"
    )

    @model_validator(mode="after")
    def _grid(self) -> Self:
        for name, values in (("mice", self.mice), ("minutes", self.minutes), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: a value is named twice")
        return self

    @property
    def run(self) -> RunConfig:
        """The configuration that the points vary.

        Raises:
            ConfigError: `base` is none.
        """
        return validated(RunConfig, self.base, "base")


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in a YAML file.

    Its `base` may be the path of a run's configuration, from the file's folder; overrides such as
    `base.training.epochs=3` apply to what is there.

    Raises:
        ConfigError: an unreadable file, an unknown key or a bad value, named.
    """
    values = read_yaml(path, SweepConfig)
    if isinstance(values.get("base"), str):
        values = {**values, "base": read_yaml(Path(path).parent / values["base"], RunConfig)}
    config = validated(SweepConfig, with_overrides(values, overrides, SweepConfig), str(path))
    _ = config.run  # a bad base should be heard of now
    return config


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        mice: how many are pretrained on.
        minutes: asked for of each; None for all.
        seed: of the training.
        scored: the sessions that it is scored on.
        config: of its run; `data.sessions` are its mice.
        transfer: of fitting the new mouse; None without one.
        mouse_minutes: minutes of training data, summed over mice.
        neuron_hours: neurons x hours of training data, summed over mice.
        key: hash of everything that affects its result.
    """

    mice: int
    minutes: float | None
    seed: int
    scored: tuple[str, ...]
    config: RunConfig
    transfer: RunConfig | None
    mouse_minutes: float
    neuron_hours: float
    key: str

    @property
    def sessions(self) -> list[str]:
        """The sessions that it is pretrained on."""
        return list(self.config.data.sessions or [])

    @property
    def name(self) -> str:
        """What it is called in messages."""
        minutes = "all minutes" if self.minutes is None else f"{self.minutes:g} minutes"
        return f"{self.mice} mice, {minutes}, seed {self.seed}"


def nested_order(sessions: Sequence[str], seed: int) -> list[str]:
    """The order in which mice are added: fixed, and not changed by mice that come or go."""
    return sorted(sessions, key=lambda name: (seed_of("mice", seed, name), name))


def points(config: SweepConfig, dataset: PreparedDataset) -> list[Point]:
    """All points of a sweep, the cheapest first.

    Args:
        config: of the sweep.
        dataset: that `config.base` names.

    Raises:
        ConfigError: there are not so many mice or minutes, or no videos to score them on.
    """
    base = config.run
    order = nested_order(_candidates(config, base, dataset), config.order_seed)
    if max(config.mice) > len(order):
        raise ConfigError(
            f"mice: {max(config.mice)} asked for, but there are {len(order)} sessions to "
            f"pretrain on in {dataset.url}"
        )
    found = [
        _point(config, base, dataset, order, mice, minutes, seed)
        for mice in config.mice
        for minutes in config.minutes
        for seed in config.seeds
    ]
    _check_metric(config, dataset, {name for point in found for name in point.scored})
    return sorted(found, key=lambda p: (p.neuron_hours, p.mice, p.seed))


def _check_metric(config: SweepConfig, dataset: PreparedDataset, scored: Iterable[str]) -> None:
    """Refuse, before anything is trained, a domain or tier that a scored session has not."""
    for name in sorted(scored):
        try:
            check_domain(dataset.session(name), config.metric.tier, config.metric.domain)
        except DataError as error:
            raise ConfigError(f"metric: {error}") from error


def _candidates(config: SweepConfig, base: RunConfig, dataset: PreparedDataset) -> list[str]:
    """The sessions that may be pretrained on."""
    named = base.data.sessions if base.data.sessions is not None else dataset.sessions
    asked = [*named, *([config.transfer.session] if config.transfer else [])]
    unknown = sorted(set(asked) - set(dataset.sessions))
    if unknown:
        raise ConfigError(f"sessions: {', '.join(unknown)} not in {dataset.url}")
    return [name for name in named if not config.transfer or name != config.transfer.session]


def _point(
    config: SweepConfig,
    base: RunConfig,
    dataset: PreparedDataset,
    order: Sequence[str],
    mice: int,
    minutes: float | None,
    seed: int,
) -> Point:
    chosen = sorted(order[:mice])
    common = sorted(order[: min(config.mice)])
    transfer = _transfer(config, base, seed)
    if config.transfer:
        scored = [config.transfer.session]
    else:
        scored = chosen if config.metric.sessions == "own" else common
    amounts = {name: _minutes(dataset, name, minutes) for name in chosen}
    if config.transfer:
        _minutes(dataset, config.transfer.session, config.transfer.minutes)
    run = base.model_copy(
        update={
            "data": base.data.model_copy(update={"sessions": chosen, "minutes": minutes}),
            "training": base.training.model_copy(update={"seed": seed}),
        }
    )
    key = _key(config, run, transfer, scored, dataset)
    label = "all" if minutes is None else f"{minutes:g}"
    output = storage.join(config.output, "runs", f"{mice}x{label}-seed{seed}-{key[:8]}")
    neurons = {name: dataset.session(name).manifest.neurons for name in chosen}
    return Point(
        mice=mice,
        minutes=minutes,
        seed=seed,
        scored=tuple(scored),
        config=run.model_copy(update={"output": output}),
        transfer=transfer,
        mouse_minutes=sum(amounts.values()),
        neuron_hours=sum(neurons[name] * amounts[name] / 60 for name in chosen),
        key=key,
    )


def _minutes(dataset: PreparedDataset, session: str, minutes: float | None) -> float:
    """Minutes of training data that the session's share really has: trials are taken whole."""
    manifest = dataset.session(session).manifest
    frames = [trial.frames for trial in manifest.trials]
    trials = nested_trials(session, frames, manifest.frame_rate, minutes)
    return sum(frames[t] for t in trials) / manifest.frame_rate / 60


def _transfer(config: SweepConfig, base: RunConfig, seed: int) -> RunConfig | None:
    """The run that fits the new mouse: an epoch is one step, so that any number of steps goes
    through the whole schedule of the learning rate."""
    if config.transfer is None:
        return None
    steps = config.transfer.steps
    warm = min(steps * base.training.warmup_epochs // base.training.epochs, steps - 1)
    training = {
        "seed": seed,
        "epochs": steps,
        "cycles": 1,
        "steps_per_epoch": 1,
        "warmup_epochs": warm,
        "lanes": None,
    }
    data = {"sessions": [config.transfer.session], "minutes": config.transfer.minutes}
    return base.model_copy(
        update={
            "data": base.data.model_copy(update=data),
            "training": base.training.model_copy(update=training),
        }
    )


def _key(
    config: SweepConfig,
    run: RunConfig,
    transfer: RunConfig | None,
    scored: Sequence[str],
    dataset: PreparedDataset,
) -> str:
    """Hash of what affects a point's result: settings, and the content of its sessions."""
    content = {entry.session: entry.manifest_sha256 for entry in dataset.manifest.sessions}

    def matters(one: RunConfig) -> Mapping[str, Any]:
        data = DataConfig.model_fields.keys() & {"sessions", "minutes", "frames", "batch"}
        training = TrainingConfig.model_fields.keys() - {"device"}
        return {
            "model": one.model.model_dump(mode="json"),
            "data": one.data.model_dump(mode="json", include=set(data)),
            "training": one.training.model_dump(mode="json", include=set(training)),
            "content": [content[name] for name in one.data.sessions or []],
        }

    document = {
        "run": matters(run),
        "transfer": None if transfer is None else matters(transfer),
        "metric": config.metric.model_dump(mode="json", include={"score", "domain", "tier"}),
        "scored": [(name, content[name]) for name in scored],
    }
    return storage.sha256(json.dumps(document, sort_keys=True).encode())[:32]
