"""Lanes on ranks: each once, sessions together, the work balanced."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.placement import (
    CORE_NEURONS,
    Placement,
    configured_costs,
    micro_batch_costs,
    place_lanes,
    read_costs,
    write_costs,
)
from fmcortex.data.lanes import place_sessions
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


def test_a_lane_costs_the_mean_over_its_turns() -> None:
    placed = place_lanes([["a", "b", "a"], ["c"]], {"a": 2.0, "b": 5.0, "c": 1.0}, ranks=2)
    assert placed.loads == [3.0, 1.0]
    assert placed.sessions == [["a", "b"], ["c"]]


def test_a_session_is_split_where_balance_wants_it() -> None:
    # Together, a's lanes would cost 8 and the others 4.
    placed = place_lanes([["a"]] * 4 + [["b"], ["c"]], {"a": 2.0, "b": 2.0, "c": 2.0}, ranks=2)
    assert placed.loads == [6.0, 6.0]
    assert placed.imbalance == 0
    assert placed.holders == {"a": [0, 1], "b": [0], "c": [1]}
    # One session alone feeds as many ranks as it has lanes.
    placed = place_lanes([["a"]] * 5, {"a": 1.0}, ranks=5)
    assert placed.lanes == [[0], [1], [2], [3], [4]]
    assert placed.holders == {"a": [0, 1, 2, 3, 4]}


def test_a_session_is_not_split_where_balance_does_not_want_it() -> None:
    lanes = [[name] for name in "abcd" for _ in range(3)]
    placed = place_lanes(lanes, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, ranks=2)
    assert placed.imbalance == 0
    assert placed.holders == {"a": [0], "b": [1], "c": [1], "d": [0]}


def test_exchanges_improve_on_the_longest_first() -> None:
    # The longest first gives 5 + 3 + 3 = 11 against 4 + 3 = 7 or worse; 9 and 9 is possible.
    placed = place_lanes(
        [[name] for name in "abcde"], dict(zip("abcde", (5.0, 4.0, 3.0, 3.0, 3.0), strict=True)), 2
    )
    assert placed.loads == [9.0, 9.0]


@pytest.mark.parametrize("seed", range(4))
def test_every_lane_is_on_exactly_one_rank(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {f"s{i}": float(c) for i, c in enumerate(rng.integers(1, 100, 9))}
    weights = {name: float(rng.uniform(1, 5)) for name in costs}
    for lanes, ranks in itertools.product((3, 6, 9, 14, 40), (1, 2, 3, 11)):
        if ranks > lanes:
            continue
        placement = place_sessions(weights, costs, lanes)
        placed = place_lanes(placement, costs, ranks)
        assert sorted(lane for held in placed.lanes for lane in held) == list(range(lanes))
        assert all(held == sorted(held) for held in placed.lanes)
        assert all(placed.lanes)  # no rank idles
        for held, names, load in zip(placed.lanes, placed.sessions, placed.loads, strict=True):
            assert {n for lane in held for n in placement[lane]} == set(names)
            expected = sum(np.mean([costs[n] for n in placement[lane]]) for lane in held)
            assert load == pytest.approx(expected)
        assert set(placed.holders) == set(costs)
        for name, ranks_of in placed.holders.items():
            assert ranks_of == [r for r, names in enumerate(placed.sessions) if name in names]


def paper_table(seed: int = 0) -> dict[str, int]:
    """Neurons of 333 sessions: 1960 to 10771, the median 7253."""
    drawn = np.random.default_rng(seed).normal(7253, 1500, 333)
    neurons = np.sort(drawn + 7253 - np.median(drawn)).clip(1960, 10771).astype(int)
    neurons[0], neurons[-1] = 1960, 10771
    return {f"s{i:03}": int(n) for i, n in enumerate(neurons)}


@pytest.mark.parametrize(("lanes", "ranks"), [(333, 8), (333, 64), (1332, 256), (2664, 256)])
def test_the_sessions_of_the_paper_are_balanced_at_once(lanes: int, ranks: int) -> None:
    costs = micro_batch_costs(paper_table())
    began = time.perf_counter()
    placed = place_lanes(place_sessions(dict.fromkeys(costs, 1.0), costs, lanes), costs, ranks)
    assert time.perf_counter() - began < 2
    assert placed.imbalance < 0.015
    held = [len(ranks_of) for ranks_of in placed.holders.values()]
    assert np.median(held) <= 2
    assert max(held) <= lanes / 333
    if ranks <= 64:
        assert max(held) == 1


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


def test_more_ranks_than_lanes() -> None:
    lanes = [["a"], ["a"], ["b", "c"]]
    costs = dict.fromkeys("abc", 1.0)
    assert len(place_lanes(lanes, costs, 3).lanes) == 3
    message = r"cluster.workers: 4 workers, but the run has 3 lanes .*\(training.lanes\)"
    with pytest.raises(ConfigError, match=message):
        place_lanes(lanes, costs, 4)


def test_costs_without_measurements() -> None:
    assert micro_batch_costs({"a": 100, "b": 7000}) == {
        "a": CORE_NEURONS + 100.0,
        "b": CORE_NEURONS + 7000.0,
    }


def test_measured_costs_and_a_line_through_them() -> None:
    neurons = {"a": 1000, "b": 2000, "c": 3000, "new": 5000}
    measured = {"a": 0.3, "b": 0.4, "c": 0.5, "of another run": 9.0}
    assert micro_batch_costs(neurons, measured) == pytest.approx(
        {"a": 0.3, "b": 0.4, "c": 0.5, "new": 0.7}
    )
    # One point makes no line, nor does one that falls: then in proportion to the default.
    one = micro_batch_costs(neurons, {"a": 0.5})
    assert one["new"] == pytest.approx(0.5 * (CORE_NEURONS + 5000) / (CORE_NEURONS + 1000))
    falling = micro_batch_costs(neurons, {"a": 0.5, "b": 0.4})
    assert falling["new"] > falling["c"] > 0
    with pytest.raises(ConfigError, match=r"cluster.costs: it has no session of this run"):
        micro_batch_costs(neurons, {"z": 1.0})


def test_measured_costs_go_through_a_file(tmp_path: Path) -> None:
    url = str(tmp_path / "run" / "costs.json")
    write_costs(url, {"b": 0.25, "a": 0.5})
    assert json.loads(Path(url).read_text()) == {"version": 1, "seconds": {"a": 0.5, "b": 0.25}}
    assert read_costs(url) == {"a": 0.5, "b": 0.25}
    assert configured_costs({"a": 5}, url) == {"a": 0.5}
    assert configured_costs({"a": 5}, None) == {"a": CORE_NEURONS + 5.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read: no such file"),
        ("{", "not valid JSON"),
        ("[]", "expected an object with version 1"),
        ('{"version": 2, "seconds": {"a": 1}}', "expected an object with version 1"),
        ('{"version": 1}', "seconds: expected an object of sessions"),
        ('{"version": 1, "seconds": {}}', "seconds: expected an object of sessions"),
        ('{"version": 1, "seconds": {"a": "x"}}', "seconds.a: expected a number above 0, got 'x'"),
        ('{"version": 1, "seconds": {"a": 0}}', "seconds.a: expected a number above 0, got 0"),
        ('{"version": 1, "seconds": {"a": NaN}}', "seconds.a: expected a number above 0, got nan"),
        ('{"version": 1, "seconds": {"a": true}}', "seconds.a: expected a number above 0"),
    ],
)
def test_a_file_of_costs_that_is_malformed(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"cluster.costs: .*costs.json: {message}"):
        read_costs(str(path))
