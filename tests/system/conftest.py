"""Fixtures of the tests that need system packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import swift_server
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


@dataclass(frozen=True)
class Swift:
    """A running Swift and a bucket on it."""

    server: swift_server.SwiftServer
    bucket: str

    def environment(self) -> dict[str, str]:
        """Variables by which S3 clients find and are let into it."""
        return {
            "AWS_ENDPOINT_URL": self.server.url,
            "AWS_ACCESS_KEY_ID": self.server.key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="session")
def swift() -> Iterator[Swift]:
    """A running OpenStack Swift with one bucket."""
    import s3fs

    if missing := swift_server.missing_programs():
        pytest.skip(f"Swift is not installed (no {', '.join(missing)}): make test-system")
    with swift_server.running_swift() as server:
        swift = Swift(server, "s3://mice")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in swift.environment().items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir("mice")
            s3fs.S3FileSystem.clear_instance_cache()
        yield swift
