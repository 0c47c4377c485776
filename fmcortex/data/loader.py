"""Reads the clips that the sampling plan draws, ahead of their use, on background threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.plan import Draw, SamplingPlan
from fmcortex.data.shards import ARRAYS, TrialArrays


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


def read_batch(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
    """Read the clips of `draw`, `clip` frames each.

    Raises:
        DataError: a shard is missing, truncated or corrupt.
    """
    session = dataset.session(draw.session)
    # Each window is written into torch's own memory: NumPy's is aligned by chance, and the last
    # bits of what is computed would depend on it.
    like = session.arrays(0)
    tensors = {
        name: torch.empty(
            (len(draw.clips), clip, *getattr(like, name).shape[1:]),
            dtype=torch.uint8 if name == "stimulus" else torch.float32,
            pin_memory=pin,
        )
        for name in ARRAYS
    }
    for number, one in enumerate(draw.clips):
        out = TrialArrays(**{name: tensor[number].numpy() for name, tensor in tensors.items()})
        session.window(one.trial, one.start, clip, out)
    return Batch(
        draw,
        tensors["stimulus"],
        tensors["perspectives"],
        tensors["modulations"],
        tensors["responses"],
    )


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
