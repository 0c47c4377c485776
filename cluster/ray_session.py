"""Starting Ray for a command, or joining the cluster that it runs in: the one place for both."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.ray_place import cluster_address, keep_token, short_folder
from fmcortex.errors import ConfigError, FmcortexError

#: Bytes of the object store of a Ray that is started here; training data does not pass through it.
STORE = 200 << 20


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def ray_session(
    cpus: int,
    environment: dict[str, str] | None = None,
    say: Callable[[str], None] = _to_stderr,
) -> Iterator[Any]:
    """Ray, quiet, with at least `cpus` CPUs; one that was started here is ended here.

    With RAY_ADDRESS set, as in a SLURM or Kubernetes job, the cluster there is joined. Where Ray is
    connected already, that is used.

    Args:
        cpus: that a local Ray offers its workers.
        environment: variables of the workers.
        say: hears what is started or joined, and where it had to be elsewhere than usual.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster that can be joined.
        FmcortexError: Ray cannot be started on this machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    variables = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", **(environment or {})}
    options: dict[str, Any] = {
        "log_to_driver": bool(os.environ.get("FMCORTEX_RAY_LOGS")),
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": variables},
    }
    address = cluster_address()
    if address is not None:
        say(f"joining the Ray cluster at {address}")
        try:
            ray.init(address=address, **options)
        except Exception as error:  # Ray has no common class for what may be wrong with a cluster
            raise ConfigError(
                f"RAY_ADDRESS: cannot join the Ray cluster at {address}: {_line(error)}"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with short_folder(say):
        say("starting Ray on this machine")
        keep_token()
        try:
            ray.init(
                address="local",
                num_cpus=max(cpus, 1),
                include_dashboard=False,
                object_store_memory=STORE,
                **options,
            )
        except Exception as error:
            ray.shutdown()
            raise FmcortexError(f"cannot start Ray on this machine: {_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
