"""Starting Ray for a command, or joining the cluster that it runs in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_session(cpus: int, environment: dict[str, str] | None = None) -> Iterator[Any]:
    """Ray, quiet, with at least `cpus` CPUs; one that was started here is ended here.

    With RAY_ADDRESS set, as in a SLURM or Kubernetes job, the cluster there is joined.

    Args:
        cpus: that a local Ray offers its workers.
        environment: variables of the workers.
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
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "address": "local",
            "num_cpus": max(cpus, 1),
            "include_dashboard": False,
            "object_store_memory": 200 << 20,
        }
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()
