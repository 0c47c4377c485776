"""Fixtures of the whole: a small prepared dataset of simulated mice."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from data_prep.job import prepare
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate
from fmcortex.config import RunConfig, load_config

#: Mice of different numbers of neurons, so that what belongs to whom cannot be mixed up.
NEURONS = (7, 12, 9)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated recording sessions, in the digital-twin layout."""
    folder = tmp_path_factory.mktemp("recordings")
    for i, neurons in enumerate(NEURONS):
        settings = SimulationSettings(
            mice=3,
            neurons=neurons,
            minutes=0.7,
            trial_seconds=3,
            short_trials=0.3,
            height=18,
            width=32,
            test_videos=2,
            test_repeats=4,
            validation_videos=1,
            validation_repeats=3,
            domains=("drifting_gabor",),
            layout="digital_twin",
        )
        simulate(settings, folder, sessions=[i])
    return folder


@pytest.fixture(scope="session")
def prepared(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same sessions as a prepared dataset."""
    to = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(recordings), str(to))
    return str(to)


@pytest.fixture
def tiny_run(prepared: str, tmp_path: Path) -> RunConfig:
    """A run of 20 steps that takes a few seconds."""
    return load_config(
        None,
        [
            f"output={tmp_path / 'run'}",
            f"data.url={prepared}",
            "data.frames=16",
            "data.batch=2",
            "model.preset=tiny",
            "model.retina_height=12",
            "model.retina_width=18",
            "training.burnin=4",
            "training.epochs=4",
            "training.steps_per_epoch=5",
            "training.warmup_epochs=1",
            "checkpoint.every=10",
            "tracking.validate_every=0",
        ],
    )


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server of the S3 protocol, found through the environment as on a cluster."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # the servers of one process share their state
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
