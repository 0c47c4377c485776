"""The command line's entry point: runs a command and turns the user's errors into one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from fmcortex.commands import (
    curves,
    data,
    dataset,
    plan,
    publish,
    quality,
    submit,
    training,
    upkeep,
)
from fmcortex.commands.base import cli
from fmcortex.errors import Adjusted, FmcortexError, Interrupted, Preempted

__all__ = [
    "cli",
    "curves",
    "data",
    "dataset",
    "main",
    "plan",
    "publish",
    "quality",
    "submit",
    "training",
    "upkeep",
]

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def _say(show: Callable[..., None], message: Warning | str, *rest: Any, **more: Any) -> None:
    """Print an adjusted setting as one line, and other warnings as Python does."""
    if isinstance(message, Adjusted):
        click.echo(f"note: {message}", err=True)
    else:
        show(message, *rest, **more)


def main() -> None:
    """Run the command line; errors of the user's become one line and exit status 1."""
    warnings.showwarning = partial(_say, warnings.showwarning)
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Preempted as error:
        click.echo(str(error), err=True)
        sys.exit(INTERRUPTED if isinstance(error, Interrupted) else os.EX_TEMPFAIL)
    except FmcortexError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except MemoryError as error:
        if os.environ.get("FMCORTEX_TRACEBACK"):
            raise
        click.echo(f"error: not enough memory on this machine: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None or os.environ.get("FMCORTEX_TRACEBACK"):
            raise
        click.echo(f"error: {Path(str(error.filename))}: {error.strerror}", err=True)
        sys.exit(1)
    except Exception as error:
        if not _of_mlflow(error) or os.environ.get("FMCORTEX_TRACEBACK"):
            raise
        from fmcortex.tracking.store import why

        click.echo(f"error: MLflow: {why(error)}", err=True)
        sys.exit(1)


def _of_mlflow(error: Exception) -> bool:
    """Whether an error is MLflow's own or its database's; told without importing them."""
    return type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy")


if __name__ == "__main__":
    main()
