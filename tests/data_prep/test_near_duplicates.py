import math

import numpy as np
import pytest
from scipy import fft, sparse

from data_prep import near_duplicates as module
from data_prep.near_duplicates import Pair, frame_hashes, groups, near_duplicates
from data_prep.resampling import reduce_area, reduce_bilinear
from data_prep.simulator.movies import natural_movie

RATE = 30.0


def pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noisy(movie: np.ndarray) -> np.ndarray:
    return pixels(movie + np.random.default_rng(1).normal(0, 6, movie.shape))


def encoded(movie: np.ndarray) -> np.ndarray:
    """As a lossy encoder does it: coefficients of 8 x 8 blocks in steps of 40."""
    frames, rows, columns = movie.shape
    blocks = movie.reshape(frames, rows // 8, 8, columns // 8, 8).astype(np.float64)
    coefficients = np.rint(fft.dctn(blocks, axes=(2, 4), norm="ortho") / 40) * 40
    return pixels(fft.idctn(coefficients, axes=(2, 4), norm="ortho").reshape(movie.shape))


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """Twenty seconds."""
    return natural_movie(600, 72, 128, RATE, np.random.default_rng(0))


@pytest.fixture(scope="module")
def others() -> dict[str, np.ndarray]:
    """Hashes of fifty other films of ten seconds."""
    rng = np.random.default_rng(5)
    films = (natural_movie(300, 36, 64, RATE, rng) for _ in range(50))
    return {f"other-{number}": frame_hashes(movie, RATE) for number, movie in enumerate(films)}


def assert_only_pair(film, changed, others, rate=RATE) -> Pair:
    hashes = {**others, "a": frame_hashes(film, RATE), "b": frame_hashes(changed, rate)}
    (found,) = near_duplicates(hashes)
    assert (found.first, found.second) == ("a", "b")
    return found


@pytest.mark.parametrize(
    "change",
    [
        noisy,
        encoded,
        lambda movie: pixels(0.8 * movie + 40),  # brighter, with less contrast
        lambda movie: pixels(255 * (movie / 255) ** 1.4),  # another gamma
        lambda movie: reduce_area(movie, 36, 64),
        lambda movie: reduce_bilinear(movie, 36, 64),
        lambda movie: reduce_bilinear(movie, 90, 160),
        lambda movie: noisy(encoded(reduce_area(movie, 40, 64))),
    ],
    ids=["noise", "encoding", "brightness", "gamma", "area", "bilinear", "larger", "all"],
)
def test_the_same_footage_is_a_pair(film, others, change):
    found = assert_only_pair(film[:300], change(film[:300]), others)
    assert found.share == 1
    assert found.distance < 4


def test_another_frame_rate_is_a_pair(film, others):
    found = assert_only_pair(film[:300], film[:300:2], others, rate=RATE / 2)
    assert found.share == 1
    assert found.distance < 4


@pytest.mark.parametrize("start", [1, 3, 4, 5, 8, 9, 50, 103, 200])
def test_another_cut_of_a_film_is_a_pair(film, others, start):
    """Also by half the time between two hashes, 4.5 frames, which is farthest from any."""
    found = assert_only_pair(film[:300], noisy(film[start : start + 300]), others)
    shared = (300 - start) / 300
    assert 0.75 * shared < found.share <= min(1, shared + 0.05)
    # A short clip from the middle is wholly of the film.
    assert assert_only_pair(film[:300], film[start : start + 60], others).share > 0.9


def test_different_films_are_no_pairs(film, others):
    assert all(len(some) == 32 for some in others.values())
    assert near_duplicates({**others, "film": frame_hashes(film, RATE)}) == []


def test_a_frame_that_looks_alike_joins_no_films():
    rng = np.random.default_rng(2)
    first, second = (natural_movie(300, 36, 64, RATE, rng) for _ in range(2))
    assert near_duplicates({"a": frame_hashes(first, RATE), "b": frame_hashes(second, RATE)}) == []
    for length in (1, 18):  # 18 frames are a whole window
        copy = second.copy()
        copy[90 : 90 + length] = first[90]
        first_copy = first.copy()
        first_copy[90 : 90 + length] = first[90]
        hashes = {"a": frame_hashes(first_copy, RATE), "b": frame_hashes(copy, RATE)}
        # There is such a hash: the window that begins at 3 s.
        same = np.bitwise_count(hashes["a"][10] ^ hashes["b"][10])
        assert (same == 0) == (length == 18)
        assert near_duplicates(hashes) == []


def test_what_has_no_structure_has_no_hash():
    grey = np.full((90, 36, 64), 128, np.uint8)
    assert len(frame_hashes(grey, RATE)) == 0
    assert len(frame_hashes(noisy(grey), RATE)) == 0
    # A grating of 10 Hz drifts through six cycles in a window.
    phase = np.arange(64) / 16 - (np.arange(90) / 3)[:, None]
    grating = np.repeat(pixels(127.5 + 120 * np.sin(2 * np.pi * phase))[:, None], 36, axis=1)
    assert len(frame_hashes(grating, RATE)) == 0
    assert near_duplicates({"a": np.zeros(0, np.uint64), "b": np.zeros(0, np.uint64)}) == []
    # Grey before a film: the windows that are grey, whole or nearly so, are left out.
    film = natural_movie(90, 36, 64, RATE, np.random.default_rng(3))
    count = len(frame_hashes(film, RATE))
    assert count <= len(frame_hashes(np.concatenate([grey, film]), RATE)) <= count + 1


def bits_of(value: np.uint64) -> np.ndarray:
    """Bits [8, 8] by vertical and horizontal frequency less one; the least significant first."""
    return np.array([int(value) >> bit & 1 for bit in range(64)]).reshape(8, 8)


def test_hash_of_an_impulse_by_the_formula():
    """At the corner of 9 x 10 pixels, a DCT-II is a product of cosines of half a pixel."""
    image = np.zeros((1, 9, 10), np.uint8)
    image[0, 0, 0] = 255
    low = [
        [math.cos(math.pi * k / 18) * math.cos(math.pi * l / 20) for l in range(1, 9)]  # noqa: E741
        for k in range(1, 9)
    ]
    ordered = np.sort(low, axis=None)
    assert ordered[32] - ordered[31] > 1e-3
    expected = (np.array(low) > (ordered[31] + ordered[32]) / 2).astype(int)
    (found,) = frame_hashes(image, RATE)
    np.testing.assert_array_equal(bits_of(found), expected)


def test_hash_of_a_sum_of_cosines_is_their_signs():
    """Each of the 64 frequencies has one bit; frequency zero and higher ones have none."""
    rng = np.random.default_rng(4)
    signs = rng.permutation(np.repeat([-1, 1], 32)).reshape(8, 8)
    phase = (np.arange(32) + 0.5) * math.pi / 32
    waves = np.cos(phase * np.arange(1, 9)[:, None])  # [frequency, pixel]
    image = 128 + 4 * np.einsum("kl,ky,lx->yx", signs, waves, waves)
    image += 5 * np.cos(3 * phase) + 5 * np.cos(9 * phase)[:, None] * np.cos(12 * phase)
    assert image.min() >= 0
    assert image.max() <= 255
    (found,) = frame_hashes(pixels(image)[None], RATE)
    np.testing.assert_array_equal(bits_of(found), (signs > 0).astype(int))
    # Four pixels for one, of which the mean is the same.
    larger = np.repeat(np.repeat(pixels(image), 2, axis=0), 2, axis=1)
    assert frame_hashes(larger[None], RATE).tolist() == [found]


@pytest.mark.parametrize(
    ("frames", "rate", "count"),
    [(1, 30, 1), (17, 30, 1), (18, 30, 1), (26, 30, 1), (27, 30, 2), (300, 30, 32), (100, 10, 32)],
)
def test_hashes_are_of_windows_that_overlap_by_half(frames, rate, count):
    movie = natural_movie(frames, 16, 24, rate, np.random.default_rng(6))
    found = frame_hashes(movie, rate)
    assert found.dtype == np.uint64
    assert len(found) == count
    step = round(0.3 * rate)
    windows = [movie[step * n : step * (n + 2)] for n in range(count)]
    assert found.tolist() == [frame_hashes(window, rate)[0] for window in windows]


@pytest.mark.parametrize(
    ("shape", "rate"), [((0, 16, 16), 30), ((3, 8, 16), 30), ((3, 16, 8), 30), ((3, 16, 16), 0)]
)
def test_what_cannot_be_hashed_is_refused(shape, rate):
    with pytest.raises(ValueError, match="cannot hash"):
        frame_hashes(np.zeros(shape, np.uint8), rate)


# Rules for pairs, by hashes made by hand. Random ones differ in 32 +- 4 bits.


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, count, np.uint64)


def flipped(hashes: np.ndarray, bits: int) -> np.ndarray:
    return hashes ^ np.uint64((1 << bits) - 1)


def pairs_of(first: np.ndarray, second: np.ndarray) -> list[tuple[float, float]]:
    """Share and distance, which must not depend on which movie comes first."""
    found = near_duplicates({"a": first, "b": second})
    other = near_duplicates({"a": second, "b": first})
    assert [(p.first, p.second, p.share) for p in found] == [
        (p.first, p.second, p.share) for p in other
    ]
    return [(pair.share, pair.distance) for pair in found]


def test_hashes_match_within_ten_bits():
    own = random_hashes(6)
    assert pairs_of(own, flipped(own, 10)) == [(1, 10)]
    assert pairs_of(own, flipped(own, 11)) == []


def test_three_hashes_match_at_one_shift():
    own, other = random_hashes(6), random_hashes(8, seed=1)

    def with_own(*places: tuple[int, int]) -> np.ndarray:
        movie = other.copy()
        for mine, theirs in places:
            movie[theirs] = own[mine]
        return movie

    assert pairs_of(own, with_own((1, 3), (2, 4))) == []
    assert pairs_of(own, with_own((1, 3), (2, 4), (3, 5))) == [(0.5, 0)]
    assert pairs_of(own, with_own((0, 2), (3, 5), (5, 7))) == [(0.5, 0)]
    # A window was left out in between: the shift changes by one.
    assert pairs_of(own, with_own((1, 2), (2, 3), (4, 6))) == [(0.5, 0)]
    # The same hashes in another order are other footage.
    assert pairs_of(own, with_own((1, 5), (2, 3), (3, 1))) == []
    # One that comes again and again is one.
    assert pairs_of(own, with_own(*((2, place) for place in range(8)))) == []


def test_a_stretch_that_hardly_changes_counts_if_it_is_closer():
    still = np.repeat(random_hashes(1), 6)
    assert pairs_of(still, flipped(still, 5)) == [(1, 5)]
    assert pairs_of(still, flipped(still, 6)) == []
    # Three that differ are enough among them.
    mixed = np.concatenate([random_hashes(2, seed=1), still])
    assert pairs_of(mixed, flipped(mixed, 9)) == [(1, 9)]
    assert pairs_of(mixed[1:], flipped(mixed[1:], 9)) == []


def test_all_hashes_of_a_short_movie_must_match():
    film = random_hashes(10)
    for count in (1, 2):
        clip = film[4 : 4 + count]
        assert pairs_of(film, flipped(clip, 5)) == [(1, 5)]
        assert pairs_of(film, flipped(clip, 6)) == []
        assert pairs_of(clip, flipped(clip, 5)) == [(1, 5)]
    assert pairs_of(film, np.array([film[4], *random_hashes(1, seed=1)])) == []


def test_pairs_are_sorted_and_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(7)
    film = random_hashes(100)
    hashes = {}
    for number in rng.permutation(30).tolist():
        start, length = int(rng.integers(0, 90)), int(rng.integers(0, 20))
        flips = np.uint64(1) << rng.integers(0, 64, len(film[start : start + length]), np.uint64)
        hashes[f"{number:02}"] = film[start : start + length] ^ flips
    whole = near_duplicates(hashes)
    assert len(whole) > 50
    assert whole == sorted(whole, key=lambda pair: (pair.first, pair.second))
    assert all(pair.first < pair.second and 0 < pair.share <= 1 for pair in whole)
    monkeypatch.setattr(module, "_ROWS", 3)
    monkeypatch.setattr(module, "_COLUMNS", 7)
    assert near_duplicates(hashes) == whole


def test_groups_are_transitive():
    pairs = [Pair("b", "d", 1, 0), Pair("c", "d", 1, 0), Pair("e", "f", 1, 0)]
    expected = {"a": "a", "b": "b", "c": "b", "d": "b", "e": "e", "f": "e"}
    assert groups("fedcba", pairs) == expected
    assert groups("abcdef", pairs[::-1]) == expected
    assert groups([], []) == {}
    with pytest.raises(KeyError, match="g"):
        groups("ab", [Pair("a", "g", 1, 0)])


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_connected_components(seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(0, 200, (int(rng.integers(1, 250)), 2)), axis=1)
    names = [f"{number:03}" for number in range(200)]
    found = groups(names, [Pair(names[a], names[b], 1, 0) for a, b in edges])
    graph = sparse.coo_array((np.ones(len(edges)), tuple(edges.T)), (200, 200))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    smallest = {label: names[int(np.flatnonzero(labels == label)[0])] for label in set(labels)}
    assert found == {name: smallest[label] for name, label in zip(names, labels, strict=True)}
