"""Numbers out of their range are refused, of every option and of every setting."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import cluster
import data_prep
import fmcortex
from fmcortex.cli import cli
from fmcortex.commands.base import Number
from fmcortex.config import validated
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError
from fmcortex.evaluation.evaluate import evaluate_session

#: What users write: all that these contain must have bounds.
SETTINGS = (
    "cluster.rayjob.KubernetesJob",
    "cluster.slurm.SlurmJob",
    "data_prep.deconvolution.DeconvolutionSettings",
    "data_prep.readers.nwb_schema.NwbSession",
    "data_prep.readers.signals_schema.SessionFile",
    "data_prep.settings.PrepSettings",
    "data_prep.simulator.settings.SimulationSettings",
    "fmcortex.config.RunConfig",
    "fmcortex.scaling.sweep.SweepConfig",
)
#: What fmcortex itself writes and reads again, so that there is no range to ask a user for.
RECORDS = {
    "data_prep.readers.deconvolved": "what deconvolve made, checked against the arrays beside it",
    "data_prep.split_job": "the tiers of movies, made here",
    "data_prep.survey": "what was found in a source",
    "fmcortex.data.identity": "what a checkpoint was trained on, under its checksums",
    "fmcortex.data.manifest": "the prepared dataset, under checksums",
    "fmcortex.evaluation.evaluate": "scores",
    "fmcortex.owner": "who writes to a folder",
    "fmcortex.scaling.power_law": "fits",
    "fmcortex.scaling.results": "results",
    "fmcortex.training.checkpoint": "checkpoints, under checksums",
}
#: Numeric settings that need no bounds, with the reason.
UNBOUNDED: dict[str, str] = {}

NONE_AT_ALL = (math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity", "1e999", "9" * 5000)


def models() -> dict[str, type[BaseModel]]:
    """Every model of the packages, by module and name."""
    for package in (fmcortex, cluster, data_prep):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    ours = ("fmcortex.", "cluster.", "data_prep.")
    return {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in below(BaseModel)
        if kind.__module__.startswith(ours)
    }


def inside(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and those of its sections, however deep."""
    found = {kind}
    todo = [field.annotation for field in kind.model_fields.values()]
    while todo:
        one = todo.pop()
        todo += getattr(one, "__args__", ())
        if isinstance(one, type) and issubclass(one, BaseModel):
            found |= inside(one)
    return found


@dataclass(frozen=True)
class Leaf:
    """A number in a field: its JSON schema, and how a value of the field is made of one."""

    schema: dict[str, Any]
    shape: tuple[str | int, ...] = ()

    def wrapped(self, value: Any) -> Any:
        for step in reversed(self.shape):
            value = {step: value} if isinstance(step, str) else [value] * step
        return value

    def outside(self) -> list[Any]:
        """The nearest values that are out of range."""
        whole = self.schema["type"] == "integer"
        made: list[Any] = []
        for bound, strict, away in (
            ("minimum", "exclusiveMinimum", -1),
            ("maximum", "exclusiveMaximum", 1),
        ):
            if strict in self.schema:
                made.append(self.schema[strict])
            else:
                limit = self.schema[bound]
                made.append(limit + away if whole else math.nextafter(limit, away * math.inf))
        return [int(value) if whole else value for value in made]


def leaves(schema: dict[str, Any], shape: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """The numbers in the schema of a field; those of sections are the sections' own."""
    if "enum" in schema or "const" in schema:
        return
    if schema.get("type") in ("integer", "number"):
        yield Leaf(schema, shape)
    for one in schema.get("anyOf", ()):
        yield from leaves(one, shape)
    if isinstance(schema.get("items"), dict):
        yield from leaves(schema["items"], (*shape, 1))
    for one in schema.get("prefixItems", ()):
        yield from leaves(one, (*shape, len(schema["prefixItems"])))
    if isinstance(schema.get("additionalProperties"), dict):
        keys = schema.get("propertyNames", {}).get("enum", ["a"])
        yield from leaves(schema["additionalProperties"], (*shape, keys[0]))


def test_every_numeric_setting_has_bounds_and_keeps_them() -> None:
    known = models()
    settings = set().union(*(inside(known[name]) for name in SETTINGS))
    unknown = [
        name
        for name, kind in known.items()
        if kind not in settings
        and kind.__module__ not in RECORDS
        and any(
            True for one in kind.model_json_schema()["properties"].values() for _ in leaves(one)
        )
    ]
    assert not unknown, "settings or records? add them to SETTINGS or RECORDS"
    checked = 0
    for kind in settings:
        for name, schema in kind.model_json_schema()["properties"].items():
            where = f"{kind.__name__}.{name}"
            for leaf in leaves(schema):
                if where in UNBOUNDED:
                    continue
                bounds = leaf.schema.keys()
                assert bounds & {"minimum", "exclusiveMinimum"}, f"{where} has no least value"
                assert bounds & {"maximum", "exclusiveMaximum"}, f"{where} has no greatest value"
                for value in (*NONE_AT_ALL, *leaf.outside()):
                    with pytest.raises(ConfigError, match=rf"\b{name}\b") as caught:
                        validated(kind, {name: leaf.wrapped(value)}, "x")
                    assert "\n" not in str(caught.value)
                checked += 1
    assert checked > 80


def parameters() -> list[tuple[str, click.Parameter]]:
    """Every option and argument of every command."""

    def below(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
        yield from ((f"{path} {one.name}", one) for one in command.params)
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, f"{path} {name}")

    return list(below(cli, "fmcortex"))


def test_every_numeric_option_has_bounds_and_keeps_them() -> None:
    checked = 0
    for where, parameter in parameters():
        kind = parameter.type
        if isinstance(kind, click.types.BoolParamType) or not isinstance(
            kind, click.types.IntParamType | click.types.FloatParamType
        ):
            default = parameter.default
            assert isinstance(default, bool) or not isinstance(default, int | float), where
            continue
        assert isinstance(kind, click.IntRange | Number), f"{where} has no bounds"
        assert kind.min is not None, f"{where} has no least value"
        assert kind.max is not None, f"{where} has no greatest value"
        assert not kind.clamp, where
        below = kind.min if kind.min_open else kind.min - 1
        above = kind.max if kind.max_open else kind.max + 1
        for value in (*map(str, NONE_AT_ALL), str(below), str(above)):
            with pytest.raises(click.BadParameter):
                kind.convert(value, None, None)
        checked += 1
    assert checked > 15


def test_the_bounds_of_options_are_those_of_their_settings() -> None:
    """Nothing passes the command line only to be refused as a setting, or the other way round."""
    known = models()
    for command, option, model, field in (
        ("simulate", "mice", "data_prep.simulator.settings.SimulationSettings", "mice"),
        ("simulate", "neurons", "data_prep.simulator.settings.SimulationSettings", "neurons"),
        ("simulate", "seed", "data_prep.simulator.settings.SimulationSettings", "seed"),
        ("pretrain", "workers", "fmcortex.config.ClusterConfig", "workers"),
        ("transfer", "minutes", "fmcortex.config.DataConfig", "minutes"),
        ("individual", "minutes", "fmcortex.config.DataConfig", "minutes"),
        ("evaluate", "burnin", "fmcortex.config.TrainingConfig", "burnin"),
    ):
        (kind,) = (p.type for where, p in parameters() if where == f"fmcortex {command} {option}")
        assert isinstance(kind, click.IntRange | click.FloatRange)
        (leaf,) = leaves(known[model].model_json_schema()["properties"][field])
        low, high = leaf.outside()
        for value in (low, high):
            with pytest.raises(click.BadParameter):
                kind.convert(str(value), None, None)
        inner = (kind.max, kind.min if not kind.min_open else kind.min + 1e-6)
        for value in inner:
            assert kind.convert(str(value), None, None) == value
            assert value is not None
            assert not leaf.schema.get("maximum", math.inf) < value
            assert not leaf.schema.get("minimum", -math.inf) > value


@pytest.mark.parametrize(
    "line",
    [
        "evaluate run --data data --burnin -5",
        "transfer --from run --minutes nan",
        "individual --minutes inf",
        "individual --minutes 0",
        "pretrain --workers -1",
        "sweep sweep.yaml --workers -1",
        "prep recordings --to data --workers -1",
        "data plan pyproject.toml --shared nan",
        "data plan pyproject.toml --trial-seconds 0",
        "simulate x --seed -1",
        "submit slurm --nodes 0 pretrain",
        "simulate x --only -1",
        "submit k8s --gpus-per-node -1",
    ],
)
def test_the_option_is_named(line: str) -> None:
    out = CliRunner().invoke(cli, line.split())
    assert out.exit_code == 2
    said = out.output.splitlines()[-1]
    assert said.startswith("Error: Invalid value for '--"), out.output


def test_a_negative_burn_in_is_refused_in_the_library(prepared: str) -> None:
    with pytest.raises(ValueError, match="burnin: -5 is below 0"):
        evaluate_session(None, open_dataset(prepared).session("mouse01-1-1"), burnin=-5)  # type: ignore[arg-type]
