"""Batches in memory that cannot be swapped out, as a GPU copies from: used again and again.

With a GPU torch pins the memory. Without one, mlock(2) locks the pages in memory, which is what
pinning does but for telling the GPU's driver.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import Queue

import torch

from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.loader import Batch, empty_batch
from fmcortex.data.plan import Draw


class LockedBatches:
    """Some batches of one session, to write into.

    Args:
        dataset: of the session.
        draw: any draw of it, with as many clips as all.
        clip: frames.
        count: how many batches are in use at most.

    Attributes:
        how: in words.

    Raises:
        OSError: the user may not lock that much; see `ulimit -l`.
    """

    def __init__(self, dataset: PreparedDataset, draw: Draw, clip: int, count: int) -> None:
        pin = torch.cuda.is_available()
        self.how = "pinned" if pin else "locked in memory"
        self._free: Queue[Batch] = Queue()
        for _ in range(count):
            batch = empty_batch(dataset, draw, clip, pin)
            if not pin:
                for tensor in (
                    batch.stimuli,
                    batch.perspectives,
                    batch.modulations,
                    batch.responses,
                ):
                    _lock(tensor)
            self._free.put(batch)

    def take(self, draw: Draw) -> Batch:
        """A batch for a draw; waits for one that is free."""
        return replace(self._free.get(), draw=draw)

    def give(self, batch: Batch) -> None:
        """It may be written over."""
        self._free.put(batch)

    @contextmanager
    def one(self, draw: Draw) -> Iterator[Batch]:
        """A batch for as long as the block lasts."""
        batch = self.take(draw)
        try:
            yield batch
        finally:
            self.give(batch)


def _lock(tensor: torch.Tensor) -> None:
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    address, size = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes)
    if libc.mlock(address, size) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot lock {tensor.nbytes} bytes: {os.strerror(number)}")
