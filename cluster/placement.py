"""Placement: which rank carries which lanes, and so which sessions live on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmcortex.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Lanes on ranks.

    Attributes:
        lanes: of each rank, ascending.
        sessions: that live on each rank, sorted.
        loads: cost a step of each rank.
    """

    lanes: list[list[int]]
    sessions: list[list[str]]
    loads: list[float]

    @property
    def imbalance(self) -> float:
        """How much longer the busiest rank works than the average one, as a fraction."""
        return max(self.loads) / (sum(self.loads) / len(self.loads)) - 1


def place_lanes(
    lanes: Sequence[Sequence[str]], costs: Mapping[str, float], ranks: int
) -> Placement:
    """Place lanes on ranks, balanced by cost; lanes of one session stay together.

    Args:
        lanes: the sessions of each lane.
        costs: of a micro-batch of each session, in any unit.
        ranks: how many.

    Raises:
        ConfigError: there are more ranks than groups of lanes that can be separated.
    """
    groups: dict[str, list[int]] = {}
    for lane, names in enumerate(lanes):
        groups.setdefault(names[0], []).append(lane)
    if ranks > len(groups):
        raise ConfigError(
            f"cluster.workers: {ranks} workers, but the run has {len(groups)} lanes of different "
            "sessions to share between them; use fewer workers or more sessions"
        )
    weights = {
        first: sum(sum(costs[n] for n in lanes[lane]) / len(lanes[lane]) for lane in group)
        for first, group in groups.items()
    }
    held: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for first in sorted(groups, key=lambda name: (-weights[name], name)):
        lightest = min(range(ranks), key=lambda r: (len(held[r]) > 0, loads[r], r))
        held[lightest].extend(groups[first])
        loads[lightest] += weights[first]
    return Placement(
        lanes=[sorted(group) for group in held],
        sessions=[sorted({n for lane in group for n in lanes[lane]}) for group in held],
        loads=loads,
    )
