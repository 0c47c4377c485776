"""Commands that hand results on: register, report, sweep."""

from __future__ import annotations

import click

from fmcortex.commands.base import (
    WORKERS,
    command,
    open_source,
    said_from,
    source_folder,
    store_option,
)
from fmcortex.errors import ConfigError, without_secrets


@command("register", "fmcortex register runs/first --name mouse-cortex --alias champion")
@click.argument("checkpoint")
@click.option("--name", required=True, help="Of the registered model.")
@click.option("--alias", help="An alias to set on the new version.")
@click.option("--tracking-uri", metavar="URI", help="MLflow store  [default: that of the run]")
def register_command(
    checkpoint: str, name: str, alias: str | None, tracking_uri: str | None
) -> None:
    """Register a checkpoint as a new version of a model in MLflow's registry.

    CHECKPOINT is a run folder or a checkpoint; one that is registered already keeps its version,
    which gets the alias. Without --tracking-uri the run's own MLflow store
    is used and the model is logged in its run.
    """
    from fmcortex.config import TrackingConfig
    from fmcortex.tracking.registry import register
    from fmcortex.tracking.run import tracking_uri as absolute_uri
    from fmcortex.tracking.run_file import read_run_file

    run_id = None
    if tracking_uri is None:
        run = read_run_file(checkpoint)
        if run is None or run.uri is None:
            raise ConfigError(
                f"{checkpoint}: no run.json here that names an MLflow store; give --tracking-uri"
            )
        uri, run_id = run.uri, run.run_id
    else:
        uri = absolute_uri(TrackingConfig(uri=tracking_uri), ".")
    opened = open_source(checkpoint, tracking_uri=uri)
    made = register(opened, name, alias, uri, run_id)
    what = "is already registered as" if made.known else "registered"
    click.echo(f"{what} {made.name} version {made.version} of step {opened.step}: {made.uri}")
    click.echo(f"in {without_secrets(uri)}")


@command("report", "fmcortex report runs --to report.html")
@click.argument("folder")
@click.option("--to", default="report.html", help="The HTML page.")
@click.option("--title", help="Of the page.")
@click.option(
    "--checkpoint",
    metavar="URL",
    help="A model whose neurons are drawn: a run folder, a checkpoint or models:/name@alias.",
)
@click.option("--data", "dataset", metavar="URL", help="Its prepared dataset.")
@store_option
def report_command(
    folder: str,
    to: str,
    title: str | None,
    checkpoint: str | None,
    dataset: str | None,
    tracking_uri: str | None,
) -> None:
    """Write one HTML page on the runs, evaluations and sweep in FOLDER.

    FOLDER and the folders in it are searched for runs (run.json), evaluations
    (evaluations/<model>.json, from `fmcortex evaluate --to`) and a sweep (scaling.json).
    """
    from dataclasses import replace

    from fmcortex.overlap import check_replaces
    from fmcortex.report.inputs import gather, inputs_of
    from fmcortex.report.page import write_report

    check_replaces(to, "HTML page")
    inputs = inputs_of(folder, title)
    if checkpoint:
        inputs = replace(inputs, checkpoint=source_folder(checkpoint, None, tracking_uri))
    if dataset:
        inputs = replace(inputs, dataset=dataset)
    report = gather(inputs)
    used = [report.checkpoint, *(run.checkpoint for run in report.runs)]
    for opened in {one.folder: one for one in used if one is not None}.values():
        said_from(opened)
    click.echo(f"wrote {write_report(report, to)}")


@command("sweep", "fmcortex sweep configs/sweep.yaml --workers 2")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--workers",
    type=WORKERS,
    help="Ray workers of a point; 0: train in this process  [default: from the configuration]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Override a key of FILE; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print the points and stop.")
def sweep_command(
    file: str, workers: int | None, overrides: tuple[str, ...], dry_run: bool
) -> None:
    """Train a grid of numbers of mice and minutes, and fit a power law to the scores.

    Finished points are not run again.
    """
    from cluster.sweep import run_sweep
    from fmcortex.scaling.sweep import load_sweep

    config = load_sweep(file, overrides)
    if dry_run:
        from fmcortex.data.dataset import open_dataset
        from fmcortex.scaling.sweep import points
        from fmcortex.tables import print_table

        made = points(config, open_dataset(config.run.data.url))
        print_table(
            file,
            ["point", "neuron hours", "key"],
            [[p.name, f"{p.neuron_hours:.3f}", p.key[:12]] for p in made],
        )
        return
    result = run_sweep(config, workers)
    click.echo(f"{len(result.ran)} points run, {len(result.skipped)} found finished")
    click.echo(f"figure and table in {result.output}")
