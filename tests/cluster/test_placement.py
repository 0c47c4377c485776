"""Lanes on ranks: each once, sessions together, the work balanced."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cluster.placement import Placement, place_lanes
from fmcortex.data.plan import place_sessions
from fmcortex.errors import ConfigError


def test_a_placement_by_hand() -> None:
    placed = place_lanes(
        [["a"], ["b"], ["c"], ["d"]], {"a": 7.0, "b": 6.0, "c": 5.0, "d": 4.0}, ranks=2
    )
    # Longest first, each to the lightest rank: a | b, a | b c, a d | b c.
    assert placed.lanes == [[0, 3], [1, 2]]
    assert placed.sessions == [["a", "d"], ["b", "c"]]
    assert placed.loads == [11.0, 11.0]
    assert placed.imbalance == 0


def test_imbalance() -> None:
    placed = Placement([[0], [1]], [["a"], ["b"]], [3.0, 1.0])
    assert placed.imbalance == pytest.approx(0.5)


def test_a_session_that_holds_several_lanes_stays_on_one_rank() -> None:
    placed = place_lanes([["a"], ["b"], ["a"], ["a"]], {"a": 1.0, "b": 10.0}, ranks=2)
    assert placed.lanes == [[1], [0, 2, 3]]
    assert placed.loads == [10.0, 3.0]


def test_a_lane_with_several_sessions_costs_their_mean() -> None:
    placed = place_lanes([["a", "b"], ["c"]], {"a": 2.0, "b": 4.0, "c": 5.0}, ranks=2)
    assert placed.lanes == [[1], [0]]
    assert placed.sessions == [["c"], ["a", "b"]]
    assert placed.loads == [5.0, 3.0]


@pytest.mark.parametrize("seed", range(4))
def test_every_lane_and_session_is_on_exactly_one_rank(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {f"s{i}": float(c) for i, c in enumerate(rng.integers(1, 100, 9))}
    for lanes, ranks in itertools.product((3, 6, 9, 14), (1, 2, 3)):
        placement = place_sessions(costs, lanes)
        placed = place_lanes(placement, costs, ranks)
        assert sorted(lane for held in placed.lanes for lane in held) == list(range(lanes))
        assert sorted(name for held in placed.sessions for name in held) == sorted(costs)
        assert all(held == sorted(held) for held in placed.lanes)
        assert all(placed.lanes)  # no rank idles
        for held, names, load in zip(placed.lanes, placed.sessions, placed.loads, strict=True):
            assert {n for lane in held for n in placement[lane]} == set(names)
            expected = sum(np.mean([costs[n] for n in placement[lane]]) for lane in held)
            assert load == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_many_sessions_are_nearly_balanced(ranks: int) -> None:
    rng = np.random.default_rng(0)
    costs = {f"s{i}": float(c) for i, c in enumerate(rng.uniform(1, 10, 64))}
    placed = place_lanes([[name] for name in costs], costs, ranks)
    # Graham's bound for the longest first: a third over the best at most; here far less.
    assert 0 <= placed.imbalance < 0.05


def test_equal_costs_leave_no_rank_idle() -> None:
    assert place_lanes([["a"], ["b"]], {"a": 0.0, "b": 0.0}, ranks=2).lanes == [[0], [1]]


def test_the_order_of_the_costs_does_not_matter() -> None:
    costs = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 2.0}
    lanes = [["d"], ["c"], ["b"], ["a"]]
    placed = [place_lanes(lanes, dict(items), 2) for items in itertools.permutations(costs.items())]
    assert all(one == placed[0] for one in placed)


def test_more_ranks_than_can_be_used() -> None:
    lanes = [["a"], ["a"], ["b", "c"]]
    costs = dict.fromkeys("abc", 1.0)
    assert len(place_lanes(lanes, costs, 2).lanes) == 2
    with pytest.raises(ConfigError, match=r"cluster.workers: 3 workers, but the run has 2 lanes"):
        place_lanes(lanes, costs, 3)
