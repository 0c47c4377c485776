"""Nested subsets: each minute holds the minutes before it, on every machine the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fmcortex.data.subset import nested_trials, seed_of
from fmcortex.errors import ConfigError

RATE = 30.0


def test_seed_is_the_documented_hash() -> None:
    # By hand: the parts joined by a unit separator, the first 8 bytes of SHA-256, 63 bits of them.
    digest = hashlib.sha256(b"trials\x1f0\x1fmouse").hexdigest()
    assert seed_of("trials", 0, "mouse") == int(digest[:16], 16) // 2
    # Pinned: a changed seed or order would change every run and subset.
    assert seed_of("subset", "s1") == 2106798354037624419
    assert nested_trials("m", [300] * 60, RATE, 1.0) == [14, 29, 30, 43, 45, 46]


def test_seeds_differ_by_every_part_and_by_where_parts_end() -> None:
    seeds = {seed_of(*parts) for parts in [("a", 1, 23), ("a", 12, 3), ("a1", 23), ("a", 1), ()]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", range(3))
def test_larger_subsets_hold_the_smaller_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(60, 400, 50).tolist()
    most = sum(frames) / RATE / 60
    before: set[int] = set()
    for minutes in np.linspace(0.05, most, 12):
        trials = nested_trials("m", frames, RATE, float(minutes))
        assert trials == sorted(set(trials))
        assert set(trials) >= before
        before = set(trials)
    assert before == set(range(50))


def test_a_subset_is_the_least_number_of_trials_that_reaches_the_minutes() -> None:
    frames = [100 + 7 * i for i in range(40)]
    order: list[int] = []  # found by asking for one frame more than there is
    while len(order) < 40:
        more = (sum(frames[t] for t in order) + 1) / RATE / 60
        [added] = set(nested_trials("m", frames, RATE, more)) - set(order)
        order.append(added)
    for minutes in (0.1, 0.5, 1.0, 2.0):
        count = len(nested_trials("m", frames, RATE, minutes))
        totals = np.cumsum([0] + [frames[t] for t in order]) / RATE / 60
        assert totals[count] >= minutes > totals[count - 1]
        assert nested_trials("m", frames, RATE, minutes) == sorted(order[:count])


def test_whole_trials_give_exactly_the_minutes() -> None:
    frames = [300] * 12  # ten seconds each
    for count in range(1, 13):
        assert len(nested_trials("m", frames, RATE, count / 6)) == count
    assert len(nested_trials("m", [299.67] * 60, 29.967, 5.0)) == 30


def test_all_of_a_session() -> None:
    assert nested_trials("m", [5, 6, 7], RATE, None) == [0, 1, 2]
    assert nested_trials("m", [5, 6, 7], RATE, 18 / RATE / 60) == [0, 1, 2]


def test_the_order_is_random_and_belongs_to_the_session() -> None:
    frames = [300] * 60
    ours = nested_trials("m", frames, RATE, 1.0)
    assert ours == nested_trials("m", frames, RATE, 1.0)
    assert ours != nested_trials("n", frames, RATE, 1.0)
    assert ours != list(range(6))


def test_less_than_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"data.minutes: 2 minutes asked for, but session m has 1.50"
    ):
        nested_trials("m", [300] * 9, RATE, 2)
