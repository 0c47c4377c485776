"""Storage on an S3 server whose connections fail: it gets through, or says in time that it cannot.

The waits are shortened, and botocore is told not to try again itself, so that what is seen here is
what `fmcortex.retry` does.
"""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fault_proxy import FAULTS, FaultProxy, Rule, fault_proxy

from fmcortex import remote_file, storage
from fmcortex.errors import StorageError
from fmcortex.remote_file import RemoteFile
from fmcortex.retry import RetryPolicy

CONTENT = random.Random(1).randbytes(200_000)
LARGE = random.Random(2).randbytes(11 * 2**20)  # in three parts
MIB5 = 5 * 2**20  # the smallest part that S3 takes

DEADLINE = 0.8
ATTEMPTS = 3
BUCKET = "s3://bucket"

READING = (
    *("reset", "reset_body", "lost_answer", "slow_down", "error", "trickle", "truncate", "hang"),
)
WRITING = ("reset", "reset_upload", "lost_answer", "slow_down", "error", "hang")


@pytest.fixture(scope="module")
def shared_proxy() -> Iterator[FaultProxy]:
    """A proxy in front of a server with the bucket "bucket", for all tests of this file."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch, fault_proxy(*server.get_host_and_port()) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET.removeprefix("s3://"))
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def proxy(shared_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The proxy that storage goes through, with nothing broken; waits are short."""
    policy = RetryPolicy(attempts=ATTEMPTS, first_wait=0.02, deadline=DEADLINE, slowest=4e7)
    monkeypatch.setattr(storage, "default_policy", lambda: policy)
    monkeypatch.setattr(storage, "WHOLE_FOLDER", 1)
    shared_proxy.breaks()
    return shared_proxy


@pytest.fixture
def url(proxy: FaultProxy) -> str:
    """An object that is there, alone in its folder."""
    url = f"{BUCKET}/{uuid.uuid4().hex}/folder/x"
    storage.write_bytes(url, CONTENT)
    return url


def fails(call: Callable[[], object], url: str, doing: str, times: int = ATTEMPTS) -> str:
    """The one line that is said after so many attempts, in bounded time."""
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call()
    # Without deadlines a silence takes 15 s over S3 and 5 minutes over HTTP, each time.
    assert time.monotonic() - started < times * (DEADLINE + 0.3) + 20
    text = str(caught.value)
    assert text.startswith(f"{url}: cannot {doing}: ")
    assert "\n" not in text
    assert text.endswith(f" (tried {times} times)") == (times > 1)
    return text


@pytest.mark.parametrize("fault", READING)
def test_reading_survives(proxy: FaultProxy, url: str, fault: str) -> None:
    proxy.breaks(Rule(fault, method="GET", path="/folder/x"))
    assert storage.read_bytes(url) == CONTENT
    assert proxy.counts[fault] == 1
    proxy.breaks(Rule(fault, method="GET", path="/folder/x"))
    assert storage.read_range(url, 100, 50_000) == CONTENT[100:50_000]
    assert proxy.counts[fault] == 1


@pytest.mark.parametrize("fault", WRITING)
def test_writing_survives(proxy: FaultProxy, url: str, fault: str) -> None:
    proxy.breaks(Rule(fault, method="PUT", path="/folder/y"))
    storage.write_bytes(f"{url[:-1]}y", CONTENT[::-1])
    assert proxy.counts[fault] == 1
    assert storage.read_bytes(f"{url[:-1]}y") == CONTENT[::-1]


@pytest.mark.parametrize("fault", READING)
def test_reading_gives_up(proxy: FaultProxy, url: str, fault: str) -> None:
    proxy.breaks(Rule(fault, method="GET", path="/folder/x", times=None))
    text = fails(lambda: storage.read_range(url, 0, 50_000), url, "read")
    expected = {"slow_down": "SlowDown", "error": "InternalError", "trickle": "not done after"}
    assert expected.get(fault, "") in text
    assert proxy.counts[fault] >= ATTEMPTS
    proxy.breaks()
    assert storage.read_bytes(url) == CONTENT


@pytest.mark.parametrize("fault", WRITING)
def test_writing_gives_up(proxy: FaultProxy, url: str, fault: str) -> None:
    proxy.breaks(Rule(fault, method="PUT", path="/folder/x", times=None))
    fails(lambda: storage.write_bytes(url, b"new"), url, "write")
    proxy.breaks()
    # An answer that got lost may be that of a write that was done; nothing else is half done.
    assert storage.read_bytes(url) == (b"new" if fault == "lost_answer" else CONTENT)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PART", MIB5)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("fault", ["none", *WRITING])
def test_an_upload_in_parts(proxy: FaultProxy, url: str, fault: str) -> None:
    large = f"{url[:-1]}large"
    if fault != "none":
        proxy.breaks(Rule(fault, method="PUT", path="partNumber=2"))
    storage.write_bytes(large, LARGE)
    assert proxy.number("PUT", "partNumber=") >= 3
    assert proxy.number("PUT", "/folder/large$") == 0
    assert proxy.number("POST", "uploadId=") >= 1
    assert proxy.counts.total() == (fault != "none")
    proxy.breaks(Rule("reset_body", method="GET", skip=1), Rule("truncate", method="GET", skip=2))
    assert storage.read_bytes(large) == LARGE
    assert proxy.counts == {"reset_body": 1, "truncate": 1}
    assert proxy.number("GET", "/folder/large") == 5  # three parts, two of them twice


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_cannot_be_completed(proxy: FaultProxy, url: str) -> None:
    proxy.breaks(Rule("error", method="POST", path="uploadId=", times=None))
    assert "InternalError" in fails(lambda: storage.write_bytes(url, LARGE), url, "write")
    assert proxy.number("DELETE", "uploadId=") == ATTEMPTS  # nothing is left that costs money
    proxy.breaks()
    assert storage.read_bytes(url) == CONTENT


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_hangs_leaves_no_parts(proxy: FaultProxy, url: str) -> None:
    proxy.breaks(Rule("hang", method="PUT", path="partNumber=2", times=None))
    assert "not done after" in fails(lambda: storage.write_bytes(url, LARGE), url, "write")
    assert proxy.number("POST", r"\?uploads") == ATTEMPTS
    assert proxy.number("DELETE", "uploadId=") == ATTEMPTS
    proxy.breaks()
    assert storage.read_bytes(url) == CONTENT


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [0, 1, MIB5 - 1, MIB5, MIB5 + 1, 2 * MIB5])
def test_sizes(proxy: FaultProxy, url: str, size: int) -> None:
    storage.write_bytes(url, LARGE[:size])
    assert storage.read_bytes(url) == LARGE[:size]


def test_ranges(proxy: FaultProxy, url: str) -> None:
    n = len(CONTENT)
    for start, end in [(0, 1), (0, n), (n - 1, n), (n - 5, n + 5), (n, n + 1), (9 * n, 10 * n)]:
        assert storage.read_range(url, start, end) == CONTENT[start:end]
    proxy.breaks()
    assert storage.read_range(url, 7, 7) == b""
    assert not proxy.requests
    with pytest.raises(ValueError, match="no range: 2 to 1"):
        storage.read_range(url, 2, 1)
    storage.write_bytes(url, b"")
    assert storage.read_range(url, 0, 10) == b""


@pytest.mark.parametrize("protocol", ["s3", "http"])
def test_a_file_read_at_any_place(
    proxy: FaultProxy, url: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "BLOCK", 1000)
    monkeypatch.setattr(remote_file, "BLOCKS", 4)
    where = url
    if protocol == "http":
        where = f"{proxy.url}/{url.removeprefix('s3://')}"
        assert "403" in fails(lambda: RemoteFile(where), where, "read", 1)  # not "no such file"
        fs, path = storage.filesystem(url)
        fs.chmod(path, "public-read")
    proxy.breaks(Rule("slow_down", method="HEAD", times=1))
    with RemoteFile(where) as file:
        for number, fault in enumerate(READING):
            proxy.breaks(Rule(fault, method="GET"))
            place = 777 + 20_000 * number
            file.seek(place)
            assert file.read(2500) == CONTENT[place : place + 2500]
            assert proxy.counts == {fault: 1}
        file.seek(-10, os.SEEK_END)
        assert file.read() == CONTENT[-10:]
        proxy.breaks(Rule("reset", times=None))
        file.seek(0)
        fails(lambda: file.read(10), where, "read")
    proxy.breaks()
    missing = f"{where}-none"
    assert "no such file" in fails(lambda: RemoteFile(missing), missing, "read", 1)


def test_a_server_that_gives_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "BLOCK", 1000)
    (tmp_path / "x").write_bytes(CONTENT)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x"
        assert storage.size(url) == len(CONTENT)
        assert storage.exists(url)
        assert not storage.exists(f"{url}-none")
        assert storage.read_range(url, 5, 9) == CONTENT[5:9]
        with pytest.raises(StorageError, match=f"{url}: its server does not give parts of files"):
            RemoteFile(url).read(4)
        server.shutdown()


def test_a_damaged_upload_or_answer_needs_a_check_of_the_content(
    proxy: FaultProxy, url: str
) -> None:
    # What storage cannot see: this server does not verify, and a range has no checksum.
    proxy.breaks(Rule("flip", method="GET"))
    assert storage.read_range(url, 0, 1000) != CONTENT[:1000]


@pytest.mark.parametrize("fault", ["reset", "slow_down", "error", "hang", "lost_answer"])
def test_asking_and_removing(proxy: FaultProxy, url: str, fault: str) -> None:
    proxy.breaks(Rule(fault, method="HEAD"))
    assert storage.exists(url)
    assert proxy.counts[fault] == 1
    proxy.breaks(Rule(fault, method="POST", path="delete"))
    storage.remove(url)
    assert proxy.counts[fault] == 1
    assert not storage.exists(url)
    storage.write_bytes(url, b"x")
    proxy.breaks(Rule(fault, times=None))
    fails(lambda: storage.exists(url), url, "read")
    fails(lambda: storage.remove(url), url, "remove")


@pytest.mark.parametrize("fault", ["reset", "slow_down", "error", "hang", "lost_answer"])
def test_asking_a_web_server(proxy: FaultProxy, url: str, fault: str) -> None:
    where = f"{proxy.url}/{url.removeprefix('s3://')}"
    assert "403" in fails(lambda: storage.exists(where), where, "read", 1)
    fs, path = storage.filesystem(url)
    fs.chmod(path, "public-read")
    proxy.breaks(Rule(fault))
    assert storage.exists(where)
    assert proxy.counts[fault] == 1
    proxy.breaks(Rule(fault, times=None))
    fails(lambda: storage.exists(where), where, "read")


@pytest.mark.parametrize("fault", ["reset", "reset_body", "slow_down", "error", "hang"])
def test_listing(proxy: FaultProxy, url: str, fault: str) -> None:
    folder = os.path.dirname(url)
    parent = os.path.dirname(folder)
    for listing, found in (
        (storage.names, ["folder"]),
        (storage.file_sizes, {"folder/x": 200_000}),
    ):
        proxy.breaks(Rule(fault, method="GET"))
        assert listing(parent) == found
        assert proxy.counts[fault] == 1
        proxy.breaks(Rule(fault, times=None))
        fails(lambda listing=listing: listing(folder), folder, "list")


def test_listing_what_is_not_there(proxy: FaultProxy, url: str) -> None:
    assert storage.names(f"{url}-none") == []
    assert storage.file_sizes(f"{url}-none") == {}


def test_a_removal_that_is_refused_is_told(proxy: FaultProxy, url: str) -> None:
    import s3fs

    async def refuse(self: Any, paths: list[str], **options: Any) -> list[str]:
        return []  # what s3fs makes of an answer of 200 that says AccessDenied for every file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_bulk_delete", refuse)
        assert "has kept some of it" in fails(lambda: storage.remove(url), url, "remove")
    assert storage.read_bytes(url) == CONTENT


def test_what_trying_again_cannot_help(proxy: FaultProxy, url: str) -> None:
    proxy.breaks()
    assert "no such file" in fails(lambda: storage.read_bytes(f"{url}y"), f"{url}y", "read", 1)
    nowhere = "s3://no-such-bucket-here/x"
    fails(lambda: storage.write_bytes(nowhere, b""), nowhere, "write", 1)
    fails(lambda: storage.read_range(nowhere, 0, 1), nowhere, "read", 1)
    assert len(proxy.requests) == 3


def test_a_server_that_is_away(
    url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    calls = {storage.read_bytes: "read", storage.names: "list", storage.file_sizes: "list"}
    try:
        for call, doing in calls.items():
            text = fails(lambda call=call: call(url), url, doing)
            assert "Could not connect to the endpoint" in text
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_what_another_process_wrote_is_seen(proxy: FaultProxy, url: str) -> None:
    import s3fs

    fs, path = storage.filesystem(os.path.dirname(url))
    assert fs.ls(path, detail=False) == [f"{path}/x"]  # now the listing is known
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{path}/y", b"new")
    other.rm(f"{path}/x")
    assert storage.exists(f"{url[:-1]}y")
    assert not storage.exists(url)
    assert fs.ls(path, detail=False) == [f"{path}/y"]
    other.pipe_file(f"{path}/z", b"new")
    assert storage.names(os.path.dirname(url)) == ["y", "z"]


def test_many_threads_on_a_shaky_server(
    proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    # More attempts than faults: whichever thread meets them gets through.
    policy = RetryPolicy(attempts=21, first_wait=0.001, longest_wait=0.01, deadline=5)
    monkeypatch.setattr(storage, "default_policy", lambda: policy)
    passing = ("reset", "reset_body", "slow_down", "error", "truncate")
    proxy.breaks(*(Rule(fault, method="GET", times=4, chance=0.05) for fault in passing))
    starts = range(0, 150_000, 2500)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: storage.read_range(url, at, at + 2500), starts))
    assert b"".join(parts) == CONTENT[:150_000]
    assert proxy.counts.total() > 3


def test_every_fault_is_used() -> None:
    assert {*READING, *WRITING, "flip", "flip_upload", "expired"} == set(FAULTS)


@pytest.fixture
def credentials(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], None]]:
    """Writes the file that access keys are read from; the key OLD has expired."""
    import s3fs

    path = tmp_path / "credentials"

    def write(key: str) -> None:
        path.write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n"
            "aws_session_token = token\n"
        )

    write("OLD")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    yield write
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda url: storage.exists(url), id="exists"),
        pytest.param(lambda url: storage.size(url) == len(CONTENT), id="size"),
        pytest.param(lambda url: storage.read_bytes(url) == CONTENT, id="read"),
        pytest.param(lambda url: storage.read_range(url, 1, 9) == CONTENT[1:9], id="range"),
        pytest.param(lambda url: storage.names(url.rpartition("/")[0]) != [], id="list"),
        pytest.param(lambda url: storage.write_bytes(url, CONTENT) is None, id="write"),
        pytest.param(lambda url: storage.remove(url) is None, id="remove"),
    ],
)
def test_renewed_credentials_are_taken_up(
    url: str, proxy: FaultProxy, credentials: Callable[[str], None], ask: Callable[[str], bool]
) -> None:
    """A job of days: its client has read credentials that expire, and the file has others."""
    assert storage.exists(url)  # the client is there, with the key OLD
    proxy.breaks(Rule("expired", key="Credential=OLD/", times=None))
    credentials("NEW")
    assert ask(url)
    assert proxy.counts["expired"] > 0


def test_credentials_that_are_renewed_a_moment_later(
    url: str, proxy: FaultProxy, credentials: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.exists(url)
    proxy.breaks(Rule("expired", key="Credential=OLD/", times=None))
    monkeypatch.setattr(RetryPolicy, "wait", lambda *_: credentials("NEW") or 0.0)
    assert storage.read_bytes(url) == CONTENT


def test_credentials_that_nobody_renews(
    url: str, proxy: FaultProxy, credentials: Callable[[str], None]
) -> None:
    proxy.breaks(Rule("expired", key="Credential=OLD/", times=None))
    with pytest.raises(StorageError, match=rf"cannot read: .* \(tried {ATTEMPTS} times\)"):
        storage.read_bytes(url)
