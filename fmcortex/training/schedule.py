"""Learning rate over the epochs: cycles of cosine decay, the first ones with a warm-up."""

from __future__ import annotations

import math


def learning_rate(
    epoch: int,
    lr: float,
    cycle_size: int,
    warmup_epochs: int = 0,
    warmup_cycles: int = 1,
    cycles: int = 1,
) -> float:
    """Learning rate of an epoch (released recipe of Wang et al. 2025).

    Args:
        epoch: counted from 0.
        lr: the largest learning rate.
        cycle_size: epochs a cycle.
        warmup_epochs: epochs of linear warm-up at the start of a warm-up cycle.
        warmup_cycles: how many cycles, from the first, have a warm-up.
        cycles: how many times the schedule starts; after the last cycle its last rate stays.
    """
    cycle = min(epoch // cycle_size, cycles - 1)
    e = min(epoch - cycle * cycle_size, cycle_size - 1)
    warmup = warmup_epochs if cycle < warmup_cycles else 0
    if e < warmup:
        return lr * (e + 0.5) / warmup
    return lr * (1 + math.cos(math.pi * (e - warmup) / (cycle_size - warmup))) / 2
