"""Storage, and a prepared dataset, on a real server of the S3 protocol that checks signatures."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fault_proxy import FaultProxy, Rule, fault_proxy
from tiny_recording import write_tiny

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import StorageError

if TYPE_CHECKING:
    from conftest import Swift

pytestmark = pytest.mark.system

CONTENT = random.Random(5).randbytes(300_000)

#: Large enough to go in parts, the last of them a short one.
LARGE = random.Random(6).randbytes(2 * storage.PART + 12_345)


@pytest.fixture
def found(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The server is found through the environment, as on a cluster, which the test may change."""
    import s3fs

    for name, value in swift.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(found: pytest.MonkeyPatch, swift: Swift) -> str:
    """A folder that nothing is in."""
    return f"{swift.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(swift: Swift, found: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server; clients retry as they do by default."""
    with fault_proxy(swift.server.host, swift.server.port) as proxy:
        found.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def bounded(found: pytest.MonkeyPatch) -> None:
    """Fewer and shorter attempts."""
    found.setenv("AWS_MAX_ATTEMPTS", "2")
    found.setenv("FMCORTEX_STORAGE_ATTEMPTS", "2")
    found.setenv("FMCORTEX_STORAGE_DEADLINE", "1.5")


def fails(call: Callable[[], object], url: str, doing: str, seconds: float) -> str:
    """The one line that is said, within some seconds."""
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call()
    assert time.monotonic() - started < seconds
    text = str(caught.value)
    assert text.startswith(f"{url}: cannot {doing}: ")
    assert "\n" not in text
    return text


def test_write_read_and_remove(url: str) -> None:
    one = f"{url}/deep/er/x"
    assert not storage.exists(one)
    storage.write_bytes(one, b"old")
    storage.write_bytes(one, CONTENT)
    storage.write_bytes(f"{url}/deep/empty", b"")
    assert storage.exists(one)
    assert storage.exists(f"{url}/deep")
    assert storage.read_bytes(one) == CONTENT
    assert storage.read_bytes(f"{url}/deep/empty") == b""
    n = len(CONTENT)
    for start, end in [(0, 1), (100, 200), (0, n), (n - 5, n + 5), (n, n + 1), (7, 7)]:
        assert storage.read_range(one, start, end) == CONTENT[start:end]
    storage.remove(one)
    assert not storage.exists(one)
    assert storage.exists(f"{url}/deep/empty")
    storage.remove(url)
    assert not storage.exists(f"{url}/deep/empty")
    assert not storage.exists(url)
    storage.remove(url)  # there is nothing: fine
    assert "no such file or folder" in fails(lambda: storage.read_bytes(one), one, "read", 5)


def test_many_files_are_removed(url: str) -> None:
    for number in range(25):
        storage.write_bytes(f"{url}/sub{number % 3}/{number} with ü+%", b"x")
    assert storage.read_bytes(f"{url}/sub1/7 with ü+%") == b"x"
    storage.remove(url)
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    assert fs.find(path) == []


def test_an_upload_in_parts(url: str, proxy: FaultProxy) -> None:
    one = f"{url}/large"
    proxy.breaks(
        Rule("reset_upload", method="PUT", path="partNumber=1"),
        Rule("slow_down", method="PUT", path="partNumber=2"),
    )
    storage.write_bytes(one, LARGE)
    assert proxy.counts == {"reset_upload": 1, "slow_down": 1}
    parts = {
        found[1] for _, path in proxy.requests if (found := re.search(r"partNumber=(\d+)", path))
    }
    assert parts == {"1", "2", "3"}
    fs, path = storage.filesystem(one)
    told = fs.info(path)
    assert told["size"] == len(LARGE)
    assert told["ETag"].strip('"').endswith("-3")
    proxy.breaks(
        Rule("reset_body", method="GET", skip=1),
        Rule("truncate", method="GET", skip=1),
    )
    assert storage.read_bytes(one) == LARGE
    assert proxy.counts == {"reset_body": 1, "truncate": 1}
    at = storage.PART - 10
    assert storage.read_range(one, at, at + 20) == LARGE[at : at + 20]


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "test:nobody")],
)
def test_wrong_credentials_are_one_error_at_once(
    url: str, found: pytest.MonkeyPatch, name: str, value: str
) -> None:
    import s3fs

    storage.write_bytes(f"{url}/x", b"secret")
    found.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    one = f"{url}/x"
    for call, doing in [
        (lambda: storage.read_bytes(one), "read"),
        (lambda: storage.read_range(one, 0, 2), "read"),
        (lambda: storage.write_bytes(one, b"new"), "write"),
        (lambda: storage.exists(one), "read"),
        (lambda: storage.remove(one), "remove"),
    ]:
        text = fails(call, one, doing, 5)
        assert re.search(r"signature|Access Key|Forbidden|denied", text, re.IGNORECASE), text
        assert "tried" not in text


def test_no_such_bucket(found: pytest.MonkeyPatch) -> None:
    one = "s3://no-such-bucket-here/x"
    fails(lambda: storage.write_bytes(one, b"x"), one, "write", 5)
    fails(lambda: storage.read_bytes(one), one, "read", 5)


@pytest.mark.parametrize("fault", ["reset", "reset_body", "slow_down", "error", "truncate"])
def test_reading_survives(url: str, proxy: FaultProxy, fault: str) -> None:
    storage.write_bytes(f"{url}/x", CONTENT)
    proxy.breaks(Rule(fault, method="GET", path="/x"))
    assert storage.read_bytes(f"{url}/x") == CONTENT
    assert proxy.counts[fault] == 1
    proxy.breaks(Rule(fault, method="GET", path="/x"))
    assert storage.read_range(f"{url}/x", 1000, 200_000) == CONTENT[1000:200_000]
    assert proxy.counts[fault] == 1


@pytest.mark.parametrize("fault", ["reset", "reset_upload", "slow_down", "error", "lost_answer"])
def test_writing_survives(url: str, proxy: FaultProxy, fault: str) -> None:
    proxy.breaks(Rule(fault, method="PUT", path="/x"))
    storage.write_bytes(f"{url}/x", CONTENT)
    assert proxy.counts[fault] == 1
    assert storage.read_bytes(f"{url}/x") == CONTENT


@pytest.mark.usefixtures("bounded")
def test_slow_bytes_are_waited_for_only_so_long(url: str, proxy: FaultProxy) -> None:
    storage.write_bytes(f"{url}/x", CONTENT)
    proxy.breaks(Rule("trickle", method="GET", path="/x", times=1, rate=100))
    assert storage.read_range(f"{url}/x", 0, 200_000) == CONTENT[:200_000]
    assert proxy.counts["trickle"] == 1
    proxy.breaks(Rule("trickle", method="GET", path="/x", times=None, rate=100))
    one = f"{url}/x"
    text = fails(lambda: storage.read_range(one, 0, 200_000), one, "read", 10)
    assert text.endswith("not done after 1.7 s (tried 2 times)")
    # Slow, but not too slow.
    proxy.breaks(Rule("trickle", method="GET", path="/x", times=None, rate=500_000))
    assert storage.read_range(one, 0, 200_000) == CONTENT[:200_000]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("fault", ["reset", "slow_down", "truncate", "hang"])
def test_what_does_not_pass_is_one_error(url: str, proxy: FaultProxy, fault: str) -> None:
    one = f"{url}/x"
    storage.write_bytes(one, CONTENT)
    proxy.breaks(Rule(fault, times=None))
    assert "(tried 2 times)" in fails(lambda: storage.read_range(one, 0, 200_000), one, "read", 12)
    if fault != "truncate":  # an answer without a body cannot be cut
        fails(lambda: storage.write_bytes(one, b"new"), one, "write", 12)
    proxy.breaks()
    assert storage.read_bytes(one) == CONTENT


def test_a_damaged_upload_is_refused_or_repeated(url: str, proxy: FaultProxy) -> None:
    proxy.breaks(Rule("flip_upload", method="PUT", path="/x"))
    storage.write_bytes(f"{url}/x", CONTENT)  # signed, so the server notices
    assert proxy.counts["flip_upload"] == 1
    assert storage.read_bytes(f"{url}/x") == CONTENT


def test_prepare_verify_and_read(url: str, proxy: FaultProxy, tmp_path: Path) -> None:
    source, settings = str(write_tiny(tmp_path / "source")), PrepSettings(trials_per_shard=3)
    to, local = f"{url}/some/path", str(tmp_path / "prepared")
    proxy.breaks(
        Rule("reset", method="PUT", path=r"\.tar"), Rule("slow_down", method="PUT", path="json")
    )
    manifest = prepare(source, to, settings)
    assert proxy.counts == {"reset": 1, "slow_down": 1}
    assert prepare(source, local, settings) == manifest
    assert verify(to) == []

    before = stored(to)
    proxy.breaks()
    lines: list[str] = []
    assert prepare(source, to, settings, progress=lines.append) == manifest
    assert lines == ["s1: up to date"]
    assert stored(to) == before
    # Whether the target can be written to is tried, with a file of its own, and it is locked.
    written = [path for method, path in proxy.requests if method == "PUT"]
    assert [path.rpartition("/")[2] for path in written] == [".fmcortex-can-write", "lock.json"]

    for reads in ("cold", "warm"):
        proxy.breaks(Rule("reset_body", method="GET", path=r"\.tar"))
        here = open_dataset(local)
        there = open_dataset(to, cache_folder=str(tmp_path / "cache"))
        assert there.sessions == ["s1"]
        session, expected = there.session("s1"), here.session("s1")
        assert len(session.manifest.trials) == 6
        for number in range(6):
            same(session.trial(number), expected.trial(number))
        same(session.video("natural_movie-0"), expected.video("natural_movie-0"))
        assert there.disk.hits > 0
        if reads == "cold":
            assert there.disk.misses > 0
            assert proxy.counts["reset_body"] == 1
        else:
            assert there.disk.misses == 0


def stored(url: str) -> dict[str, tuple[object, ...]]:
    """When each object below `url` was written, and its checksum."""
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    found = fs.find(path, detail=True)
    assert found
    return {name: (told["LastModified"], told["ETag"]) for name, told in found.items()}


def same(one: Any, other: Any) -> None:
    """Check that the arrays of two trials, or of two videos, are equal."""
    for kind in ("stimulus", "responses", "perspectives", "modulations"):
        np.testing.assert_array_equal(getattr(one, kind), getattr(other, kind))
