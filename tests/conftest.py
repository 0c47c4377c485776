"""Fixtures of the whole: a small prepared dataset of simulated mice."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script that has put the tests in the background has told them to ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from data_prep.job import prepare
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate
from fmcortex.config import RunConfig, load_config


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither use nor fill the user's cache of remote data."""
    before = os.environ.get("FMCORTEX_CACHE")
    os.environ["FMCORTEX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FMCORTEX_CACHE"]
    else:
        os.environ["FMCORTEX_CACHE"] = before


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


class S3Server:
    """A server of the S3 protocol with one bucket; what it holds outlives its stops."""

    def __init__(self) -> None:
        self.port = 0
        self.url = f"s3://bucket-{uuid.uuid4().hex[:8]}"  # servers of one process share their state
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, found through the environment as on a cluster."""
    import s3fs

    server = S3Server()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.host}:{server.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(server.url.removeprefix("s3://"))
        yield server
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture
def s3(s3_server: S3Server) -> str:
    """The URL of its bucket."""
    return s3_server.url
