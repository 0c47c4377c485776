"""The configuration of a run: a tree of typed classes, read from YAML with overrides."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmcortex import yaml_text
from fmcortex.errors import Adjusted, ConfigError
from fmcortex.model.sizes import ModelConfig, preset

Model = TypeVar("Model", bound=BaseModel)

Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Minutes = Annotated[float, Field(gt=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]
#: A time to wait, seconds; four months are more than any.
Seconds = Annotated[float, Field(ge=0, le=1e7)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused, every number within bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """What is trained on."""

    url: str = Field("", description="prepared dataset, any fsspec URL")
    sessions: list[str] | None = Field(None, description="recording sessions; null for all")
    minutes: Minutes | None = Field(
        None, description="minutes of training data a session; null for all"
    )
    mixed: bool = Field(
        False,
        description="train sessions of different frame rate, size or normalisation together",
    )
    accept_changes: bool = Field(
        False,
        description="go on with a run although sessions were prepared anew, with other content; "
        "the checkpoint before is kept",
    )
    frames: int = Field(
        70,
        gt=1,
        le=100_000,
        description="frames of a training sequence; 100 in the released recipe",
    )
    batch: int = Field(4, ge=1, le=65_536, description="sequences of a micro-batch")
    cache_mb: int = Field(512, ge=0, le=1 << 24, description="memory for decoded data of a worker")
    cache_gb: float = Field(
        20.0, ge=0, le=1e6, description="disk of a machine for what is read of a remote dataset"
    )
    cache_folder: str | None = Field(
        None,
        min_length=1,
        description="where that is; null for $FMCORTEX_CACHE, or a folder of the user",
    )
    cache_unpacked: bool | None = Field(
        None,
        description="keep it there decompressed, of a local dataset as well: faster, for two to "
        "three times the space; null for those remote datasets that fit so",
    )
    prefetch: int = Field(4, ge=1, le=4096, description="micro-batches read ahead")
    threads: int = Field(4, ge=1, le=1024, description="micro-batches read at a time")


class TrainingConfig(Section):
    """How it is trained. The defaults are the released recipe, in float32."""

    seed: Seed = 0
    epochs: int = Field(
        100, ge=1, le=1_000_000, description="epochs of a cycle of the learning rate"
    )
    cycles: int = Field(1, ge=1, le=10_000, description="cycles; each later one restarts the rate")
    steps_per_epoch: int = Field(500, ge=1, le=1_000_000)
    lanes: int | None = Field(
        None, ge=1, le=1_000_000, description="micro-batches of a step; null for one a session"
    )
    session_weights: Literal["uniform", "minutes"] | Annotated[float, Field(gt=0, le=1e6)] = Field(
        "uniform",
        description="how often each session is drawn: equally, by its minutes, or by "
        "minutes ** (1 / this temperature)",
    )
    burnin: int = Field(
        10, ge=0, le=100_000, description="first frames of a sequence that do not count"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0, le=1e6)
    warmup_epochs: int = Field(
        10, ge=0, le=1_000_000, description="of a cycle; at most one fewer than its epochs are used"
    )
    warmup_cycles: int = Field(1, ge=0, le=10_000)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(True, description="of sgd")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of adamw")
    adam_eps: float = Field(1e-8, ge=1e-30, le=1, description="of adamw, beside the root")
    decay: float = Field(1e-4, ge=0, le=1e6, description="of the weights, apart from the gradient")
    clip: float | None = Field(0.01, gt=0, le=1e6, description="adaptive clipping; null for none")
    eps: float = Field(
        1e-3, ge=0, le=1e6, description="of adaptive clipping: the least norm of weights"
    )
    clip_norm: float | None = Field(
        None, gt=0, le=1e12, description="largest norm of all gradients together; null for none"
    )
    max_skipped: int = Field(
        10,
        ge=0,
        le=10**9,
        description="steps of a run that may be skipped because a loss is not finite",
    )
    checkpoint_activations: bool = Field(
        False, description="compute activations again in the backward pass rather than keep them"
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="of the forward pass")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run."""
        return self.epochs * self.cycles

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.total_epochs * self.steps_per_epoch

    @model_validator(mode="after")
    def _warm(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.warmup_cycles:
            used = self.epochs - 1
            line = (
                f"training.warmup_epochs: {self.warmup_epochs} are not less than training.epochs "
                f"({self.epochs}); {used} used instead"
            )
            warnings.warn(Adjusted(line), stacklevel=2)
            # Immutable from here on; what a run records is what it used.
            object.__setattr__(self, "warmup_epochs", used)
        return self


class CheckpointConfig(Section):
    """When the state of a run is saved."""

    every: int = Field(500, ge=1, le=10**9, description="steps between checkpoints")
    keep: int = Field(2, ge=1, le=1_000_000, description="newest checkpoints kept")
    max_failures: int = Field(
        3,
        ge=0,
        le=1_000_000,
        description="checkpoints in a row that may fail to be saved before the run stops",
    )


class ClusterConfig(Section):
    """Where it runs."""

    workers: int = Field(1, ge=1, le=65_536, description="Ray Train workers, one rank each")
    costs: str | None = Field(
        None, description="costs.json of an earlier run, to place sessions by; null: by neurons"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO stage of the shared part; higher ones suit larger cores"
    )
    cpus_per_worker: int = Field(1, ge=1, le=4096)
    gpus_per_worker: int | None = Field(
        None, ge=0, le=1024, description="null: 1 where there are GPUs"
    )
    max_failures: int = Field(
        3, ge=0, le=1_000_000, description="restarts of the workers before giving up"
    )
    timeout_seconds: Seconds = Field(1800, gt=0, description="of a collective operation")
    watchdog_seconds: Seconds = Field(
        600, gt=0, description="without progress, after which a worker is ended and restarted"
    )


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = Field("", description="MLflow tracking URI; empty: SQLite in the output folder")
    experiment: str = Field("fmcortex", min_length=1, description="of MLflow")
    run_name: str | None = Field(None, min_length=1, description="in MLflow; null: made up")
    validate_every: int = Field(
        1, ge=0, le=1_000_000, description="epochs between validations; 0 for never"
    )
    system_seconds: Seconds = Field(
        10, description="between samples of the machines' load; 0 for none"
    )
    page_seconds: Seconds = Field(
        60, description="between rewrites of curves.html; 0: only at the end"
    )


class RunConfig(Section):
    """A whole run."""

    output: str = Field(
        "runs/pretrain", min_length=1, description="folder of the run, any fsspec URL"
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(model, dict) and "preset" in model:
            sizes = {key: value for key, value in model.items() if key != "preset"}
            base = preset(str(model["preset"])).model_dump()
            values = {**values, "model": {**base, **sizes}}
        return values

    @model_validator(mode="after")
    def _frames(self) -> Self:
        if self.training.burnin >= self.data.frames:
            raise ValueError(
                f"training.burnin ({self.training.burnin}) must be less than data.frames "
                f"({self.data.frames})"
            )
        return self


def with_overrides(
    values: dict[str, Any], overrides: Sequence[str], kind: Any = Any, flag: str = "--set"
) -> dict[str, Any]:
    """`values` with `a.b=c` overrides applied.

    The right side is text where the field is text, to the last character, and YAML elsewhere.

    Args:
        values: nested settings.
        overrides: of the form `a.b=c`.
        kind: the model that the settings are of.
        flag: the option that they were given with, for messages.

    Raises:
        ConfigError: an override is not of the form `a.b=c`.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{flag} {override}: expected the form a.b=c")
        try:
            value = yaml_text.value_of(text, reduce(yaml_text.part, keys, kind))
        except yaml.YAMLError as error:
            raise ConfigError(f"{flag} {override}: {yaml_text.problem(error)}") from error
        values = with_value(values, keys, value, f"{flag} {override}")
    return values


def with_value(
    values: dict[str, Any], keys: Sequence[str], value: Any, where: str
) -> dict[str, Any]:
    """`values` with one of them set.

    Args:
        values: nested settings.
        keys: the way to it.
        value: as it is.
        where: it comes from, for messages.

    Raises:
        ConfigError: the way leads through something that is no section.
    """
    node = values = dict(values)
    for key in keys[:-1]:
        inner = node.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{where}: {key} is not a section")
        node[key] = dict(inner or {})
        node = node[key]
    node[keys[-1]] = value
    return values


def read_yaml(path: str | Path, kind: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: of the file.
        kind: the model that its settings are of.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or gives a key twice.
    """
    try:
        values = yaml_text.load(Path(path).read_text(encoding="utf-8"), kind)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {yaml_text.problem(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections at the top")
    return values


def validated(kind: type[Model], values: dict[str, Any], where: str) -> Model:
    """`values` as the model `kind`.

    Raises:
        ConfigError: naming `where` and every field at fault, with its known neighbours.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            field = ".".join(str(part) for part in one["loc"])
            if one["type"] == "extra_forbidden":
                problems.append(f"unknown key {field}{_known(kind, one['loc'])}")
            else:
                message = one["msg"].removeprefix("Value error, ")
                problems.append(f"{field}: {message}" if field else message)
        raise ConfigError(f"{where}: {'; '.join(problems)}") from error


def _known(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        field = kind.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        kind = annotation
    return f" (known: {', '.join(kind.model_fields)})"


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration in a YAML file (or the defaults), with overrides applied.

    Args:
        path: of the file; None for the defaults.
        overrides: of the form `a.b=c`.
        options: values of single keys, `a.b`, taken as they are; they win over the overrides.

    Raises:
        ConfigError: an unreadable file, an unknown key or a bad value, named.
    """
    values = {} if path is None else read_yaml(path, RunConfig)
    values = with_overrides(values, overrides or [], RunConfig)
    for key, value in (options or {}).items():
        values = with_value(values, key.split("."), value, key)
    return validated(RunConfig, values, str(path or "configuration"))
