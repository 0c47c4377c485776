"""The command that draws the curves of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fmcortex.commands.base import command
from fmcortex.errors import ConfigError, without_secrets

if TYPE_CHECKING:
    from fmcortex.tracking.run import RunLog


@command("curves", "fmcortex curves runs/first\nfmcortex curves runs/* --to compared.html")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--to", metavar="FILE", help="The HTML page  [default: curves.html in the folder of one run]"
)
def curves_command(runs: tuple[str, ...], to: str | None) -> None:
    """Draw the metrics of a run over its steps, as one HTML page.

    RUN is the folder of a run, which may still be going on. With several, the curves of all of
    them are drawn over each other, into curves.html unless --to says otherwise.
    """
    from fmcortex import storage
    from fmcortex.overlap import check_replaces
    from fmcortex.tracking.page import (
        PAGE_FILE,
        comparison_page,
        curves_page,
        facts_of,
        read_curves,
        write_curves_page,
    )

    folders = list(dict.fromkeys(run.rstrip("/") for run in runs))
    own = storage.join(folders[0], PAGE_FILE) if len(folders) == 1 else PAGE_FILE
    check_replaces(to or own, "HTML page")
    logs = {folder: run_of(folder) for folder in folders}
    if len(folders) == 1:
        (folder, log), *_ = logs.items()
        if to is None:
            to = write_curves_page(log, folder)
        else:
            known = log.client.get_run(log.run_id)
            title = f"Curves of {known.info.run_name}"
            content = curves_page(read_curves(log), title, facts_of(known, log.uri))
            storage.write_bytes(storage.absolute(to), content.encode())
    else:
        to = to or PAGE_FILE
        curves = {name: read_curves(logs[folder]) for folder, name in names(folders).items()}
        page = comparison_page(curves, f"Curves of {len(folders)} runs")
        storage.write_bytes(storage.absolute(to), page.encode())
    click.echo(f"wrote {to}")


def names(folders: list[str]) -> dict[str, str]:
    """What each folder is called in a legend: its last part, or all where two share that."""
    last = [folder.rpartition("/")[2] for folder in folders]
    return {
        folder: name if last.count(name) == 1 else folder
        for folder, name in zip(folders, last, strict=True)
    }


def run_of(folder: str) -> RunLog:
    """The MLflow run of a run's folder.

    Raises:
        ConfigError: the folder names none, or its store has no such run.
    """
    from pathlib import Path

    from mlflow.exceptions import MlflowException

    from fmcortex.tracking.run import RunLog
    from fmcortex.tracking.run_file import read_run_file, run_file_of

    path, known = run_file_of(folder), read_run_file(folder)
    if known is None:
        raise ConfigError(f"{path}: no such file, so {folder} is not the folder of a run")
    uri, run_id = known.uri, known.run_id
    if not uri or not run_id:
        raise ConfigError(
            f"{path}: names no MLflow run (uri and run_id), so the run never began to be "
            "recorded; run its command again"
        )
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        # Opening it would make an empty one.
        raise ConfigError(f"{path}: its MLflow store {uri} does not exist; was the folder moved?")
    log = RunLog(uri, run_id)
    try:
        log.client.get_run(run_id)
    except MlflowException as error:
        shown = without_secrets(uri)
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: cannot read run {run_id} of {shown}: {line}") from error
    return log
