"""Reads the clips that the sampling plan draws, ahead of their use, on background threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.plan import Draw, SamplingPlan
from fmcortex.data.shards import TrialArrays


@dataclass(frozen=True)
class Batch:
    """One micro-batch: N clips of T frames of one session.

    Attributes:
        draw: what the plan drew.
        stimuli: uint8 [N, T, H, W].
        perspectives: [N, T, P].
        modulations: [N, T, M].
        responses: [N, T, U].
    """

    draw: Draw
    stimuli: Tensor
    perspectives: Tensor
    modulations: Tensor
    responses: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; from pinned memory the copy overlaps with computation."""
        tensors = (self.stimuli, self.perspectives, self.modulations, self.responses)
        return Batch(self.draw, *(x.to(device, non_blocking=True) for x in tensors))


def empty_batch(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
    """What the clips of `draw`, `clip` frames each, are to be written into.

    torch's own memory: NumPy's is aligned by chance, and the last bits of what is computed would
    depend on it.
    """
    like = dataset.session(draw.session).arrays(0)

    def empty(values: np.ndarray, dtype: torch.dtype) -> Tensor:
        shape = len(draw.clips), clip, *values.shape[1:]
        return torch.empty(shape, dtype=dtype, pin_memory=pin)

    return Batch(
        draw,
        empty(like.stimulus, torch.uint8),
        empty(like.perspectives, torch.float32),
        empty(like.modulations, torch.float32),
        empty(like.responses, torch.float32),
    )


def fill_batch(dataset: PreparedDataset, batch: Batch) -> None:
    """Read the clips of `batch.draw` into it.

    Raises:
        DataError: a shard is missing, truncated or corrupt.
    """
    session = dataset.session(batch.draw.session)
    for number, one in enumerate(batch.draw.clips):
        out = TrialArrays(
            batch.stimuli[number].numpy(),
            batch.responses[number].numpy(),
            batch.perspectives[number].numpy(),
            batch.modulations[number].numpy(),
        )
        session.window(one.trial, one.start, batch.stimuli.shape[1], out)


def read_batch(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
    """Read the clips of `draw`, `clip` frames each.

    Raises:
        DataError: a shard is missing, truncated or corrupt.
    """
    batch = empty_batch(dataset, draw, clip, pin)
    fill_batch(dataset, batch)
    return batch


class ClipLoader:
    """The micro-batches of some lanes, in the order of steps and lanes.

    Args:
        dataset: that is read.
        plan: that draws.
        lanes: those of this rank.
        first: step.
        last: the step before which to stop.
        prefetch: micro-batches read ahead.
        threads: that read.
        pin: whether to put batches into pinned memory, for a GPU.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        plan: SamplingPlan,
        lanes: Sequence[int],
        first: int,
        last: int,
        prefetch: int = 4,
        threads: int = 2,
        pin: bool = False,
    ) -> None:
        self.dataset, self.plan, self.lanes = dataset, plan, list(lanes)
        self.first, self.last = first, last
        self.prefetch, self.threads, self.pin = max(prefetch, len(self.lanes)), threads, pin
        self.stalled = 0.0  # seconds that the consumer has waited

    def __iter__(self) -> Iterator[list[Batch]]:
        """The micro-batches of one step after another, as a list in the order of `lanes`."""
        draws = (
            self.plan.draw(lane, step)
            for step in range(self.first, self.last)
            for lane in self.lanes
        )
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="clips")
        try:
            for _ in range(self.first, self.last):
                batches = []
                for _ in self.lanes:
                    while len(waiting) < self.prefetch and (draw := next(draws, None)):
                        waiting.append(
                            pool.submit(read_batch, self.dataset, draw, self.plan.clip, self.pin)
                        )
                    start = time.perf_counter()
                    batches.append(waiting.popleft().result())
                    self.stalled += time.perf_counter() - start
                yield batches
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
