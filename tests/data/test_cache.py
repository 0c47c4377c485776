"""The cache of ranges: what it returns is right, and it never takes more space than it may."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cached import CONTENT, counts, files, get, in_child, taken, total

from fmcortex import storage
from fmcortex.data import cache as cache_module
from fmcortex.data.cache import RangeCache, default_cache_folder
from fmcortex.errors import DataError, StorageError


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SECOND_LOOK", 0.0)


def test_counts(url: str, folder: Path, fetched: list[tuple[int, int]]) -> None:
    cache = RangeCache(str(folder), 10_000)
    assert not folder.exists()  # made when it is needed
    for start, end in [(0, 100), (100, 300), (0, 100), (0, 100), (100, 300)]:
        assert get(cache, url, start, end) == CONTENT[start:end]
    assert counts(cache) == (3, 2, 300)
    assert fetched == [(0, 100), (100, 300)]
    again = RangeCache(str(folder), 10_000)
    assert get(again, url, 100, 300) == CONTENT[100:300]
    assert counts(again) == (1, 0, 0)
    assert (taken(folder), total(folder)) == (300, 300)


def test_what_differs_is_another_range(
    url: str, folder: Path, tmp_path: Path, fetched: list[tuple[int, int]]
) -> None:
    cache = RangeCache(str(folder), 10_000)
    shutil.copy(url, tmp_path / "other")
    for _ in range(2):
        get(cache, url, 0, 100)
        get(cache, url, 0, 100, "v2")
        get(cache, url, 0, 101)
        get(cache, url, 1, 100)
        get(cache, str(tmp_path / "other"), 0, 100)
    assert counts(cache) == (5, 5, 500)
    assert len(files(folder)) == 5


@pytest.mark.parametrize(("place", "limit"), [(None, 1000), ("", 1000), ("x", 0), ("x", 99)])
def test_nothing_is_stored_where_nothing_may(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None, limit: int
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = RangeCache(place, limit)
    for _ in range(2):
        assert get(cache, url, 0, 100) == CONTENT[:100]
    assert counts(cache) == (0, 2, 200)
    assert os.listdir(tmp_path) == ["source"]


def test_threads_that_miss_at_once_fetch_once(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RangeCache(str(folder), 10_000)
    barrier, calls = threading.Barrier(4), []

    def slow(url: str, start: int, end: int) -> bytes:
        calls.append(start)
        time.sleep(0.1)
        return CONTENT[start:end]

    monkeypatch.setattr(storage, "read_range", slow)

    def read(_: int) -> bytes:
        barrier.wait(5)
        return get(cache, url, 0, 100)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [CONTENT[:100]] * 4
    assert calls == [0]
    assert counts(cache) == (3, 1, 100)
    assert cache._ranges == {}


DAMAGE = {
    "flipped": lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:],
    "short": lambda b: b[:50],
    "empty": lambda b: b"",
    "zeros": lambda b: bytes(len(b)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_went_bad_is_fetched_again(
    url: str, folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    cache = RangeCache(str(folder), 10_000)
    get(cache, url, 0, 100)
    [file] = files(folder)
    file.write_bytes(damage(CONTENT[:100]))
    with caplog.at_level(logging.WARNING):
        assert get(cache, url, 0, 100) == CONTENT[:100]
    [record] = caplog.records
    assert record.getMessage() == (
        f"{file}: a cached copy went bad and is fetched again: bad bytes"
    )
    assert counts(cache) == (0, 2, 200)
    assert file.read_bytes() == CONTENT[:100]
    assert total(folder) == 200 - len(damage(CONTENT[:100]))  # never less than is there
    assert get(cache, url, 0, 100) == CONTENT[:100]
    assert cache.hits == 1


def test_what_arrives_wrong_once_is_read_again(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [DAMAGE["flipped"](CONTENT[:100]), CONTENT[:100]]
    monkeypatch.setattr(storage, "read_range", lambda *_: answers.pop(0))
    cache = RangeCache(str(folder), 10_000)
    assert get(cache, url, 0, 100) == CONTENT[:100]
    assert counts(cache) == (0, 1, 200)
    assert [file.read_bytes() for file in files(folder)] == [CONTENT[:100]]


@pytest.mark.parametrize("limit", [0, 10_000])
def test_what_arrives_wrong_twice_is_an_error(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(storage, "read_range", lambda *_: CONTENT[1:101])
    cache = RangeCache(str(folder), limit)
    with pytest.raises(DataError, match=r"^bad bytes$"):
        get(cache, url, 0, 100)
    assert counts(cache) == (0, 0, 200)
    assert files(folder) == []
    assert cache._ranges == {}


def test_a_failure_of_the_storage_is_passed_on(tmp_path: Path, folder: Path) -> None:
    cache = RangeCache(str(folder), 10_000)
    with pytest.raises(StorageError, match="nowhere: cannot read: no such file"):
        get(cache, str(tmp_path / "nowhere"), 0, 100)
    assert counts(cache) == (0, 0, 0)
    assert cache._ranges == {}


class Clock:
    """Time that stands still, for the cache, until it is set on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cache_module, "time", clock)
    return clock


class Full:
    """A file on a disk that has room for half of what is written to it."""

    def __init__(self, path: str, mode: str) -> None:
        self.stream = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self) -> bytes:
        return self.stream.read()

    def write(self, content: bytes) -> None:
        self.stream.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(
    url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
) -> None:
    cache = RangeCache(str(folder), 10_000)
    get(cache, url, 0, 100)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(cache_module, "open", Full, raising=False)
        for start in (200, 300, 200):
            assert get(cache, url, start, start + 100) == CONTENT[start : start + 100]
        clock.now += cache_module.PAUSE + 1
        assert get(cache, url, 400, 500) == CONTENT[400:500]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: cannot cache data here: No space left on device; going on without. "
        "Free some space, or set FMCORTEX_CACHE to another folder"
    ]
    assert taken(folder) == total(folder) == 100  # no half file, and nothing counted for it
    assert counts(cache) == (0, 5, 500)
    get(cache, url, 200, 300)
    assert len(files(folder)) == 1  # not tried at once
    assert get(cache, url, 0, 100) == CONTENT[:100]
    assert cache.hits == 1  # what is there is still used
    clock.now += cache_module.PAUSE + 1
    get(cache, url, 200, 300)
    assert taken(folder) == total(folder) == 200


def test_a_folder_that_cannot_be_made(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    cache = RangeCache(str(tmp_path / "file" / "cache"), 10_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert get(cache, url, 0, 100) == CONTENT[:100]
            clock.now += cache_module.PAUSE + 1
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"{tmp_path}/file/cache: cannot cache data here: Not a directory"
    ]
    assert counts(cache) == (0, 3, 300)
    (tmp_path / "file").unlink()  # it comes back
    get(cache, url, 0, 100)
    get(cache, url, 0, 100)
    assert cache.hits == 1


def test_a_folder_that_is_removed_meanwhile(url: str, folder: Path) -> None:
    cache = RangeCache(str(folder), 10_000)
    get(cache, url, 0, 100)
    shutil.rmtree(folder)
    get(cache, url, 0, 100)
    assert counts(cache) == (0, 2, 200)
    get(cache, url, 0, 100)
    assert (cache.hits, taken(folder), total(folder)) == (1, 100, 100)


def test_a_forked_process_goes_on(url: str, folder: Path) -> None:
    cache = RangeCache(str(folder), 10_000)
    get(cache, url, 0, 100)
    assert cache._space is not None
    # As if other threads were in the middle of something.
    with cache._lock, cache._space._lock:

        def run() -> None:
            assert get(cache, url, 0, 100) == CONTENT[:100]
            assert get(cache, url, 100, 200) == CONTENT[100:200]
            assert (cache.hits, cache.misses) == (1, 2)

        assert in_child(run) == 0
    assert get(cache, url, 100, 200) == CONTENT[100:200]
    assert counts(cache) == (1, 1, 100)  # its own, and the child's file


def test_pickling(url: str, folder: Path) -> None:
    cache = RangeCache(str(folder), 10_000)
    get(cache, url, 0, 100)
    copy: Any = pickle.loads(pickle.dumps(cache))
    assert (copy.folder, copy.limit, *counts(copy)) == (str(folder), 10_000, 0, 0, 0)
    assert get(copy, url, 0, 100) == CONTENT[:100]
    assert counts(copy) == (1, 0, 0)
    assert counts(cache) == (0, 1, 100)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FMCORTEX_CACHE", "/disk/x")
    assert default_cache_folder() == "/disk/x"
    monkeypatch.setenv("FMCORTEX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_folder() == "/caches/fmcortex"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_folder() == f"{tmp_path}/.cache/fmcortex"
