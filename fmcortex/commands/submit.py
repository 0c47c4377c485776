"""Commands that submit work to SLURM or Kubernetes."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from fmcortex.commands.base import CONTEXT, cli, command, read_config, run_options


@cli.group("submit", context_settings=CONTEXT)
def submit_group() -> None:
    """Submit a command to SLURM or Kubernetes, on several nodes."""


def job_options(function: Any) -> Any:
    """The options that both launchers take."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Print what would be submitted and stop."),
        click.option(
            "--job",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other setting of the job, such as memory=200G; may be repeated.",
        ),
        click.option("--gpus-per-node", type=click.IntRange(0, 1024), help="GPUs of a node."),
        click.option("--nodes", type=click.IntRange(1, 65_536), default=2, help="Nodes."),
    ):
        function = option(function)
    return function


def checked(words: tuple[str, ...]) -> str:
    """Find out now, rather than in the job, that a command and its options are not right.

    Args:
        words: the command's name and its arguments.

    Returns:
        The name.

    Raises:
        click.UsageError: as the command itself would.
        ConfigError: the configuration of a training is wrong.
    """
    rest, found = list(words), click.Context(cli, info_name="fmcortex")
    while isinstance(found.command, click.Group):
        group = found.command
        if not rest:
            raise click.UsageError(f"{group.name}: name one of its commands", found)
        if group is cli and rest[0] == submit_group.name:
            raise click.UsageError("submit itself cannot be submitted", found)
        name, inner, rest = group.resolve_command(found, rest)
        assert name is not None
        assert inner is not None
        if isinstance(inner, click.Group):
            found = click.Context(inner, parent=found, info_name=name)
        else:
            found = inner.make_context(name, rest, parent=found)
    given = found.params
    if found.command.name in ("pretrain", "transfer", "individual"):
        workers = given.get("workers")
        read_config(given["path"], given["output"], given["overrides"], cluster__workers=workers)
    return words[0]


@command(
    "slurm",
    "fmcortex submit slurm --nodes 4 --gpus-per-node 8 --job partition=gpu \\\n"
    "  pretrain --config configs/paper.yaml --set data.url=s3://bucket/mice",
    submit_group,
    allow_interspersed_args=False,  # options behind the first argument are the command's
)
@job_options
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def slurm_command(
    nodes: int,
    gpus_per_node: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
    arguments: tuple[str, ...],
) -> None:
    """Submit a command of fmcortex, with its own arguments, as a SLURM job.

    ARGUMENTS are those of the command: `pretrain --config FILE ...` or `sweep FILE ...`. They are
    checked before anything is submitted. Commands that do not run on Ray, such as `transfer`, take
    one node unless --nodes says otherwise.
    """
    from cluster.slurm import ON_RAY, SlurmJob, render, submit
    from fmcortex.config import validated, with_overrides

    asked = click.get_current_context().get_parameter_source("nodes")
    if checked(arguments) not in ON_RAY and asked is ParameterSource.DEFAULT:
        nodes = 1
    values: dict[str, Any] = {"nodes": nodes, "gpus_per_node": gpus_per_node}
    job = validated(SlurmJob, with_overrides(values, settings, SlurmJob, "--job"), "--job")
    if dry_run:
        click.echo(render(job, list(arguments)), nl=False)
        return
    click.echo(f"submitted SLURM job {submit(job, list(arguments))}")


@command(
    "k8s",
    "fmcortex submit k8s --nodes 4 --gpus-per-node 8 --job image=registry/fmcortex:0.1 \\\n"
    "  --config configs/paper.yaml --set data.url=s3://bucket/mice --output s3://bucket/run \\\n"
    "  --set tracking.uri=http://mlflow:5000",
    submit_group,
)
@job_options
@run_options
def k8s_command(
    nodes: int,
    gpus_per_node: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
    path: str | None,
    output: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Submit a pretraining to Kubernetes as a RayJob of KubeRay."""
    from cluster.kubernetes import submit
    from cluster.rayjob import KubernetesJob, render, to_yaml
    from fmcortex.config import validated, with_overrides

    config = read_config(path, output, overrides).model_dump(mode="json")
    values: dict[str, Any] = {"nodes": nodes, "gpus_per_node": gpus_per_node}
    values = with_overrides(values, settings, KubernetesJob, "--job")
    job = validated(KubernetesJob, values, "--job")
    if dry_run:
        click.echo(to_yaml(render(job, config)), nl=False)
        return
    click.echo(f"submitted RayJob {submit(job, config)} in namespace {job.namespace}")
