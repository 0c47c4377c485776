"""Decoded arrays in memory, the most recently used ones, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol


class Sized(Protocol):
    """An array, or what holds some."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        ...


class MemoryCache:
    """The most recently used arrays; safe to share by threads. The arrays are read-only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, Sized] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Sized | None:
        """The array of that key, None if it is not kept."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: Hashable, values: Sized) -> None:
        """Keep an array, and drop the least recently used ones above the limit."""
        with self._lock:
            if key in self._arrays or values.nbytes > self._limit:
                return
            self._arrays[key] = values
            self._bytes += values.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
