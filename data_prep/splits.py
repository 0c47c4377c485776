"""Tiers of movies: made so that movies that are alike share one, and leaks between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from data_prep.near_duplicates import Pair, groups
from fmcortex.data.manifest import Tier

#: Of movies that are alike, all have the tier that comes first here of those that are known.
_STRICTEST: tuple[Tier, ...] = ("test", "validation", "train")
#: Order in which tiers get a group each where there are few.
_NEEDED: tuple[Tier, ...] = ("train", "test", "validation")


@dataclass(frozen=True)
class MovieUse:
    """How a movie was shown.

    Attributes:
        movie: its id.
        seconds: its length.
        times: how often it was shown to one mouse, at most. A score that is relative to the
            reliability of responses, as CC_max, needs two showings or more.
    """

    movie: str
    seconds: float
    times: int


@dataclass(frozen=True, order=True)
class Leak:
    """A movie in training, and the same or one that is alike in validation or test.

    Sessions share a core, so that it matters as much where the two are in different ones.

    Attributes:
        trained: the movie in training.
        held_out: the movie in validation or test; the same id where it is the same movie.
        trained_in: the sessions that train on `trained`, sorted.
        held_out_in: the sessions that hold `held_out` out and in which tier, sorted.
        share: as in `Pair`; 1 of the same movie.
        distance: as in `Pair`, bits; 0 of the same movie.
    """

    trained: str
    held_out: str
    trained_in: tuple[str, ...]
    held_out_in: tuple[tuple[str, Tier], ...]
    share: float
    distance: float


@dataclass(frozen=True)
class _Group:
    """Movies that are alike: how many, whether one was repeated, and a number in [0, 1)."""

    movies: int
    repeated: bool
    number: float


def assign_tiers(
    uses: Sequence[MovieUse],
    pairs: Sequence[Pair],
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, Tier],
) -> dict[str, Tier]:
    """The tier of each movie, one for all that `pairs` join, directly or not.

    A group with known movies takes their tier; where they disagree, test comes before validation
    and training. Each other group has a number in [0, 1), the SHA-256 of the seed and its smallest
    id: below the fraction for test it is in test, below the sum of both in validation. So groups do
    not depend on each other, and movies that are added later leave others' tiers alone, unless
    they join their group.

    There are two exceptions, in which the other movies matter:

    - Movies that were shown more than once are held out before others, for test first: only they
      have a reliability to compare scores with. If some were and some not, the two kinds have
      thresholds of their own, such that the expected numbers of movies in test and validation are
      the fractions. The same makes up for a group with more movies than the larger fraction: it
      is for training.
    - Training, then test, then validation have a group each where there are enough, unless their
      fraction is zero. A tier without one gets it from the one with most: thresholds move.

    Args:
        uses: the movies.
        pairs: movies that are alike, each in `uses` or `known`.
        fractions: of the movies in groups without known ones, those for "validation" and "test".
        seed: of the numbers.
        known: tiers of movies that have one already; they need not be in `uses`.

    Raises:
        ValueError: fractions that are negative, or leave nothing for training.
        KeyError: a pair names a movie that is in neither `uses` nor `known`.
    """
    test, validation = fractions["test"], fractions["validation"]
    if min(test, validation) < 0 or test + validation >= 1:
        raise ValueError(f"fractions of {test:g} for test, {validation:g} for validation")
    names = groups(chain((use.movie for use in uses), known), pairs)
    fixed = _fixed(names, known.items())
    members: dict[str, list[MovieUse]] = {}
    for use in uses:
        members.setdefault(names[use.movie], []).append(use)
    free = {
        name: _Group(len(some), any(use.times > 1 for use in some), _number(seed, name))
        for name, some in members.items()
        if name not in fixed
    }
    present = [fixed[name] for name in members if name in fixed]
    needed = [tier for tier in _NEEDED if tier == "train" or fractions[tier] > 0]
    tiers = fixed | _drawn(free, test, validation, [t for t in needed if t not in present])
    return {use.movie: tiers[names[use.movie]] for use in uses}


def assign_apart(
    uses: Sequence[MovieUse],
    pairs: Sequence[Pair],
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, Tier],
) -> dict[str, Tier | None]:
    """As `assign_tiers`, but None for movies that would leak, whatever their tier.

    Known movies stay where they are, so a new one goes to the side of those that it is like; new
    ones that are alike are still in one tier. Left out is a new one that is like known ones of both
    sides, and of new ones that join the two sides together, those that are like one in training.
    """
    new = {use.movie for use in uses} - set(known)
    ties: dict[str, set[Tier]] = {}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if one in new and other in known:
                ties.setdefault(one, set()).add(known[other])
    out = {movie for movie, some in ties.items() if "train" in some and len(some) > 1}
    free = new - out
    joined = [pair for pair in pairs if pair.first in free and pair.second in free]
    names = groups(sorted(free), joined)
    fixed = _fixed(names, [(movie, tier) for movie in free for tier in ties.get(movie, ())])
    tiers = assign_tiers(
        [use for use in uses if use.movie not in out],
        joined,
        fractions,
        seed,
        {**known, **{m: fixed[names[m]] for m in free if names[m] in fixed}},
    )
    out |= {movie for movie in free if "train" in ties.get(movie, ()) and tiers[movie] != "train"}
    return {use.movie: None if use.movie in out else tiers[use.movie] for use in uses}


def _fixed(names: Mapping[str, str], known: Iterable[tuple[str, Tier]]) -> dict[str, Tier]:
    """The tiers of the groups that have a movie with a known one."""
    found: dict[str, set[Tier]] = {}
    for movie, tier in known:
        found.setdefault(names[movie], set()).add(tier)
    return {name: next(t for t in _STRICTEST if t in some) for name, some in found.items()}


def _number(seed: int, name: str) -> float:
    """A number in [0, 1) of a group: 48 bits of a SHA-256."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _drawn(
    free: Mapping[str, _Group], test: float, validation: float, needed: Sequence[Tier]
) -> dict[str, Tier]:
    """Tiers of groups by their numbers, each of `needed` with one where there are enough."""
    total = sum(group.movies for group in free.values())
    most = max(1.0, total * max(test, validation))

    def kind(name: str) -> int:
        return 2 if free[name].movies > most else 0 if free[name].repeated else 1

    # Test, validation and training are stretches of this order, one after the other: a kind has
    # thresholds below 1 only where all of the kinds before are used up.
    order = sorted(free, key=lambda name: (kind(name), free[name].number, name))
    below_first = below_second = before = 0
    for which in (0, 1):
        some = [free[name] for name in order if kind(name) == which]
        movies = sum(group.movies for group in some)
        first, second = test * total - before, (test + validation) * total - before
        below_first += sum(group.number * movies < first for group in some)
        below_second += sum(group.number * movies < second for group in some)
        before += movies
    counts: dict[Tier, int] = {
        "test": below_first,
        "validation": below_second - below_first,
        "train": len(order) - below_second,
    }
    least = {tier: int(tier in needed[: len(order)]) for tier in counts}
    for tier in _NEEDED:
        if counts[tier] < least[tier]:
            donor = max(counts, key=lambda other: counts[other] - least[other])
            counts[donor] -= 1
            counts[tier] += 1
    stretches = chain.from_iterable([tier] * counts[tier] for tier in _STRICTEST)
    return dict(zip(order, stretches, strict=True))


def find_leaks(tiers: Mapping[tuple[str, str], set[Tier]], pairs: Iterable[Pair]) -> list[Leak]:
    """Each movie in training with each that is the same or alike in validation or test.

    Args:
        tiers: those that a session has a movie in, by (session, movie).
        pairs: movies that are alike; those that no session has are ignored.

    Returns:
        The leaks, sorted by their movies: one of two movies, whatever the number of sessions.
    """
    trained: dict[str, list[str]] = {}
    held_out: dict[str, list[tuple[str, Tier]]] = {}
    for (session, movie), some in sorted(tiers.items()):
        for tier in sorted(some):
            if tier == "train":
                trained.setdefault(movie, []).append(session)
            else:
                held_out.setdefault(movie, []).append((session, tier))
    alike = [(movie, movie, 1.0, 0.0) for movie in trained]
    for pair in pairs:
        alike.append((pair.first, pair.second, pair.share, pair.distance))
        alike.append((pair.second, pair.first, pair.share, pair.distance))
    return sorted(
        Leak(first, second, tuple(trained[first]), tuple(held_out[second]), share, distance)
        for first, second, share, distance in alike
        if first in trained and second in held_out
    )
