"""Commands that change a prepared dataset: data repair, remove, gc."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fmcortex.commands.base import command
from fmcortex.commands.dataset import data_group

if TYPE_CHECKING:
    from data_prep.upkeep import Going


def asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that list what they will do, and ask."""
    dry = click.option("--dry-run", is_flag=True, help="Only list what would be done.")
    return dry(click.option("--yes", is_flag=True, help="Do it without asking.")(function))


def goes_on(yes: bool, dry_run: bool) -> bool:
    """Whether to do what was listed.

    Raises:
        click.UsageError: there is nobody to be asked.
        click.Abort: the user says no.
    """
    if dry_run:
        return False
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nothing was changed; give --yes to go on, or --dry-run to look")
        click.confirm("Go on?", abort=True)
    return True


@command("repair", "fmcortex data repair prepared recordings", data_group)
@click.argument("url")
@click.argument("source")
@asking
def repair_command(url: str, source: str, yes: bool, dry_run: bool) -> None:
    """Make damaged parts of the prepared dataset at URL again from SOURCE, its recordings.

    Every byte of the dataset is read first, and what is damaged is listed. A session is made again
    with the settings that it was prepared with, but for the parts that are whole.
    """
    from data_prep.upkeep import damaged, repair
    from fmcortex.data.describe import verify
    from fmcortex.errors import DataError
    from fmcortex.progress import Progress

    with Progress("repair", 0, "session", every=5.0, stream=sys.stderr) as bar:
        found = damaged(url, lambda name: bar.update(bar.last, f"checking {name}"))
    for name, problems in found.items():
        for problem in dict.fromkeys(problems):
            click.echo(f"{name}: {problem}")
    if not found:
        click.echo(f"{url}: all sessions are whole")
    if not goes_on(yes or not found, dry_run):
        return
    repair(url, source, list(found), click.echo)
    left = verify(url)
    if left:
        raise DataError(f"{url}: still damaged: {left[0]}")
    click.echo(f"{url}: whole")


@command("remove", "fmcortex data remove prepared mouse03-1-1", data_group)
@click.argument("url")
@click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
@asking
def remove_command(url: str, sessions: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Take sessions out of the prepared dataset at URL.

    Only what `fmcortex prep` wrote is removed. Movies stay: `fmcortex data gc` removes those that
    no other session shows.
    """
    from data_prep.upkeep import remove_sessions, sessions_going

    _list(sessions_going(url, sessions), "session")
    if goes_on(yes, dry_run):
        remove_sessions(url, sessions)
        click.echo(f"{url}: removed {', '.join(dict.fromkeys(sessions))}")


@command("gc", "fmcortex data gc prepared --dry-run", data_group)
@click.argument("url")
@asking
def gc_command(url: str, yes: bool, dry_run: bool) -> None:
    """Remove the movies that no session of the prepared dataset at URL shows any more."""
    from data_prep.upkeep import movies_going, remove_movies

    going = movies_going(url)
    _list(going, "movie")
    if going and goes_on(yes, dry_run):
        removed = remove_movies(url)
        click.echo(f"{url}: removed {len(removed)} movies")


def _list(going: list[Going], kind: str) -> None:
    for one in going:
        click.echo(f"{kind} {one.name}: {len(one.files)} files, {one.bytes / 1e6:.2f} MB")
    total = sum(one.bytes for one in going)
    click.echo(f"{len(going)} {kind}{'s' * (len(going) != 1)}, {total / 1e6:.2f} MB")
