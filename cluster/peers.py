"""The other ranks, over `torch.distributed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmcortex.device import Compute


class Ranks:
    """Sums over all ranks, and over those that hold a session (see `Peers`).

    To be made on every rank, after `torch.distributed` is up.

    Args:
        holders: the ranks that hold each session.
        compute: device of this rank.
    """

    def __init__(self, holders: Mapping[str, Sequence[int]], compute: Compute) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.holders = {name: sorted(held) for name, held in holders.items()}
        self.device = compute.device
        several = {tuple(held) for held in self.holders.values() if len(held) > 1}
        # Every rank makes every group, its own or not, in the same order.
        self._groups = {held: dist.new_group(list(held)) for held in sorted(several)}

    def sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values

    def sum_session(self, session: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = tuple(self.holders[session])
        flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
        dist.all_reduce(flat, group=self._groups[held])
        sizes = [gradient.numel() for gradient in gradients.values()]
        return {
            name: part.view_as(gradients[name])
            for name, part in zip(gradients, flat.split(sizes), strict=True)
        }

    def counts(self, session: str) -> bool:
        return self.holders[session][0] == self.rank

    def shared_by_ranks(self, session: str) -> bool:
        return len(self.holders[session]) > 1

    def gather(self, value: Any) -> list[Any]:
        told: list[Any] = [None] * self.ranks
        dist.all_gather_object(told, value)
        return told
