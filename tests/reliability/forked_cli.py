"""Commands of fmcortex in processes that fork from one that has imported what they need.

Importing takes most of a command's time here, and the matrix runs hundreds of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

#: What commands import when they run.
PRELOADED = [
    "torch._dynamo",
    "mlflow.pyfunc",
    "sqlalchemy",
    "alembic.command",
    "matplotlib.figure",
    "scipy.stats",
    "fmcortex.cli",
    "fmcortex.training.single",
    "fmcortex.tracking.registry",
    "fmcortex.evaluation.evaluate",
    "data_prep.job",
    "data_prep.quality.report",
]


def _main(arguments: list[str], cwd: str, environment: dict[str, str], log: str) -> None:
    from fmcortex.cli import main

    os.chdir(cwd)
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["fmcortex", *arguments]
    main()


def run_forked(
    arguments: list[str], cwd: Path, environment: dict[str, str], log: Path, timeout: float
) -> int:
    """Run a command, with all that it prints in the file `log`; its exit status.

    Raises:
        TimeoutError: it did not end in time; it has been killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=_main, args=(arguments, str(cwd), environment, str(log)), daemon=False
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{arguments}: still running after {timeout} s")
    return process.exitcode
