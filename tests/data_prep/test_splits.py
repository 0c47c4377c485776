from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from data_prep.near_duplicates import Pair, groups
from data_prep.splits import Leak, MovieUse, assign_apart, assign_tiers, find_leaks
from fmcortex.data.manifest import Tier

TENTHS = {"test": 0.1, "validation": 0.1}


def uses(names: Sequence[str], times: int = 1) -> list[MovieUse]:
    return [MovieUse(name, 10.0, times) for name in names]


def names(count: int, start: int = 0) -> list[str]:
    return [f"movie-{number}" for number in range(start, start + count)]


def pair(first: str, second: str) -> Pair:
    return Pair(*sorted((first, second)), 0.5, 6.0)


def random_pairs(movies: list[str], count: int, rng: np.random.Generator) -> list[Pair]:
    chosen = (rng.choice(movies, 2, replace=False).tolist() for _ in range(count))
    return [pair(first, second) for first, second in chosen]


@pytest.mark.parametrize("times", [1, 2])
def test_each_movie_is_drawn_by_its_own_number(times):
    """Where all were shown once, or all repeatedly, a movie's tier depends on no other."""
    # The first twelve digits of `printf 0:movie-11 | sha256sum`, and so on.
    digits = {"movie-11": 0x0BA8774770C9, "movie-17": 0x37396F531CB9, "movie-6": 0xD3DED5F22EBF}
    numbers = {name: value / 2**48 for name, value in digits.items()}  # 0.046, 0.216, 0.828
    for test, validation in ((0.1, 0.1), (0.02, 0.5), (0.4, 0.2), (0.0, 0.3), (0.5, 0.0)):
        fractions = {"test": test, "validation": validation}
        tiers = assign_tiers(uses(names(300), times), [], fractions, 0, {})
        for name, number in numbers.items():
            first, second = number < test, number < test + validation
            assert tiers[name] == ("test" if first else "validation" if second else "train")


@pytest.mark.parametrize("repeated", [0, 30, 100, 150, 400, 1000])
@pytest.mark.parametrize(("test", "validation"), [(0.1, 0.1), (0.2, 0.05), (0.05, 0.15)])
def test_fractions_of_a_thousand_movies(repeated, test, validation):
    movies = uses(names(repeated), 10) + uses(names(1000 - repeated, repeated))
    fractions = {"test": test, "validation": validation}
    tiers = assign_tiers(movies, [], fractions, 0, {})
    assert list(tiers) == [use.movie for use in movies]
    counts = Counter(tiers.values())
    for tier, share in fractions.items():
        # Four standard deviations of a binomial distribution.
        assert abs(counts[tier] - 1000 * share) < 4 * np.sqrt(1000 * share * (1 - share))
    assert sum(counts.values()) == 1000


def test_seed_makes_another_split():
    first, second = (assign_tiers(uses(names(300)), [], TENTHS, seed, {}) for seed in (0, 1))
    assert first != second
    order = assign_tiers(uses(names(300))[::-1], [], TENTHS, 0, {})
    assert order == first


def test_repeated_movies_are_held_out_first():
    for count in (5, 30, 50):
        movies = uses(names(count), 2) + uses(names(300 - count, count))
        tiers = assign_tiers(movies, [], TENTHS, 0, {})
        repeated = Counter(tiers[name] for name in names(count))
        if count <= 30:  # as many as are wanted for test, or fewer
            assert repeated == {"test": count}
        else:  # all are held out, and nobody else is in test
            assert repeated["train"] == 0
            assert repeated["test"] == Counter(tiers.values())["test"]
    # One of a group is enough.
    movies = [*uses(names(60)), MovieUse("again", 10.0, 2)]
    tiers = assign_tiers(movies, [pair("again", "movie-3")], TENTHS, 0, {})
    assert tiers["again"] == tiers["movie-3"] == "test"


@pytest.mark.parametrize("seed", range(20))
def test_alike_movies_share_a_tier(seed):
    """Of random graphs of pairs, with known movies in and outside of the run."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 120))
    every = [*names(count), *(f"old-{number}" for number in range(int(rng.integers(1, 20))))]
    pairs = random_pairs(every, int(rng.integers(0, count)), rng)
    tiers_known: dict[str, Tier] = {
        name: rng.choice(["train", "validation", "test"], p=[0.7, 0.15, 0.15]).item()
        for name in every
        if name.startswith("old") or rng.random() < 0.1
    }
    movies = [MovieUse(name, 10.0, int(rng.integers(1, 3))) for name in names(count)]
    tiers = assign_tiers(movies, pairs, TENTHS, seed, tiers_known)
    assert sorted(tiers) == sorted(names(count))
    group = groups(every, pairs)
    of_group: dict[str, set[Tier]] = {}
    for name, tier in tiers.items():
        of_group.setdefault(group[name], set()).add(tier)
    assert all(len(some) == 1 for some in of_group.values())
    for root, (tier,) in of_group.items():
        known = {tiers_known[name] for name in every if group[name] == root and name in tiers_known}
        if known:
            assert tier == next(t for t in ("test", "validation", "train") if t in known)
    # Nothing leaks but where known tiers disagree.
    leaks = find_leaks({("s", name): {tier} for name, tier in tiers.items()}, pairs)
    assert leaks == []


def test_tiers_stay_when_movies_are_added():
    before = assign_tiers(uses(names(300)), [], TENTHS, 3, {})
    more = uses([f"added-{number}" for number in range(500)])
    pairs = [pair("movie-1", "movie-2"), pair("added-1", "added-2")]
    joined = assign_tiers(uses(names(300)), pairs[:1], TENTHS, 3, {})
    after = assign_tiers(more[:250] + uses(names(300)) + more[250:], pairs, TENTHS, 3, {})
    assert {name: after[name] for name in joined} == joined
    assert {n: t for n, t in joined.items() if n != "movie-2"} == {
        n: t for n, t in before.items() if n != "movie-2"
    }
    # Those of a dataset stay in any case, and what is like them follows.
    added = [MovieUse(f"added-{number}", 10.0, 20) for number in range(500)]
    pairs = [pair(f"added-{number}", f"movie-{number}") for number in range(300)]
    last = assign_tiers(added + uses(names(300)), pairs, TENTHS, 4, before)
    assert {name: last[name] for name in before} == before
    assert all(last[f"added-{number}"] == before[f"movie-{number}"] for number in range(300))
    assert Counter(last[f"added-{number}"] for number in range(300, 500))["test"] > 0


def test_few_movies_move_where_repeated_and_other_ones_are_added():
    movies = uses(names(40), 10) + uses(names(600, 40))
    more = uses(names(4, 640), 10) + uses(names(50, 644))
    before = assign_tiers(movies, [], TENTHS, 0, {})
    after = assign_tiers(movies + more, [], TENTHS, 0, {})
    moved = [name for name in before if after[name] != before[name]]
    assert len(moved) <= 6  # of 640


def test_known_tiers_are_kept_and_joined_through_movies_outside_the_run():
    known: dict[str, Tier] = {"a": "train", "b": "validation", "c": "test", "d": "train"}
    pairs = [pair("new-1", "a"), pair("new-2", "b"), pair("new-3", "new-4"), pair("c", "new-4")]
    pairs += [pair("new-5", "d"), pair("new-5", "b"), pair("b", "new-6"), pair("new-6", "c")]
    movies = uses([f"new-{number}" for number in range(1, 7)] + ["a"])
    assert assign_tiers(movies, pairs, TENTHS, 0, known) == {
        "new-1": "train",
        "a": "train",
        # d, new-5, b, new-2, new-6, c, new-4 and new-3 are one group: test is strictest.
        **dict.fromkeys([f"new-{number}" for number in range(2, 7)], "test"),
    }
    with pytest.raises(KeyError, match="nobody"):
        assign_tiers(movies, [pair("a", "nobody")], TENTHS, 0, known)


def test_movies_between_known_ones_of_both_sides():
    known: dict[str, Tier] = {"t": "train", "e": "test", "v": "validation"}
    pairs = [pair("new", "t"), pair("new", "e"), pair("held", "e"), pair("held", "v")]
    pairs += [pair("other", "t"), pair("other", "new"), pair("t", "e")]
    # Together the two join what neither does alone.
    pairs += [pair("left", "t"), pair("right", "v"), pair("left", "right")]
    new = uses(["new", "held", "other", "left", "right", "t"])
    found = assign_apart(new, pairs, TENTHS, 0, known)
    assert found == {
        "new": None, "held": "test", "other": "train", "left": None, "right": "validation",
        "t": "train",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_alike_no_new_movie_leaks(seed):
    rng = np.random.default_rng(seed)
    movies = names(40)
    tiers: list[Tier] = ["train", "validation", "test"]
    known = {movie: tiers[rng.integers(3)] for movie in movies[:15]}
    pairs = random_pairs(movies, 30, rng)
    found = assign_apart(uses(movies[10:]), pairs, TENTHS, seed, known)
    assert set(found) == set(movies[10:])
    final = {movie: tier for movie, tier in found.items() if tier is not None} | known
    for one in pairs:
        both = {one.first, one.second}
        if both <= set(final) and not both <= set(known):
            assert len({final[movie] == "train" for movie in both}) == 1
    assert sum(tier is None for tier in found.values()) < 15


@pytest.mark.parametrize("seed", range(30))
def test_no_tier_is_empty_where_there_are_enough_movies(seed):
    def counts(count: int, test: float, validation: float, known: dict[str, Tier]) -> Counter:
        fractions = {"test": test, "validation": validation}
        movies = uses(names(count)) + uses(list(known))
        return Counter(assign_tiers(movies, [], fractions, seed, known).values())

    assert counts(0, 0.1, 0.1, {}) == {}
    assert counts(1, 0.5, 0.4, {}) == {"train": 1}
    assert counts(2, 0.1, 0.8, {}) == {"train": 1, "test": 1}
    assert counts(2, 0.0, 0.9, {}) == {"train": 1, "validation": 1}
    for test, validation in ((0.01, 0.01), (0.9, 0.09), (0.01, 0.98)):
        assert counts(3, test, validation, {}) == {"train": 1, "test": 1, "validation": 1}
        assert len(counts(4, test, validation, {})) == 3
    # What is known counts as well.
    assert counts(1, 0.1, 0.1, {"k": "test"}) == {"test": 1, "train": 1}
    assert counts(1, 0.1, 0.1, {"k": "train"}) == {"train": 1, "test": 1}
    assert counts(1, 0.1, 0.1, {"k": "train", "l": "test"}) == dict.fromkeys(
        ("train", "test", "validation"), 1
    )
    assert counts(2, 0.5, 0.49, {"k": "validation"}) == {"validation": 1, "train": 1, "test": 1}
    everything: dict[str, Tier] = {"k": "train", "l": "test", "m": "validation"}
    assert counts(1, 0.0, 0.0, everything)["train"] == 2
    # Zero is zero.
    assert counts(50, 0.0, 0.0, {}) == {"train": 50}
    assert counts(50, 0.0, 0.3, {})["test"] == 0


def test_where_few_movies_are_held_out_repeated_ones_come_first():
    movies = [*uses(names(9)), MovieUse("again", 10.0, 10)]
    for seed in range(20):
        assert assign_tiers(movies, [], {"test": 0.01, "validation": 0}, seed, {})["again"] == (
            "test"
        )


@pytest.mark.parametrize("seed", range(20))
def test_a_large_group_is_for_training(seed):
    """Clips of one film that are half of all movies, repeated or not, must not be the test set."""
    film = names(150)
    pairs = [pair(first, second) for first, second in pairwise(film)]
    for times in (1, 10):
        movies = uses(film, times) + uses(names(150, 150))
        tiers = assign_tiers(movies, pairs, TENTHS, seed, {})
        assert {tiers[name] for name in film} == {"train"}
        assert 8 < Counter(tiers.values())["test"] < 52  # 30 +- 4 standard deviations
    # Nothing else is there to be held out.
    assert set(assign_tiers(uses(film), pairs, TENTHS, seed, {}).values()) == {"train"}


@pytest.mark.parametrize(("test", "validation"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_bad_fractions_are_refused(test, validation):
    with pytest.raises(ValueError, match="fractions of"):
        assign_tiers(uses(names(3)), [], {"test": test, "validation": validation}, 0, {})


def test_leaks_within_and_across_sessions():
    tiers: dict[tuple[str, str], set[Tier]] = {
        ("s2", "a"): {"train"},
        ("s1", "a"): {"train", "test"},  # one session shows it in both
        ("s3", "a"): {"validation"},
        ("s1", "b"): {"train"},
        ("s2", "c"): {"test"},  # like b, of another session
        ("s1", "d"): {"train"},
        ("s1", "e"): {"validation"},  # like d, of the same session
        ("s1", "f"): {"train"},
        ("s2", "f"): {"train"},
        ("s1", "g"): {"test"},
        ("s2", "g"): {"validation"},
    }
    pairs = [Pair("b", "c", 0.25, 7.5), Pair("d", "e", 1.0, 2.0)]
    pairs += [Pair("b", "f", 1.0, 0.0), Pair("c", "g", 1.0, 0.0)]  # on one side
    pairs += [Pair("b", "z", 1.0, 0.0), Pair("y", "z", 1.0, 0.0)]  # of no session
    assert find_leaks(tiers, pairs) == [
        Leak("a", "a", ("s1", "s2"), (("s1", "test"), ("s3", "validation")), 1.0, 0.0),
        Leak("b", "c", ("s1",), (("s2", "test"),), 0.25, 7.5),
        Leak("d", "e", ("s1",), (("s1", "validation"),), 1.0, 2.0),
    ]
    assert find_leaks({}, pairs) == []


def test_leaks_are_found_whichever_of_a_pair_is_trained_on():
    both: set[Tier] = {"train", "test"}
    tiers: dict[tuple[str, str], set[Tier]] = {("s", "b"): {"train"}, ("t", "a"): {"test"}}
    assert find_leaks(tiers, [Pair("a", "b", 0.5, 3.0)]) == [
        Leak("b", "a", ("s",), (("t", "test"),), 0.5, 3.0)
    ]
    found = find_leaks({("s", "a"): both, ("s", "b"): both}, [Pair("a", "b", 0.5, 3.0)])
    assert [(leak.trained, leak.held_out, leak.share) for leak in found] == [
        ("a", "a", 1.0),
        ("a", "b", 0.5),
        ("b", "a", 0.5),
        ("b", "b", 1.0),
    ]
