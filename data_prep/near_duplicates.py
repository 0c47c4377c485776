"""Movies that show the same thing: found by perceptual hashes, whatever their encoding.

Two movies with different bytes may hold the same footage: encoded again, resized, brighter, or cut
from one film with another start. Such a pair in training and test would make scores too good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from data_prep.resampling import area_weights

#: Seconds between hashes. Of two clips cut from one film anywhere, each hash has one in the other
#: that is taken at most half of this before or after.
SPACING = 0.3
#: Seconds that a hash is of.
WINDOW = 0.6
#: Grey levels of standard deviation over a window's mean below which it has no hash.
LEAST_CONTRAST = 4.0
#: Side of the square that frames are reduced to, and of the block of DCT coefficients, pixels.
SIDE, BITS = 32, 8
#: Bits of 64 in which hashes of the same footage differ at most.
DISTANCE = 10
#: Matching hashes that make a pair.
MATCHES = 3
#: Mean distance of matching hashes, bits, at which a stretch that hardly changes counts as well.
STILL = 5.0
#: Hashes that are compared with each other at a time, so that buffers fit in a cache.
_ROWS, _COLUMNS = 32, 4096

_POWERS = np.uint64(1) << np.arange(BITS * BITS, dtype=np.uint64)


@dataclass(frozen=True)
class Pair:
    """Two movies that share a stretch.

    Attributes:
        first: the smaller id.
        second: the larger.
        share: of the hashes of the one with fewer of them, the part that match, 0 to 1.
        distance: their mean distance, bits of 64.
    """

    first: str
    second: str
    share: float
    distance: float


def frame_hashes(movie: np.ndarray, rate: float) -> np.ndarray:
    """Perceptual hashes of a movie, one every `SPACING` seconds, each of `WINDOW` seconds' mean.

    A hash is the pHash of Zauner ("Implementation and benchmarking of perceptual image hash
    functions", 2010, section 3.2.1): 64 bits say which of the 8 x 8 lowest spatial frequencies of
    a two-dimensional DCT, without those of frequency zero, are above their median; brightness and
    contrast do not change them. Averaging over time first (as Esmaeili et al., IEEE Trans. Inf.
    Forensics Secur. 6, 213-226, 2011) makes a hash change slowly with the time it is taken at.
    Windows without structure, such as a grey screen or a fast full-field grating, are left out.

    Args:
        movie: uint8 [T, H, W], T >= 1.
        rate: Hz.

    Returns:
        uint64 [k] in the order of time; k is 0 where nothing has structure. A movie shorter than
        a window has one hash at most.

    Raises:
        ValueError: a rate that is not positive, no frames, or fewer than 9 pixels a side.
    """
    frames, rows, columns = movie.shape
    if not rate > 0 or frames < 1 or min(rows, columns) <= BITS:
        raise ValueError(f"cannot hash {frames} frames of {rows} x {columns} pixels at {rate} Hz")
    down = area_weights(rows, min(rows, SIDE))
    right = area_weights(columns, min(columns, SIDE)).T
    count = max(1, int((frames / rate - WINDOW) / SPACING + 1e-6) + 1)
    found = []
    for start in np.arange(count) * SPACING:
        # The frames whose onset is in the window; rounding must not make it one longer.
        first, last = np.ceil(np.array([start, start + WINDOW]) * rate - 1e-6).astype(int)
        mean = movie[first : max(first + 1, last)].mean(axis=0, dtype=np.float64)
        image = down @ mean @ right
        if image.std() >= LEAST_CONTRAST:
            low = fft.dctn(image, norm="ortho")[1 : BITS + 1, 1 : BITS + 1].ravel()
            found.append(_POWERS[low > np.median(low)].sum(dtype=np.uint64))
    return np.array(found, np.uint64)


def near_duplicates(
    hashes: Mapping[str, np.ndarray],
    distance: int = DISTANCE,
    matches: int = MATCHES,
    still: float = STILL,
) -> list[Pair]:
    """All pairs of movies that share a stretch.

    Two hashes match where they differ in `distance` bits at most. Two movies share a stretch where
    `matches` or more of their hashes match at one shift in time, to one hash: a single frame that
    looks alike does not join two films. Where these hashes are of something that hardly changes,
    one coincidence makes them all match. So either `matches` of them must differ among
    themselves, each by more than `distance` from the one before, or their mean distance must be
    `still` or less. Of a movie with fewer hashes than `matches` all must match, within `still`.

    Args:
        hashes: those of `frame_hashes`, by the movies' ids.
        distance: bits of 64.
        matches: hashes, at least 1.
        still: bits of 64.

    Returns:
        The pairs, sorted by their ids.
    """
    names = [name for name in sorted(hashes) if len(hashes[name])]
    if len(names) < 2:
        return []
    parts = [np.asarray(hashes[name], np.uint64) for name in names]
    lengths = np.array([len(part) for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    everything = np.concatenate(parts)
    found = []
    for number, own in enumerate(parts[:-1]):
        mine, theirs, bits = _within(own, everything, int(starts[number + 1]), distance)
        edges = np.searchsorted(theirs, starts)
        needed = np.minimum(matches, np.minimum(lengths, len(own)))
        for other in np.flatnonzero(np.diff(edges) >= needed):
            part = slice(edges[other], edges[other + 1])
            indices, nearest, count = _stretch(mine[part], theirs[part] - starts[other], bits[part])
            mean = float(nearest.mean())
            changing = _changes(own[indices], distance) >= matches
            if count >= needed[other] and (changing or mean <= still):
                share = count / int(min(lengths[other], len(own)))
                found.append(Pair(names[number], names[other], share, mean))
    return found


def groups(ids: Iterable[str], pairs: Sequence[Pair]) -> dict[str, str]:
    """The group of each id: the smallest id of those that pairs join it to, directly or not.

    Raises:
        KeyError: a pair names a movie that is not among `ids`.
    """
    parent = {name: name for name in sorted(set(ids))}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    return {name: root(name) for name in parent}


def _within(
    own: np.ndarray, everything: np.ndarray, start: int, distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of hashes within `distance` bits: index in `own`, in `everything`, and their bits.

    Only hashes from `start` on are looked at. The pairs are sorted by the second index.
    """
    # Buffers that are used again: fresh ones make this three times slower.
    differ = np.empty((_ROWS, _COLUMNS), np.uint64)
    counts = np.empty((_ROWS, _COLUMNS), np.uint8)
    close = np.empty((_ROWS, _COLUMNS), bool)
    found = []
    for low in range(start, len(everything), _COLUMNS):
        columns = everything[low : low + _COLUMNS]
        for top in range(0, len(own), _ROWS):
            rows = own[top : top + _ROWS]
            part = np.s_[: len(rows), : len(columns)]
            np.bitwise_xor(rows[:, None], columns[None], out=differ[part])
            np.bitwise_count(differ[part], out=counts[part])
            np.less_equal(counts[part], distance, out=close[part])
            hits = np.flatnonzero(close[part])
            if len(hits):
                row, column = np.divmod(hits, len(columns))
                found.append((row + top, column + low, counts[row, column]))
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.uint8)
    mine, theirs, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(theirs, kind="stable")
    return mine[order], theirs[order], bits[order]


def _stretch(
    mine: np.ndarray, theirs: np.ndarray, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The matches at the shift in time that has most.

    Shifts may differ by one hash to either side, as a window left out makes them do.

    Args:
        mine: indices [n] of the hashes of the first movie that match.
        theirs: indices [n] of those of the second.
        bits: distances [n].

    Returns:
        The indices [k] in the first movie, the distance of the nearest match of each, and the
        number of hashes that match one to one.
    """
    shifts = theirs - mine
    # Row i: the shifts within one of shifts.min() - 1 + i.
    rows = shifts - shifts.min() + np.arange(3)[:, None]
    first = np.zeros((rows.max() + 1, mine.max() + 1), bool)
    second = np.zeros((rows.max() + 1, theirs.max() + 1), bool)
    first[rows, mine] = True
    second[rows, theirs] = True
    counts = np.minimum(first.sum(1), second.sum(1))
    best = int(counts.argmax())
    near = (rows == best).any(0)
    nearest = np.full(mine.max() + 1, np.inf)
    np.minimum.at(nearest, mine[near], bits[near])
    indices = np.flatnonzero(first[best])
    return indices, nearest[indices], int(counts[best])


def _changes(hashes: np.ndarray, distance: int) -> int:
    """How many of `hashes` in their order differ from the last that counted by > `distance`."""
    count = 0
    last = None
    for value in hashes:
        if last is None or np.bitwise_count(value ^ last) > distance:
            count, last = count + 1, value
    return count
