"""`python -m cluster.slurm_nodes` in a SLURM job: wait until the Ray of every node has joined."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import Any

from cluster.ray_place import answers
from fmcortex.errors import FmcortexError


def wait_for_nodes(names: list[str], seconds: float) -> list[str]:
    """Wait until the cluster at RAY_ADDRESS has a living node of each name.

    Args:
        names: of the nodes, as SLURM calls them and as `ray start --node-name` was told.
        seconds: to wait.

    Returns:
        One line a node: its name, address and resources.

    Raises:
        FmcortexError: not all have joined in time; names those that have not.
    """
    import ray

    deadline = time.monotonic() + seconds
    joined: dict[str, dict[str, Any]] = {}
    trouble = ""
    try:
        while missing := [name for name in names if name not in joined]:
            if time.monotonic() > deadline:
                raise FmcortexError(
                    f"no Ray on {', '.join(missing)} after {seconds:.0f} s ({len(joined)} of "
                    f"{len(names)} nodes joined){trouble}; see the job's log, FMCORTEX_JOIN_SECONDS"
                )
            try:
                if not ray.is_initialized():
                    if not answers(os.environ["RAY_ADDRESS"]):  # Ray itself would try for minutes
                        raise ConnectionError("its head does not answer yet")
                    ray.init(logging_level=logging.CRITICAL, log_to_driver=False)
                joined = {node["NodeName"]: node for node in ray.nodes() if node["Alive"]}
            except Exception as error:  # Ray has many ways to say that it is not there yet
                trouble = f": {' '.join(str(error).split())[:200]}"
            time.sleep(0.5)
    finally:
        ray.shutdown()
    return [_line(joined[name]) for name in names]


def _line(node: dict[str, Any]) -> str:
    resources = node["Resources"]
    return (
        f"{node['NodeName']} joined: {node['NodeManagerAddress']}, "
        f"{resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line: node names and a time limit; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="time to wait")
    parser.add_argument("names", nargs="+", help="names of the nodes")
    options = parser.parse_args(arguments)
    if not os.environ.get("RAY_ADDRESS"):
        parser.error("RAY_ADDRESS is not set; this is called by slurm/pretrain.sbatch")
    try:
        for line in wait_for_nodes(options.names, options.seconds):
            print(line, file=sys.stderr)
    except FmcortexError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
