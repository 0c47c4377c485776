"""Placement: which rank carries which lanes, and so which sessions live on it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fmcortex import storage
from fmcortex.errors import ConfigError, StorageError

#: What the core costs in a micro-batch, in neurons of a readout: an assumption for runs whose
#: micro-batches were not timed yet. Results do not depend on it.
CORE_NEURONS = 4000
#: Of the file of measured costs.
COSTS_VERSION = 1
#: The imbalance that is good enough: below it, sessions are not split over more ranks.
TOLERANCE = 0.01
#: The least by which an exchange lowers the busiest rank's load, as a fraction.
GAIN = 0.001
#: The most exchanges between the busiest and another rank, for each rank.
EXCHANGES = 20
#: The most times that all lanes are gone through to bring those of a session together.
GATHERINGS = 5


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
        mean = sum(self.loads) / len(self.loads)
        return max(self.loads) / mean - 1 if mean else 0.0

    @cached_property
    def holders(self) -> dict[str, list[int]]:
        """The ranks on which each session lives, ascending."""
        found: dict[str, list[int]] = {}
        for rank, names in enumerate(self.sessions):
            for name in names:
                found.setdefault(name, []).append(rank)
        return dict(sorted(found.items()))


def micro_batch_costs(
    neurons: Mapping[str, int], measured: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Cost of a micro-batch of each session: the core's, equal for all, and its neurons' own.

    Args:
        neurons: of each session.
        measured: seconds of a micro-batch of some sessions; None where nothing was measured.

    Returns:
        Seconds: measured, or on the line through those measured; without any, in neurons.

    Raises:
        ConfigError: something was measured, but of none of these sessions.
    """
    if measured is None:
        return {name: float(CORE_NEURONS + count) for name, count in neurons.items()}
    known = sorted(set(measured) & set(neurons))
    if not known:
        raise ConfigError(
            "cluster.costs: it has no session of this run; name the file of another run, or none"
        )
    x = np.array([neurons[name] for name in known], float)
    y = np.array([measured[name] for name in known])
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
    core = float(y.mean() - slope * x.mean())
    if slope <= 0 or core <= 0:  # too few to tell the two apart
        slope = float(y.mean() / (CORE_NEURONS + x.mean()))
        core = slope * CORE_NEURONS
    return {name: measured.get(name, core + slope * count) for name, count in neurons.items()}


def write_costs(url: str, seconds: Mapping[str, float]) -> None:
    """Write the measured seconds of a micro-batch of each session, to be read by `read_costs`."""
    storage.write_json(url, {"version": COSTS_VERSION, "seconds": dict(seconds)})


def read_costs(url: str) -> dict[str, float]:
    """The measured seconds of a micro-batch of each session, as `write_costs` left them.

    Raises:
        ConfigError: the file cannot be read or is malformed; it names the file and the fault.
    """
    try:
        document = storage.read_json(url)
    except StorageError as error:
        raise ConfigError(f"cluster.costs: {error}") from error
    where = f"cluster.costs: {url}"
    if not isinstance(document, dict) or document.get("version") != COSTS_VERSION:
        raise ConfigError(f"{where}: expected an object with version {COSTS_VERSION}")
    seconds = document.get("seconds")
    if not isinstance(seconds, dict) or not seconds:
        raise ConfigError(f"{where}: seconds: expected an object of sessions and their seconds")
    for name, value in seconds.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ConfigError(f"{where}: seconds.{name}: expected a number above 0, got {value!r}")
    return {name: float(value) for name, value in seconds.items()}


def configured_costs(neurons: Mapping[str, int], costs: str | None) -> dict[str, float]:
    """Cost of a micro-batch of each session, by the file `costs` of the configuration, if any.

    Args:
        neurons: of each session.
        costs: `cluster.costs`.

    Raises:
        ConfigError: see `read_costs` and `micro_batch_costs`.
    """
    return micro_batch_costs(neurons, read_costs(costs) if costs else None)


def place_lanes(
    lanes: Sequence[Sequence[str]], costs: Mapping[str, float], ranks: int
) -> Placement:
    """Place lanes on ranks, balanced by cost, and each session on few ranks.

    A session's lanes stay together unless the balance wants them apart: whole sessions are placed
    first, the largest first, and only if the busiest rank is then more than `TOLERANCE` above the
    mean do single lanes move. Equal inputs give equal placements, whatever the order of `costs`.

    Args:
        lanes: the turns of each lane.
        costs: of a micro-batch of each session, in any unit.
        ranks: how many.

    Raises:
        ConfigError: there are more ranks than lanes.
    """
    if ranks > len(lanes):
        raise ConfigError(
            f"cluster.workers: {ranks} workers, but the run has {len(lanes)} lanes to share "
            "between them; use fewer workers, or more lanes (training.lanes)"
        )
    of_lane = [sum(costs[name] for name in names) / len(names) for names in lanes]
    groups: dict[tuple[str, ...], list[int]] = {}
    for lane, names in enumerate(lanes):
        groups.setdefault(tuple(sorted(set(names))), []).append(lane)
    order = sorted(groups)
    search = _Search(
        [sum(of_lane[lane] for lane in groups[key]) / len(groups[key]) for key in order],
        [len(groups[key]) for key in order],
        ranks,
    )
    search.run()
    waiting = {key: iter(groups[key]) for key in order}
    held: list[list[int]] = [[] for _ in range(ranks)]
    for rank in range(ranks):
        for group, key in enumerate(order):
            held[rank] += [next(waiting[key]) for _ in range(search.counts[group, rank])]
        held[rank].sort()
    return Placement(
        lanes=held,
        sessions=[sorted({n for lane in mine for n in lanes[lane]}) for mine in held],
        loads=[sum(of_lane[lane] for lane in mine) for mine in held],
    )


@dataclass(frozen=True)
class _Options:
    """Exchanges of each of the items `mine` (rows) of the rank `source` for one of another rank.

    Attributes:
        source: the rank.
        mine: its items.
        others: items of other ranks; the columns after theirs stand for none.
        ranks: the other rank of each column.
        less: the load that leaves `source`, and comes to the other rank.
        peak: the larger of both loads afterwards; infinite where it cannot be done.
        more: on how many more ranks sessions then are.
    """

    source: int
    mine: np.ndarray
    others: np.ndarray
    ranks: np.ndarray
    less: np.ndarray
    peak: np.ndarray
    more: np.ndarray


class _Search:
    """Finds a balanced placement of groups of equal lanes.

    Args:
        costs: of a lane of each group.
        sizes: lanes of each group.
        ranks: how many.

    Attributes:
        counts: lanes of each group on each rank.
    """

    def __init__(self, costs: Sequence[float], sizes: Sequence[int], ranks: int) -> None:
        self.costs, self.sizes, self.ranks = np.asarray(costs, float), list(sizes), ranks
        mean = float(self.costs @ np.asarray(sizes)) / ranks
        self.target = mean * (1 + TOLERANCE)
        chunks = self._chunks()
        # What is placed: its group, its number of lanes, its rank.
        self.groups = np.array([group for _, group, _ in chunks])
        self.widths = np.array([width for _, _, width in chunks])
        self.places, self.loads = self._greedy([-cost for cost, _, _ in chunks])

    def run(self) -> None:
        """Exchange whole groups between ranks, and where that does not do, single lanes."""
        self._exchange()
        if self.loads.max() > self.target:
            lanes = np.repeat(np.arange(len(self.groups)), self.widths)
            self.groups, self.places = self.groups[lanes], self.places[lanes]
            self.widths = np.ones(len(lanes), int)
            self._exchange()
            self._gather()
        self.counts = np.zeros((len(self.costs), self.ranks), int)
        np.add.at(self.counts, (self.groups, self.places), self.widths)

    def _chunks(self) -> list[tuple[float, int, int]]:
        """(-cost, group, lanes): whole groups, halved while one fits no rank or a rank has none."""
        chunks = [
            (-cost * size, group, size)
            for group, (cost, size) in enumerate(zip(self.costs, self.sizes, strict=True))
        ]
        heapq.heapify(chunks)
        small: list[tuple[float, int, int]] = []  # what cannot be halved
        while chunks and (-chunks[0][0] > self.target or len(chunks) + len(small) < self.ranks):
            chunk = heapq.heappop(chunks)
            _, group, size = chunk
            if size == 1:
                small.append(chunk)
                continue
            for part in (size // 2, size - size // 2):
                heapq.heappush(chunks, (-self.costs[group] * part, group, part))
        return sorted(chunks + small)

    def _greedy(self, costs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """The rank of each chunk, and each rank's load: longest first, to the lightest rank."""
        places, loads = np.zeros(len(costs), int), np.zeros(self.ranks)
        lightest = [(False, 0.0, rank) for rank in range(self.ranks)]  # an empty one comes first
        for i, cost in enumerate(costs):
            _, load, rank = heapq.heappop(lightest)
            places[i], loads[rank] = rank, load + cost
            heapq.heappush(lightest, (True, load + cost, rank))
        return places, loads

    def _count(self) -> None:
        """Count the items of each group on each rank."""
        self.held = np.zeros((len(self.costs), self.ranks), int)
        np.add.at(self.held, (self.groups, self.places), 1)

    def _exchange(self) -> None:
        """Move items from the busiest rank, or swap them, while that lowers its load by `GAIN`.

        Of the exchanges that bring both ranks below the target, the one that leaves sessions on
        the fewest ranks; else the one after which the busier of the two does least.
        """
        self._count()
        for _ in range(EXCHANGES * self.ranks):
            busiest = int(self.loads.argmax())
            load = self.loads[busiest]
            if load <= self.target:
                return
            mine = np.flatnonzero(self.places == busiest)
            kinds = self.groups[mine] * (self.widths.max() + 1) + self.widths[mine]
            one_each = mine[np.sort(np.unique(kinds, return_index=True)[1])]
            options = self._options(busiest, one_each)
            if not options.peak.min() < load * (1 - GAIN):
                return
            good = options.peak <= self.target
            score = options.more * load + options.peak
            self._apply(options, np.where(good, score, np.inf) if good.any() else options.peak)

    def _gather(self) -> None:
        """Bring lanes of a session together where no rank comes to do more than is done now."""
        self._count()
        most = max(self.target, float(self.loads.max()))
        for _ in range(GATHERINGS):
            before = int((self.held > 0).sum())
            for item in range(len(self.groups)):
                group, rank = self.groups[item], int(self.places[item])
                if self.held[group, rank] == 1 and (self.held[group] > 0).sum() > 1:
                    options = self._options(rank, np.array([item]))
                    good = (options.peak <= most) & (options.more < 0)
                    if good.any():
                        score = options.more * 2 * most + options.peak
                        self._apply(options, np.where(good, score, np.inf))
            if int((self.held > 0).sum()) == before:
                return

    def _options(self, source: int, mine: np.ndarray) -> _Options:
        """What can be done with the items `mine` of rank `source`."""
        others = np.flatnonzero(self.places != source)
        # Against every item of the other ranks, and against nothing: then it is a move.
        ranks = np.concatenate([self.places[others], np.arange(self.ranks)])
        costs = self.costs[self.groups] * self.widths
        less = costs[mine][:, None] - np.concatenate([costs[others], np.zeros(self.ranks)])
        peak = np.maximum(self.loads[source] - less, self.loads[ranks] + less)
        swaps = len(others)
        peak[:, swaps + source] = np.inf
        if (self.places == source).sum() == 1:  # no rank is left without lanes
            peak[:, swaps:] = np.inf
        ours, theirs = self.groups[mine], self.groups[others]
        more = (self.held[ours][:, ranks] == 0).astype(int)
        more -= (self.held[ours, source] == 1)[:, None]
        more[:, :swaps] += self.held[theirs, source] == 0
        more[:, :swaps] -= self.held[theirs, ranks[:swaps]] == 1
        same = ours[:, None] == theirs
        peak[:, :swaps][same] = np.inf
        return _Options(source, mine, others, ranks, less, peak, more)

    def _apply(self, options: _Options, score: np.ndarray) -> None:
        """Do the option of the lowest score; of equals, the first."""
        i, j = np.unravel_index(int(score.argmin()), score.shape)
        source, to = options.source, int(options.ranks[j])
        pairs = [(options.mine[i], source, to)]
        if j < len(options.others):
            pairs.append((options.others[j], to, source))
        for item, old, new in pairs:
            self.held[self.groups[item], old] -= 1
            self.held[self.groups[item], new] += 1
            self.places[item] = new
        self.loads[source] -= options.less[i, j]
        self.loads[to] += options.less[i, j]
