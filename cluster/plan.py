"""Planning a run before it is started: who trains what where, and what that takes."""

from __future__ import annotations

import csv
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.placement import Placement, configured_costs, place_lanes
from fmcortex import plain_numbers
from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.lanes import place_sessions, session_weights
from fmcortex.errors import ConfigError
from fmcortex.training.activations import MicroBatch, activations
from fmcortex.training.fit import plan_of
from fmcortex.training.memory import (
    Memory,
    numbers,
    rank_memory,
    session_traffic,
    shared_traffic,
)

#: The imbalance above which other settings are looked for.
IMBALANCE = 0.03
#: Height and width of the stimulus, pixels, where there is no dataset yet that says.
STIMULUS = (144, 256)
COLUMNS = ("session", "neurons", "minutes")


@dataclass(frozen=True)
class Recordings:
    """What a plan must know of the recording sessions.

    Attributes:
        neurons: of each session.
        minutes: of its training data.
        stimulus: height and width, pixels.
    """

    neurons: dict[str, int]
    minutes: dict[str, float]
    stimulus: tuple[int, int] = STIMULUS


@dataclass(frozen=True)
class Hint:
    """Settings with as many clips a step that are better balanced."""

    lanes: int
    batch: int
    imbalance: float


@dataclass(frozen=True)
class RunPlan:
    """What a run would do.

    Attributes:
        recordings: that it trains on.
        lanes: the turns of each.
        batch: clips of a micro-batch.
        placement: of the lanes on ranks.
        measured: whether loads are measured seconds; else they are in neurons.
        drawn: how often the sessions are drawn, against what their weights ask for: the least and
            the most, 1 being exact.
        seconds: that placing sessions and lanes took.
        memory: of each rank.
        shared_bytes: of the shared part, that a rank hands to collectives in a step.
        session_bytes: of sessions on several ranks, likewise, of each rank.
        hints: better settings, where the ranks are badly balanced and there are any.
    """

    recordings: Recordings
    lanes: list[list[str]]
    batch: int
    placement: Placement
    measured: bool
    drawn: tuple[float, float]
    seconds: float
    memory: list[Memory]
    shared_bytes: int
    session_bytes: list[int]
    hints: list[Hint]

    @property
    def replicas(self) -> list[int]:
        """On how many ranks each session lies."""
        return [len(ranks) for ranks in self.placement.holders.values()]

    @property
    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        kinds = [asdict(memory) | {"total": memory.total} for memory in self.memory]
        return {
            "sessions": len(self.recordings.neurons),
            "ranks": len(self.placement.lanes),
            "lanes": len(self.lanes),
            "batch": self.batch,
            "clips_per_step": len(self.lanes) * self.batch,
            "drawn": {"least": self.drawn[0], "most": self.drawn[1]},
            "imbalance": self.placement.imbalance,
            "replicas": {
                "min": min(self.replicas),
                "median": statistics.median(self.replicas),
                "max": max(self.replicas),
            },
            "planning_seconds": self.seconds,
            "load_unit": "seconds" if self.measured else "neurons",
            "of_ranks": [
                {"lanes": len(lanes), "sessions": len(sessions), "load": load}
                for lanes, sessions, load in zip(
                    self.placement.lanes,
                    self.placement.sessions,
                    self.placement.loads,
                    strict=True,
                )
            ],
            "memory_bytes": {
                "largest": max(kinds, key=lambda kind: kind["total"]),
                "mean": {key: statistics.mean(kind[key] for kind in kinds) for key in kinds[0]},
            },
            "bytes_per_step": {
                "shared": self.shared_bytes,
                "sessions": {
                    "largest": max(self.session_bytes),
                    "mean": statistics.mean(self.session_bytes),
                },
            },
            "hints": [asdict(hint) for hint in self.hints],
        }


def read_recordings(path: str) -> Recordings:
    """The sessions in a CSV file with the columns session, neurons and minutes.

    Raises:
        ConfigError: the file is malformed; it names the file, the line and the column.
    """
    found = Recordings({}, {})
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: line 1: no column {', '.join(missing)}")
            for row in rows:
                _read_row(row, f"{path}: line {rows.line_num}", found)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file") from error
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num + 1}: not valid CSV: {error}") from error
    if not found.neurons:
        raise ConfigError(f"{path}: line 2: no session")
    return found


def _read_row(row: Mapping[str | None, Any], where: str, found: Recordings) -> None:
    name = (row["session"] or "").strip()
    if not name:
        raise ConfigError(f"{where}: column session: empty")
    if name in found.neurons:
        raise ConfigError(f"{where}: column session: {name} is there twice")
    found.neurons[name] = int(_number(row, "neurons", where, whole=True))
    found.minutes[name] = _number(row, "minutes", where)


def _number(row: Mapping[str | None, Any], column: str, where: str, whole: bool = False) -> float:
    text = (row[column] or "").strip()
    value = plain_numbers.whole(text) if whole else plain_numbers.number(text)
    if value is None or value <= 0:
        kind = "whole number" if whole else "number"
        raise ConfigError(f"{where}: column {column}: expected a {kind} above 0, got {text!r}")
    return value


def chosen(config: RunConfig, given: Recordings, where: str) -> Recordings:
    """Those of the given sessions, and those of their minutes, that the run trains on.

    Raises:
        ConfigError: `data.sessions` names another one, or `data.minutes` is more than there is.
    """
    names = sorted(given.neurons if config.data.sessions is None else config.data.sessions)
    unknown = [name for name in names if name not in given.neurons]
    if unknown:
        raise ConfigError(f"data.sessions: {', '.join(unknown)} not in {where}")
    wanted = config.data.minutes
    for name in names:
        if wanted is not None and wanted > given.minutes[name]:
            raise ConfigError(
                f"data.minutes: {wanted:g} minutes asked for, but session {name} has "
                f"{given.minutes[name]:.2f}"
            )
    return Recordings(
        {name: given.neurons[name] for name in names},
        {name: given.minutes[name] if wanted is None else wanted for name in names},
        given.stimulus,
    )


def recordings_of(config: RunConfig, dataset: PreparedDataset) -> Recordings:
    """What the run trains on of a prepared dataset.

    Raises:
        ConfigError: the configuration does not fit the dataset.
    """
    plan = plan_of(config, dataset)
    neurons, minutes, sizes = {}, {}, []
    for name in plan.sessions:
        manifest = dataset.session(name).manifest
        frames = sum(manifest.trials[trial].frames for trial in plan.trials[name])
        neurons[name], minutes[name] = manifest.neurons, frames / manifest.frame_rate / 60
        sizes.append((manifest.height, manifest.width))
    return Recordings(neurons, minutes, max(sizes, key=lambda size: size[0] * size[1]))


def _wanted(config: RunConfig, recordings: Recordings) -> dict[str, float]:
    return session_weights(config.training.session_weights, recordings.minutes)


def _lanes(config: RunConfig, recordings: Recordings, count: int) -> list[list[str]]:
    """The lanes of the run, as its sampling plan places them."""
    neurons = {name: float(value) for name, value in recordings.neurons.items()}
    return place_sessions(_wanted(config, recordings), neurons, count)


def _drawn(lanes: list[list[str]], weights: Mapping[str, float]) -> tuple[float, float]:
    """The least and the most that a session is drawn, against its weight's share."""
    found = dict.fromkeys(weights, 0.0)
    for names in lanes:
        for name, count in Counter(names).items():
            found[name] += count / len(names)
    total = sum(weights.values())
    ratios = [found[name] * total / (len(lanes) * weight) for name, weight in weights.items()]
    return min(ratios), max(ratios)


def plan_run(config: RunConfig, recordings: Recordings, ranks: int) -> RunPlan:
    """What a run on `ranks` ranks would do.

    Raises:
        ConfigError: it could not be run.
    """
    costs = configured_costs(recordings.neurons, config.cluster.costs)
    count, batch = config.training.lanes or len(recordings.neurons), config.data.batch
    began = time.perf_counter()
    lanes = _lanes(config, recordings, count)
    placement = place_lanes(lanes, costs, ranks)
    seconds = time.perf_counter() - began
    hints = []
    if placement.imbalance > IMBALANCE:
        for fewer in [b for b in range(batch - 1, 0, -1) if batch % b == 0]:
            more = count * batch // fewer
            other = place_lanes(_lanes(config, recordings, more), costs, ranks)
            if other.imbalance <= IMBALANCE:
                hints.append(Hint(more, fewer, other.imbalance))
                break
    counts = numbers(config.model)
    kept = activations(
        MicroBatch(
            config.model,
            batch,
            config.data.frames,
            *recordings.stimulus,
            bf16=config.training.precision == "bf16",
            recompute=config.training.checkpoint_activations,
        )
    )
    return RunPlan(
        recordings=recordings,
        lanes=lanes,
        batch=batch,
        placement=placement,
        measured=config.cluster.costs is not None,
        drawn=_drawn(lanes, _wanted(config, recordings)),
        seconds=seconds,
        memory=[
            rank_memory(config, counts, kept, [recordings.neurons[n] for n in names], ranks)
            for names in placement.sessions
        ],
        shared_bytes=shared_traffic(config, counts, ranks),
        session_bytes=session_traffic(counts, recordings.neurons, placement.holders, ranks),
        hints=hints,
    )
