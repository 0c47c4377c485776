"""Ranges read through a cache, and what its folder then holds."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from fmcortex.data.cache import RangeCache
from fmcortex.data.cache_space import TOTAL

#: What the file holds that ranges are read of.
CONTENT = random.Random(3).randbytes(100_000)


def get(cache: RangeCache, url: str, start: int, end: int, identity: str = "v1") -> bytes:
    """The range, checked against what it should be."""
    expected = CONTENT[start:end]
    return cache.read(url, start, end, identity, lambda b: None if b == expected else "bad bytes")


def files(folder: Path) -> list[Path]:
    """The files of a cache's folder but its locks and total."""
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def total(folder: Path) -> int:
    return int((folder / TOTAL).read_text())


def counts(cache: RangeCache) -> tuple[int, int, int]:
    return cache.hits, cache.misses, cache.bytes_fetched


def in_child(run: Callable[[], object]) -> int:
    """The wait status of a forked process that runs this: 0 if it returned without an error."""
    child = os.fork()
    if not child:
        signal.alarm(5)  # a deadlock ends
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]
