"""The command that reports on the quality of the recordings in a prepared dataset."""

from __future__ import annotations

import click

from fmcortex.commands.base import command
from fmcortex.commands.dataset import data_group


@command("quality", "fmcortex data quality prepared --to quality", data_group)
@click.argument("url")
@click.option("--to", required=True, metavar="FOLDER", help="Where the pages go (any fsspec URL).")
@click.option("--session", "sessions", multiple=True, help="A session; may be repeated.")
def quality_command(url: str, to: str, sessions: tuple[str, ...]) -> None:
    """Report on the quality of the recordings in the prepared dataset at URL.

    FOLDER receives an HTML page a session, index.html with a table of all, and quality.json with
    the numbers: strength and reliability of responses, drift, pupil and treadmill, what is
    missing, and the neurons and trials to look at before training.
    """
    from data_prep.quality.report import INDEX, NUMBERS, write_quality
    from fmcortex import storage
    from fmcortex.data.dataset import open_dataset
    from fmcortex.overlap import check_replaces
    from fmcortex.progress import Progress

    check_replaces(storage.join(to, INDEX), "HTML page", [url])
    check_replaces(storage.join(to, NUMBERS), "quality.json")
    entries = open_dataset(url).manifest.sessions
    total = sum(e.train_trials for e in entries if not sessions or e.session in sessions)
    with Progress("quality", total, "trial", every=5.0) as bar:
        index, *_ = write_quality(
            url, to, list(sessions) or None, lambda done, _, what: bar.update(done, what)
        )
    click.echo(f"wrote {index}")
