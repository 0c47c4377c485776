"""The folder of cached ranges: shared by processes, never larger than it may be, tidied up."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cached import CONTENT, files, get, in_child, taken, total

from fmcortex.data import cache_space
from fmcortex.data.cache import RangeCache
from fmcortex.data.cache_space import COUNTING, EVICTING, TEMPORARY, TOTAL, WRITING, CacheSpace


def test_the_limit_is_never_exceeded(url: str, folder: Path) -> None:
    cache, chance = RangeCache(str(folder), 10_000), random.Random(4)
    most = 0
    for _ in range(300):
        start = chance.randrange(60)
        get(cache, url, 1000 * start, 1000 * start + chance.choice([1, 500, 1500, 6000]))
        assert taken(folder) == total(folder) <= 10_000
        most = max(most, taken(folder))
    assert most > 9000  # it is used, too
    assert cache.hits > 0


def test_the_least_recently_used_goes_first(
    url: str, folder: Path, fetched: list[tuple[int, int]]
) -> None:
    cache = RangeCache(str(folder), 1000)
    past = time.time() - 1000
    for start in range(0, 1000, 100):
        before = set(files(folder))
        get(cache, url, start, start + 100)
        [new] = set(files(folder)) - before
        os.utime(new, (past + start, past + start))
    get(cache, url, 0, 100)  # the oldest is used
    get(cache, url, 1000, 1250)  # 250 more take the place of three
    assert taken(folder) == total(folder) == 950
    fetched.clear()
    for start in (0, *range(400, 1000, 100)):
        get(cache, url, start, start + 100)
    assert not fetched
    for start in (100, 200, 300):
        get(cache, url, start, start + 100)
    assert fetched == [(100, 200), (200, 300), (300, 400)]


def _reads(url: str, folder: str, seed: int) -> tuple[int, int, int]:
    """Read random ranges until told to stop: how many, and the counts of hits and misses."""
    cache, chance, reads = RangeCache(folder, 20_000), random.Random(seed), 0
    while not os.path.exists(f"{url}.stop"):
        start = 1000 * chance.randrange(30)
        get(cache, url, start, start + chance.choice([700, 1000]))
        reads += 1
    return reads, cache.hits, cache.misses


def test_processes_share_a_folder(url: str, folder: Path) -> None:
    space = CacheSpace(str(folder), 20_000)
    get(RangeCache(str(folder), 20_000), url, 0, 700)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        result = pool.starmap_async(_reads, [(url, str(folder), seed) for seed in range(4)])
        most, looks, deadline = 0, 0, time.monotonic() + 30
        while (most <= 10_000 or looks < 10) and time.monotonic() < deadline:
            time.sleep(0.02)
            with space._locked(EVICTING, 5) as chosen, space._locked(WRITING, 5) as alone:
                assert chosen
                assert alone  # nothing changes while we look
                assert taken(folder) <= total(folder) <= 20_000
                most = max(most, taken(folder))
            looks += 1
        Path(f"{url}.stop").touch()
        done = result.get(60)
    assert most > 10_000
    for reads, hits, misses in done:
        assert reads == hits + misses
        assert hits > 0
    assert taken(folder) <= total(folder) <= 20_000
    assert not [path for path in files(folder) if TEMPORARY in path.name]
    after = RangeCache(str(folder), 20_000)
    for start in range(0, 30_000, 1000):
        get(after, url, start, start + 1000)
    assert after.hits > 0  # what others have stored


def test_what_a_killed_writer_left_is_removed(url: str, folder: Path) -> None:
    cache = RangeCache(str(folder), 1000)
    get(cache, url, 0, 300)

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write() -> None:
        os.replace = killed  # type: ignore[assignment]
        get(cache, url, 300, 900)

    assert in_child(write) == signal.SIGKILL
    [left] = [path for path in files(folder) if TEMPORARY in path.name]
    assert (left.stat().st_size, total(folder)) == (600, 900)
    get(cache, url, 900, 1400)  # there is room for it only without what was left
    assert not left.exists()
    assert get(cache, url, 0, 300) == CONTENT[:300]
    assert (cache.hits, taken(folder), total(folder)) == (1, 800, 800)


def test_what_is_being_written_stays(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_space, "PATIENCE", 0.05)
    cache = RangeCache(str(folder), 1000)
    get(cache, url, 0, 10)
    writing, go = threading.Event(), threading.Event()
    replace = os.replace

    def slow(source: str, target: str) -> None:
        writing.set()
        assert go.wait(5)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, cache, url, 100, 700)
        assert writing.wait(5)
        assert get(cache, url, 1000, 1500) == CONTENT[1000:1500]  # no room, and none can be made
        assert len(files(folder)) == 2
        go.set()
        assert first.result(5) == CONTENT[100:700]
    assert taken(folder) == total(folder) == 610
    assert get(RangeCache(str(folder), 1000), url, 100, 700) == CONTENT[100:700]


@pytest.mark.parametrize("left", [None, b"", b"garbage", b"%020d\n" % 999])
def test_a_wrong_total_is_put_right(url: str, folder: Path, left: bytes | None) -> None:
    get(RangeCache(str(folder), 1000), url, 0, 400)
    if left is None:
        (folder / TOTAL).unlink()
    else:
        (folder / TOTAL).write_bytes(left)
    cache = RangeCache(str(folder), 1000)
    get(cache, url, 400, 1000)
    assert taken(folder) == total(folder) == 1000
    get(cache, url, 0, 400)
    assert cache.hits == 1


def test_an_old_folder_is_looked_at_once(url: str, folder: Path) -> None:
    get(RangeCache(str(folder), 1000), url, 0, 400)
    (left,) = files(folder)
    left = left.rename(f"{left}{TEMPORARY}abc")
    get(RangeCache(str(folder), 1000), url, 400, 500)
    assert left.exists()  # it was looked at a moment ago
    old = time.time() - cache_space.SWEEP - 1
    os.utime(folder / EVICTING, (old, old))
    get(RangeCache(str(folder), 1000), url, 500, 600)
    assert not left.exists()
    assert taken(folder) == total(folder) == 200


@pytest.mark.parametrize("lock", [COUNTING, WRITING, EVICTING])
def test_a_lock_that_is_never_released_does_not_hang(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(cache_space, "PATIENCE", 0.05)
    cache = RangeCache(str(folder), 1000)
    get(cache, url, 0, 100)
    with CacheSpace(str(folder), 1000)._locked(lock) as ours:
        assert ours
        started = time.monotonic()
        assert get(cache, url, 100, 200) == CONTENT[100:200]
        assert get(cache, url, 0, 100) == CONTENT[:100]
        assert time.monotonic() - started < 8  # one wait of the real patience takes 10
    assert (cache.hits, len(files(folder))) == (1, 1)


@pytest.fixture
def sleeper() -> Iterator[list[int]]:
    """Processes to end with the test."""
    children: list[int] = []
    yield children
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_fork_does_not_keep_a_lock(folder: Path, sleeper: list[int]) -> None:
    folder.mkdir()
    space = CacheSpace(str(folder), 1000)
    with space._locked(COUNTING) as ours:
        assert ours
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        sleeper.append(child)
    with space._locked(COUNTING) as ours:
        assert ours
