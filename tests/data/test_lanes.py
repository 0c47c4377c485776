"""Lanes: every session has one, each is drawn by its weight, the turns are even."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from fmcortex.data.lanes import apportion, place_sessions, session_weights, turns
from fmcortex.errors import ConfigError


def uniform(costs: dict[str, float], lanes: int) -> list[list[str]]:
    return place_sessions(dict.fromkeys(costs, 1.0), costs, lanes)


def drawn(lanes: list[list[str]]) -> dict[str, float]:
    """Micro-batches a step of each session, on average."""
    found: dict[str, float] = {}
    for names in lanes:
        for name, count in Counter(names).items():
            found[name] = found.get(name, 0.0) + count / len(names)
    return found


def test_weights() -> None:
    minutes = {"a": 100.0, "b": 25.0}
    assert session_weights("uniform", minutes) == {"a": 1, "b": 1}
    for rule, ratio in (("minutes", 4), (1.0, 4), (2.0, 2), (0.5, 16), (1e9, 1)):
        weights = session_weights(rule, minutes)
        assert weights["a"] / weights["b"] == pytest.approx(ratio)


def test_one_lane_a_session() -> None:
    assert uniform({"x": 1.0, "z": 3.0, "y": 3.0}, 3) == [["y"], ["z"], ["x"]]


def test_fewer_lanes_than_sessions_are_balanced() -> None:
    placed = uniform({"a": 8.0, "b": 7.0, "c": 6.0, "d": 5.0, "e": 4.0}, 2)
    # a | b, c to b's, which cost less; d to a's, who are fewer; then both cost 13.
    assert placed == [["a", "d", "e"], ["b", "c"]]
    # As many lanes as sessions: one each, even of no cost.
    assert sorted(uniform(dict.fromkeys("abc", 0.0), 3)) == [["a"], ["b"], ["c"]]


def test_more_lanes_than_sessions_are_shared_out_equally() -> None:
    costs = {"small": 1.0, "large": 9.0, "middle": 4.0}
    assert drawn(uniform(costs, 6)) == {"large": 2, "middle": 2, "small": 2}
    assert drawn(uniform(costs, 8)) == {"large": 3, "middle": 3, "small": 2}


def test_lanes_follow_the_weights() -> None:
    costs = dict.fromkeys("abc", 1.0)
    placed = place_sessions({"a": 5.0, "b": 3.0, "c": 2.0}, costs, 10)
    assert placed == [["a"]] * 5 + [["b"]] * 3 + [["c"]] * 2
    # Shares of 1.5, 0.9, 0.6: a holds lanes alone, b and c take turns by their shares.
    placed = place_sessions({"a": 5.0, "b": 3.0, "c": 2.0}, costs, 3)
    assert placed == [["a"], ["b"], ["c"]]
    placed = place_sessions({"a": 8.0, "b": 1.5, "c": 0.5}, costs, 5)
    assert placed == [["a"]] * 4 + [["b", "b", "c", "b"]]


def test_a_great_weight_leaves_the_others_a_lane() -> None:
    costs = dict.fromkeys("abcd", 1.0)
    placed = place_sessions({"a": 1e9, "b": 1.0, "c": 1.0, "d": 1e-9}, costs, 2)
    assert placed[0] == ["a"]
    assert set(placed[1]) == {"b", "c", "d"}
    assert place_sessions({"a": 1e9, "b": 1.0}, costs, 1)[0].count("b") == 1


@pytest.mark.parametrize("rule", ["uniform", "minutes", 2.0, 0.3])
@pytest.mark.parametrize("lanes", [1, 3, 7, 12, 100])
def test_every_session_has_a_lane_and_no_lane_is_empty(rule: str | float, lanes: int) -> None:
    rng = np.random.default_rng(0)
    costs = {f"s{i}": float(c) for i, c in enumerate(rng.uniform(1, 9, 7))}
    weights = session_weights(rule, {name: float(rng.uniform(47, 216)) for name in costs})
    placed = place_sessions(weights, costs, lanes)
    assert len(placed) == lanes
    assert all(placed)
    assert {name for names in placed for name in names} == set(costs)
    turned = [dict(reversed(values.items())) for values in (weights, costs)]
    assert place_sessions(*turned, lanes) == placed
    # A session that shares a lane is on that one alone.
    shared = [name for names in placed if len(set(names)) > 1 for name in set(names)]
    assert len(shared) == len(set(shared))
    assert not set(shared) & {names[0] for names in placed if len(set(names)) == 1}
    if lanes == 100:
        total = sum(weights.values())
        for name, count in drawn(placed).items():
            assert abs(count - lanes * weights[name] / total) < 1


def test_shares_come_out_in_one_lane() -> None:
    rng = np.random.default_rng(0)
    weights = {f"s{i}": float(m) for i, m in enumerate(rng.uniform(47, 216, 40))}
    [lane] = place_sessions(weights, dict.fromkeys(weights, 1.0), 1)
    total = sum(weights.values())
    for name, count in drawn([lane]).items():
        assert count == pytest.approx(weights[name] / total, rel=0.011)


def test_turns_are_even() -> None:
    assert turns({"a": 1.0, "b": 1.0, "c": 1.0}) == ["a", "b", "c"]
    assert turns({"a": 2.0, "b": 1.0}) == ["a", "b", "a"]
    rng = np.random.default_rng(1)
    shares = {f"s{i}": float(s) for i, s in enumerate(rng.uniform(1, 5, 6))}
    found = turns(shares)
    for name in shares:
        places = [i for i, one in enumerate(found * 2) if one == name]
        gaps = np.diff(places)
        mean = len(found) / found.count(name)
        assert mean / 2 < gaps.min() <= gaps.max() < 2 * mean  # evenly, not in runs


def test_apportioning() -> None:
    assert list(apportion([3.0, 1.0], 4)) == [3, 1]
    assert list(apportion([1.0, 1.0, 1.0], 4)) == [2, 1, 1]
    assert list(apportion([1e9, 1.0, 1e-3], 5)) == [3, 1, 1]
    assert list(apportion([1.0, 9.0], 2)) == [1, 1]
    assert list(apportion([1.0, 1.9, 7.1], 10)) == [1, 2, 7]
    assert list(apportion([], 0)) == []


def test_many_sessions_are_placed_at_once() -> None:
    rng = np.random.default_rng(0)
    weights = {f"s{i:03}": float(m) for i, m in enumerate(rng.uniform(47, 216, 333))}
    began = time.perf_counter()
    for lanes in (50, 333, 2664):
        place_sessions(weights, weights, lanes)
    assert time.perf_counter() - began < 2


def test_no_sessions() -> None:
    with pytest.raises(ConfigError, match=r"data.sessions: there are no sessions to train on"):
        place_sessions({}, {}, 2)


def test_a_session_without_weight() -> None:
    with pytest.raises(ConfigError, match=r"training.session_weights: the weight of session b is"):
        place_sessions({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, 2)
