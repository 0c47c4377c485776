"""Training on data that is damaged, or behind a network that fails."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fault_proxy import FaultProxy, Rule, fault_proxy

from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import DataError, StorageError
from fmcortex.retry import RetryPolicy
from fmcortex.training.fit import fit


@pytest.fixture
def short(tiny_run: RunConfig) -> Callable[..., RunConfig]:
    """A run of three steps on the dataset at a URL, with other settings of its reading."""

    def make(url: str, **reading: object) -> RunConfig:
        values = tiny_run.model_dump()
        values["data"] |= {"url": url, **reading}
        values["training"] |= {"epochs": 1, "steps_per_epoch": 3, "warmup_epochs": 0}
        return RunConfig.model_validate(values)

    return make


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in fit(config).shared.state_dict().items()}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["shard", "movie", "session manifest", "manifest"])
def test_a_flipped_byte_ends_it_by_name(
    prepared: str, tmp_path: Path, short: Callable[..., RunConfig], what: str
) -> None:
    copy = Path(shutil.copytree(prepared, tmp_path / "data"))
    # A block of every trial, since a run of three steps does not read all of them.
    if what == "shard":
        session = copy / "sessions" / "mouse02-1-1"
        manifest = open_dataset(str(copy)).session("mouse02-1-1").manifest
        for shard in {manifest.shards[trial.shard].name for trial in manifest.trials}:
            for position in range(5000, (session / shard).stat().st_size, 512):
                flip(session / shard, position)
        named = r"mouse02-1-1/train-\d+\.tar: trial "
    elif what == "movie":
        for trial in open_dataset(str(copy)).session("mouse02-1-1").manifest.trials:
            file = copy / "movies" / trial.movie / "c/0/0/0"
            for position in range(10, file.stat().st_size, 300):
                flip(file, position)
        named = r"movies/\w+/c/0/0/0: movie \w+: bytes"
    else:
        inner = "sessions/mouse02-1-1/" if what == "session manifest" else ""
        flip(copy / f"{inner}manifest.json", 200)
        named = rf"{inner}manifest\.json: "
    steps: list[int] = []
    with pytest.raises(DataError, match=named) as caught:
        fit(short(str(copy)), on_step=lambda report: steps.append(report.step))
    assert "\n" not in str(caught.value)
    assert steps == []  # every step has a micro-batch of every mouse


@pytest.fixture
def proxy(s3_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the store, through which all goes; waits are short."""
    import s3fs

    policy = RetryPolicy(attempts=6, first_wait=0.02, deadline=1.0, slowest=4e7)
    monkeypatch.setattr(storage, "default_policy", lambda: policy)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with fault_proxy(s3_server.host, s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def remote(prepared: str, proxy: FaultProxy, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dataset on the store, nothing of it in the cache."""
    for path in Path(prepared).rglob("*"):
        if path.is_file():
            name = path.relative_to(prepared).as_posix()
            storage.write_bytes(storage.join(s3, "data", name), path.read_bytes())
    return storage.join(s3, "data")


@pytest.mark.parametrize("kept", ["packed", "unpacked"])
def test_a_network_that_fails_now_and_then_changes_nothing(
    prepared: str, remote: str, proxy: FaultProxy, short: Callable[..., RunConfig], kept: str
) -> None:
    expected = weights(short(prepared))
    faults = ("reset", "slow_down", "error", "truncate", "reset_body")
    rules = [Rule(fault, method="GET", skip=5, times=3, chance=0.2) for fault in faults]
    # What is wrong twice is taken to be wrong on the store.
    proxy.breaks(Rule("flip", method="GET", path="/c/0/0/0"), *rules)
    found = weights(short(remote, cache_unpacked=kept == "unpacked"))
    assert proxy.counts["flip"] == 1
    assert sum(proxy.counts.values()) >= 6
    assert len(proxy.counts) >= 4
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_store_that_is_gone_ends_it_in_one_line(
    remote: str, proxy: FaultProxy, short: Callable[..., RunConfig]
) -> None:
    proxy.breaks(Rule("slow_down", method="GET", path=r"\.tar", times=None))
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://.*\.tar: cannot read: .*tried 6 times") as caught:
        fit(short(remote))
    assert time.monotonic() - began < 100
    assert "\n" not in str(caught.value)


def test_a_byte_that_is_wrong_on_the_store_is_never_trained_on(
    remote: str, short: Callable[..., RunConfig]
) -> None:
    session = open_dataset(remote).session("mouse01-1-1")
    for trial in session.manifest.trials:
        url = storage.join(remote, "movies", trial.movie, "c/0/0/0")
        content = bytearray(storage.read_bytes(url))
        for position in range(10, len(content), 300):
            content[position] ^= 1
        storage.write_bytes(url, bytes(content))
    with pytest.raises(DataError, match=r"s3://.*/c/0/0/0: movie \w+: bytes .* damaged"):
        fit(short(remote))
