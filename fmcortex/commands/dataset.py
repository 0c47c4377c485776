"""Commands that look into a prepared dataset: data ls, info, verify, peek, leaks."""

from __future__ import annotations

from typing import Any

import click

from fmcortex.commands.base import CONTEXT, COUNT, Number, cli, command
from fmcortex.errors import DataError


@cli.group("data", context_settings=CONTEXT)
def data_group() -> None:
    """Look into a prepared dataset, at any fsspec URL or local path."""


@command("ls", "fmcortex data ls s3://bucket/prepared", data_group)
@click.argument("url")
def ls_command(url: str) -> None:
    """List the shards of the prepared dataset at URL, or the prepared datasets in that folder."""
    from fmcortex.data.dataset import MANIFEST
    from fmcortex.data.describe import datasets_in, shards_of
    from fmcortex.storage import exists, join

    if not exists(join(url, MANIFEST)):
        found = datasets_in(url)
        if not found:
            raise DataError(f"{url}: no prepared dataset here or in its folders")
        for name in found:
            click.echo(name)
        return
    from fmcortex.tables import print_table

    rows = [
        [
            s.session,
            s.shard,
            str(s.trials),
            f"{s.frames / s.frame_rate:.1f}",
            f"{s.bytes / 1e6:.2f}",
        ]
        for s in shards_of(url)
    ]
    print_table(url, ["session", "shard", "trials", "seconds", "MB"], rows, keys=2)


@command("info", "fmcortex data info prepared", data_group)
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(url: str, as_json: bool) -> None:
    """Print the sessions of the prepared dataset at URL."""
    import json

    from fmcortex.data.describe import describe

    found = describe(url)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from fmcortex.tables import print_table

    rows = []
    for s in found["session_details"]:
        domains = sorted({domain for tier in s["videos"].values() for domain in tier})
        rows.append(
            [
                s["session"],
                str(s["neurons"]),
                f"{s['train_minutes']:.1f}",
                str(s["train_trials"]),
                str(sum(s["excluded"].values())),
                ", ".join(domains),
                f"{s['bytes'] / 1e6:.1f}",
            ]
        )
    columns = ["session", "neurons", "minutes", "trials", "left out", "test domains", "MB"]
    print_table(url, columns, rows)
    click.echo(f"{found['movies']} distinct movies, {found['movie_bytes'] / 1e6:.1f} MB")


@command("verify", "fmcortex data verify prepared", data_group)
@click.argument("url")
def verify_command(url: str) -> None:
    """Read every byte of the prepared dataset at URL and check it."""
    from fmcortex.data.describe import verify
    from fmcortex.progress import Progress

    with Progress("verify", 0, "part", every=5.0) as bar:

        def track(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.update(done, what)

        problems = verify(url, track)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise DataError(
            f"{url}: {len(problems)} problem(s); make the damaged parts again with `fmcortex data"
            f" repair {url} RECORDINGS`"
        )
    click.echo(f"{url}: whole")


@command("peek", "fmcortex data peek prepared --trial 3 --figure trial.png", data_group)
@click.argument("url")
@click.option("--session", help="A session  [default: the first]")
@click.option(
    "--trial", metavar="NAME", help="As the recording calls it  [default: the first of training]"
)
@click.option("--figure", metavar="FILE", help="Draw the trial into this image file.")
def peek_command(url: str, session: str | None, trial: str | None, figure: str | None) -> None:
    """Print what is in a trial of the prepared dataset at URL, and draw it."""
    from fmcortex.data.dataset import open_dataset
    from fmcortex.data.peek import draw_trial, find_trial, summary
    from fmcortex.overlap import check_replaces
    from fmcortex.tables import print_table

    dataset = open_dataset(url)
    if figure is not None:
        check_replaces(figure, "image", [url])
    opened = dataset.session(session or dataset.sessions[0])
    manifest = opened.manifest
    entry, tier = find_trial(opened, trial)
    arrays = opened.arrays_of(entry)
    title = (
        f"{manifest.session}, trial {entry.key} ({tier}): {entry.domain}, "
        f"{entry.frames / manifest.frame_rate:.1f} s, movie {entry.movie[:12]}, "
        f"{manifest.shards[entry.shard].name}"
    )
    columns = ["array", "shape", "dtype", "least", "mean", "greatest"]
    print_table(title, columns, summary(arrays))
    if figure is not None:
        draw_trial(opened, entry, arrays, figure)
        click.echo(figure)


@command(
    "plan",
    "fmcortex data plan sessions.csv --cores 64 --set response_dtype=float16",
    data_group,
)
@click.argument("table", type=click.Path(exists=True, dir_okay=False))
@click.option("--cores", type=COUNT, default=1, help="Cores that prepare.")
@click.option(
    "--shared",
    type=Number(0, 1),
    default=0.0,
    help="Part of the movies that is shown more than once.",
)
@click.option("--trial-seconds", type=Number(1, 3600), default=10.0, help="Length of a trial.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every session.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the preparation; may be repeated.",
)
def plan_command(
    table: str,
    cores: int,
    shared: float,
    trial_seconds: float,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Plan the shards, bytes and time of preparing the sessions listed in TABLE.

    TABLE is a CSV file with columns session, neurons, minutes and scan_hz. Nothing else is read:
    the compression and the speed are those measured by benchmarks/data_loading.py.
    """
    import dataclasses
    import json

    from data_prep.settings import PrepSettings
    from data_prep.sizing import read_table, sizes_of
    from fmcortex.config import validated, with_overrides

    values = with_overrides({"height": 144, "width": 256}, overrides, PrepSettings)
    settings = validated(PrepSettings, values, "data plan")
    sizes = sizes_of(read_table(table), settings, trial_seconds=trial_seconds, shared_movies=shared)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(size) for size in sizes], indent=1))
        return
    from fmcortex.tables import print_table

    rows = []
    smallest, largest = (f(sizes, key=lambda s: s.core_seconds) for f in (min, max))
    for name, some in (("smallest", [smallest]), ("largest", [largest]), ("all", sizes)):
        responses, movies = sum(s.response_bytes for s in some), sum(s.movie_bytes for s in some)
        rows.append(
            [
                name if len(some) > 1 else f"{name}: {some[0].session}",
                str(sum(s.neurons for s in some)),
                f"{sum(s.minutes for s in some) / 60:.1f}",
                str(sum(s.trials for s in some)),
                str(sum(s.shards for s in some)),
                f"{responses / 1e9:.2f}",
                f"{movies / 1e9:.2f}",
                f"{sum(s.core_seconds for s in some) / 3600:.2f}",
            ]
        )
    columns = ["sessions", "neurons", "hours", "trials", "shards", "responses GB", "movies GB"]
    print_table(f"{table}: {len(sizes)} sessions", [*columns, "core hours"], rows)
    hours = sum(s.core_seconds for s in sizes) / cores / 3600
    click.echo(f"about {hours:.1f} hours on {cores} core{'s' * (cores > 1)}")


@command("leaks", "fmcortex data leaks prepared", data_group)
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def leaks_command(url: str, as_json: bool) -> None:
    """Find movies in training that are like ones in validation or test, in any session.

    Movies are compared by perceptual hashes, so that the same footage is found although it was
    encoded, cut or scaled otherwise.
    """
    import dataclasses
    import json

    from data_prep.split_job import leaks

    found = leaks(url)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(leak) for leak in found], indent=1))
        return
    if not found:
        click.echo(f"{url}: no leaks")
        return
    from fmcortex.tables import print_table

    rows: list[list[Any]] = [
        [
            leak.trained[:12],
            _some(leak.trained_in),
            leak.held_out[:12],
            _some([f"{session} ({tier})" for session, tier in leak.held_out_in]),
            "same" if leak.trained == leak.held_out else f"{leak.share:.0%} alike",
        ]
        for leak in found
    ]
    columns = ["trained on", "in", "held out", "in", "movies"]
    print_table(f"{url}: {len(found)} leaks", columns, rows, keys=3)


def _some(names: Any, most: int = 2) -> str:
    """The first of some names."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
