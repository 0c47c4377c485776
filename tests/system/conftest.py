"""Fixtures of the tests that need system packages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from two_node_slurm import SlurmCluster, missing_programs, running_cluster


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A running two-node SLURM on this machine."""
    if missing := missing_programs():
        pytest.skip(
            f"SLURM is not installed (no {', '.join(missing)}): apt install slurm-wlm munge"
        )
    with running_cluster() as cluster:
        yield cluster
