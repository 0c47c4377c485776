"""Ray is started where it fits, joined where it answers, and a line says what is wrong if not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import ray_place, slurm_nodes
from cluster.ray_place import cluster_address, keep_token, short_folder
from fmcortex.cli import cli
from fmcortex.config import RunConfig
from fmcortex.errors import ConfigError, FmcortexError

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> str:
    """RAY_ADDRESS of a cluster that is not there any more."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray_place, "ANSWERS", 0.2)
    return address


@pytest.mark.parametrize("command", ["pretrain", "prep", "deconvolve", "sweep"])
def test_a_cluster_that_is_gone_is_said_at_once(
    command: str, gone: str, tiny_run: RunConfig, recordings: Path, tmp_path: Path
) -> None:
    run = [
        f"--set=base.data.url={tiny_run.data.url}",
        f"--set=output={tmp_path}/sweep",
        "--set=mice=[1]",
        "--set=minutes=[0.1]",
    ]
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("base: {model: {preset: tiny}, data: {frames: 16}, training: {burnin: 4}}\n")
    arguments = {
        "pretrain": [
            "--output",
            str(tmp_path / "run"),
            *(f"--set={key}" for key in (f"data.url={tiny_run.data.url}", "data.frames=16")),
            "--set=model.preset=tiny",
            "--set=training.burnin=4",
            "--workers=1",
        ],
        "prep": [str(recordings), "--to", str(tmp_path / "to"), "--workers", "1"],
        "deconvolve": [str(signals(tmp_path)), "--workers", "1"],
        "sweep": [str(sweep), "--workers", "1", *run],
    }
    done = CliRunner().invoke(cli, [command, *arguments[command]])
    assert isinstance(done.exception, ConfigError), done.output
    assert str(done.exception) == (
        f"RAY_ADDRESS: no Ray cluster answers at {gone}: Connection refused; start it, or unset "
        "RAY_ADDRESS to run on this machine"
    )


def signals(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "data_prep"))
    from raw_recordings import raw_session

    raw_session(folder / "raw")
    return folder / "raw"


def test_a_host_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_place, "ANSWERS", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: no Ray cluster answers at no-such-host"):
        cluster_address()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://127.0.0.1:10001", r"ray://127.0.0.1:10001 is not the address of a cluster's head"),
        ("http://127.0.0.1:8265", r"http://127.0.0.1:8265 is not the address of a cluster's head"),
        ("somewhere", r"somewhere is not an address; give the head's host:port"),
        ("127.0.0.1:port", r"127.0.0.1:port is not an address"),
        ("auto", r"auto, and no Ray cluster was started on this machine"),
    ],
)
def test_what_is_no_address_is_refused(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS: {message}"):
        cluster_address()


def test_auto_names_the_cluster_that_was_started_last(
    tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(gone)
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {gone}"):
        cluster_address()
    for nothing in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", nothing)
        assert cluster_address() is None


def test_nodes_are_waited_for_no_longer_than_told(gone: str) -> None:
    with pytest.raises(FmcortexError, match=r"no Ray on node1 after 1 s .*does not answer yet"):
        slurm_nodes.wait_for_nodes(["node1"], 1.0)


def test_prep_starts_ray_whatever_the_folder_for_temporary_files(
    tmp_path: Path, recordings: Path
) -> None:
    long = tmp_path / "folder_for_temporary_files_of_the_job" / "slurm_jobdir" / "1355700" / "tmp"
    long.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    command = [BIN / "fmcortex", "prep", recordings, "--to", tmp_path / "to", "--workers", "1"]
    done = subprocess.run(
        command, env={**environment, "TMPDIR": str(long)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = next(line for line in done.stdout.splitlines() if "TMPDIR" in line)
    assert f"prep: TMPDIR: {long} is too long for the names of sockets" in said
    used = Path(said.split()[-1])
    assert used.parent in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
    assert not used.exists()


@pytest.mark.parametrize("kind", ["not absolute", "not writable", "ray of another", "fits"])
def test_the_folder_of_sockets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # pytest's own is too long
        monkeypatch.setenv("TMPDIR", "relative" if kind == "not absolute" else base)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        if kind == "not writable":
            (Path(base) / "ray").write_text("")
        elif kind == "ray of another":
            monkeypatch.setattr(ray_place.os, "access", lambda *_: False)
        lines: list[str] = []
        with short_folder(lines.append):
            chosen = os.environ.get("RAY_TMPDIR")
            assert (chosen is None) == (kind == "fits")
            assert chosen is None or len(chosen) + ray_place.SOCKET <= ray_place.LONGEST
        assert "RAY_TMPDIR" not in os.environ
        assert chosen is None or not os.path.exists(chosen)
        assert [line.split()[0] for line in lines] == [] if kind == "fits" else ["TMPDIR:"]
        monkeypatch.setattr(ray_place, "ELSEWHERE", ("/dev/null",))
        if kind != "fits":
            with pytest.raises(FmcortexError, match="set RAY_TMPDIR"), short_folder(lines.append):
                pass


def test_the_token_stays_in_memory_where_home_cannot_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "before")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/dev/null/home")
    keep_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    keep_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first


@pytest.fixture(scope="module")
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray cluster that was started by somebody else: the variables by which it is joined."""
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        port = free_port()
        start = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}"]
        start += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false"]
        start += ["--disable-usage-stats", "--object-store-memory=100000000"]
        start += ["--dashboard-agent-listen-port=0", f"--temp-dir={folder}/ray"]
        log = Path(folder, "log")
        with log.open("w") as stream:
            head = subprocess.Popen(
                start, env={**os.environ, **settings}, stdout=stream, stderr=stream
            )
        try:
            while "Ray runtime started" not in log.read_text():
                try:
                    head.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    continue
                pytest.fail(f"no Ray to try it on: {log.read_text()}")
            yield {**settings, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            head.terminate()
            try:
                head.wait(timeout=30)
            except subprocess.TimeoutExpired:
                head.kill()


@pytest.mark.parametrize("command", ["prep", "deconvolve"])
def test_recordings_are_prepared_in_a_cluster_that_is_there(
    command: str, ray_head: dict[str, str], recordings: Path, tmp_path: Path
) -> None:
    if command == "prep":
        arguments = [str(recordings), "--to", str(tmp_path / "to"), "--workers", "1"]
    else:
        arguments = [str(signals(tmp_path)), "--workers", "1"]
    done = subprocess.run(
        [str(BIN / "fmcortex"), command, *arguments],
        env={**os.environ, **ray_head},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{command}: joining the Ray cluster at {ray_head['RAY_ADDRESS']}" in done.stdout
    left = tmp_path / ("to/manifest.json" if command == "prep" else "raw")
    assert left.exists()
