"""What all commands share. Heavy packages are imported inside the command that needs them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fmcortex import __version__
from fmcortex.errors import ConfigError, without_secrets

if TYPE_CHECKING:
    from fmcortex.config import RunConfig
    from fmcortex.training.checkpoint import Checkpoint

CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


#: Storage of this process only: what a command writes there is gone when it ends.
MEMORY = "memory:"


class Number(click.FloatRange):
    """A finite number within bounds; click itself takes NaN for one, whatever the bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that `value` says."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


# The bounds of the settings that the options stand for.
WORKERS = click.IntRange(0, 65_536)
COUNT = click.IntRange(1, 1_000_000)
MINUTES = Number(0, 1e6, min_open=True)


class Command(click.Command):
    """A command that refuses empty words, and whose help keeps the line breaks of its example."""

    def invoke(self, ctx: click.Context) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            for word in value if isinstance(value, tuple) else (value,):
                if isinstance(word, str):
                    _check_word(word, parameter)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Example:\n")
            for line in self.epilog.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


def _check_word(word: str, parameter: click.Parameter) -> None:
    """Refuse what names nothing: an empty word, or a place that ends with the command.

    Raises:
        ConfigError: naming the option or argument.
    """
    option = isinstance(parameter, click.Option)
    name = parameter.opts[0] if option else parameter.make_metavar(click.Context(cli))
    if not word:
        raise ConfigError(f"{name} is empty: is a variable not set?")
    if word.startswith(MEMORY) or f"={MEMORY}" in word:
        raise ConfigError(f"{name} {word}: memory:// is gone when the command ends; name a folder")


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="fmcortex")
def cli() -> None:
    """Pretrain foundation models of the mouse visual cortex, and use them.

    The way: simulate (or bring recordings) -> prep -> pretrain -> transfer -> evaluate ->
    register -> report. Every command has its own --help with an example.
    """
    from fmcortex.home import do_without_home

    if (line := do_without_home()) is not None:
        click.echo(line, err=True)


def command(
    name: str, example: str, group: click.Group = cli, **settings: Any
) -> Callable[[Any], Any]:
    """A command called `name`, with an example at the end of its help."""
    context = {**CONTEXT, **settings}
    return group.command(name, cls=Command, epilog=example, context_settings=context)


def config_options(function: Any) -> Any:
    """The options that make up a run's configuration."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=C",
            help="Override a key of the configuration; may be repeated.",
        ),
        click.option(
            "--config",
            "path",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="YAML configuration  [default: the released recipe, with 70 frames in float32]",
        ),
    ):
        function = option(function)
    return function


def run_options(function: Any) -> Any:
    """The options of all commands that take a run's configuration and write its output."""
    output = click.option(
        "--output", metavar="URL", help="Folder of the run  [default: from the configuration]"
    )
    return config_options(output(function))


def read_config(
    path: str | None, output: str | None, overrides: tuple[str, ...], **values: Any
) -> RunConfig:
    """The configuration of a run from a command's options; None leaves a value as it is.

    What an option of its own says, such as --output, is taken as it is: it is never YAML.

    Raises:
        ConfigError: as `load_config`, or the run would be in memory only.
    """
    from fmcortex.config import load_config

    options = {"output": output} | {key.replace("__", "."): one for key, one in values.items()}
    given = {key: value for key, value in options.items() if value is not None}
    config = load_config(path, overrides, given)
    for key, url in (("output", config.output), ("data.url", config.data.url)):
        if url.startswith(MEMORY):
            raise ConfigError(f"{key}: {url} is gone when the command ends; name a folder")
    return config


def store_option(function: Any) -> Any:
    """The option of commands that take models:/name@alias."""
    return click.option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store of models:/...  [default: tracking.uri of the configuration, else "
        "MLFLOW_TRACKING_URI, else mlflow.db in this folder]",
    )(function)


def open_source(
    source: str, config: RunConfig | None = None, tracking_uri: str | None = None
) -> Checkpoint:
    """The checkpoint in a folder or in the model registry; which step it is of is printed.

    Args:
        source: a run's folder, a checkpoint, or models:/name@alias.
        config: whose store has the registry.
        tracking_uri: of that store, if it is another one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: the registry has no such model, or no store is named.
    """
    from fmcortex.training.checkpoint import open_checkpoint

    return said_from(open_checkpoint(source_folder(source, config, tracking_uri)))


def source_folder(
    source: str, config: RunConfig | None = None, tracking_uri: str | None = None
) -> str:
    """The folder that `source` names; a registered model is downloaded. See `open_source`."""
    if not source.startswith("models:/"):
        return source
    from fmcortex.tracking.registry import resolve

    return resolve(source, _store_of_models(source, config, tracking_uri))


def _store_of_models(source: str, config: RunConfig | None, given: str | None) -> str:
    from pathlib import Path

    from fmcortex.config import TrackingConfig
    from fmcortex.tracking import run

    if given is None and config is not None and config.tracking.uri:
        given = config.tracking.uri
    given = given or os.environ.get("MLFLOW_TRACKING_URI")
    if given is None and Path("mlflow.db").exists():
        given = "sqlite:///mlflow.db"
    if given is None:
        raise ConfigError(f"{source}: name the MLflow store that has it with --tracking-uri")
    return run.tracking_uri(TrackingConfig(uri=given), ".")


def said_from(opened: Checkpoint) -> Checkpoint:
    """Say which checkpoint is used, and what there is to know of it."""
    if opened.remark:
        click.echo(opened.remark, err=True)
    click.echo(f"from step {opened.step}: {without_secrets(opened.folder)}")
    return opened
