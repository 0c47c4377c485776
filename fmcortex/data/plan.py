"""The sampling plan: what each lane trains at each step, a pure function of the run's seed.

A *lane* is one micro-batch a step. Sessions are placed on lanes once; what lane v does at step k
depends on (seed, v, k) alone, never on how many ranks carry the lanes, so that a run draws the
same clips on any number of ranks and continues exactly after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from fmcortex.data.subset import seed_of
from fmcortex.errors import ConfigError


@dataclass(frozen=True)
class Clip:
    """A window of a training trial."""

    trial: int
    start: int


@dataclass(frozen=True)
class Draw:
    """What one lane trains in one step.

    Attributes:
        step: of the run.
        lane: from 0.
        session: whose clips are drawn.
        clips: one a sample of the micro-batch.
        stream: that is trained.
        noise_seed: of the position, monitor and dropout noise.
    """

    step: int
    lane: int
    session: str
    clips: tuple[Clip, ...]
    stream: int
    noise_seed: int


@lru_cache(maxsize=4096)
def _permutation(seed: int, session: str, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed_of("trials", seed, session, epoch)).permutation(size)


def place_sessions(costs: Mapping[str, float], lanes: int) -> list[list[str]]:
    """Place sessions on lanes, balanced by cost.

    With fewer lanes than sessions, a lane takes its sessions in turn. With more, the sessions of
    the largest cost a lane hold several lanes, alone.

    Args:
        costs: of each session, in any unit (neurons x frames).
        lanes: how many.

    Returns:
        The sessions of each lane.

    Raises:
        ConfigError: there are no sessions.
    """
    if not costs:
        raise ConfigError("data.sessions: there are no sessions to train on")
    by_cost = sorted(costs, key=lambda name: (-costs[name], name))
    if lanes <= len(by_cost):
        placed: list[list[str]] = [[] for _ in range(lanes)]
        loads = [0.0] * lanes
        for name in by_cost:  # longest first, each to the lightest lane
            lightest = min(range(lanes), key=lambda v: (len(placed[v]) > 0, loads[v], v))
            placed[lightest].append(name)
            loads[lightest] += costs[name]
        return placed
    held = dict.fromkeys(by_cost, 1)
    for _ in range(lanes - len(by_cost)):
        heaviest = max(by_cost, key=lambda name: (costs[name] / held[name], name))
        held[heaviest] += 1
    return [[name] for name in by_cost for _ in range(held[name])]


class SamplingPlan:
    """The clips, stream and noise of every lane at every step.

    Within a session, trials are drawn without replacement: each is drawn once before any is drawn
    again, whichever of the session's lanes draws it.

    Args:
        seed: of the run.
        lanes: the sessions of each lane, from `place_sessions`.
        frames: of each training trial, by session.
        trials: the trials that may be drawn, by session.
        clip: frames of a sequence.
        batch: sequences of a micro-batch.
        streams: of the model.

    Raises:
        ConfigError: a session has no trial of at least `clip` frames.
    """

    def __init__(
        self,
        seed: int,
        lanes: Sequence[Sequence[str]],
        frames: Mapping[str, Sequence[int]],
        trials: Mapping[str, Sequence[int]],
        clip: int,
        batch: int,
        streams: int,
    ) -> None:
        self.seed, self.clip, self.batch, self.streams = seed, clip, batch, streams
        self.lanes = [list(names) for names in lanes]
        self.frames = frames
        self.trials: dict[str, list[int]] = {}
        for name in self.sessions:
            self.trials[name] = [t for t in trials[name] if frames[name][t] >= clip]
            if not self.trials[name]:
                longest = max((frames[name][t] for t in trials[name]), default=0)
                raise ConfigError(
                    f"data.frames: session {name} has no training trial of {clip} frames "
                    f"(the longest has {longest})"
                )

    @cached_property
    def sessions(self) -> list[str]:
        """All sessions of the lanes, sorted."""
        return sorted({name for names in self.lanes for name in names})

    @cached_property
    def _ordinals(self) -> list[tuple[int, int]]:
        """Of each lane: its rank among the lanes of its session, and their number."""
        held: dict[str, list[int]] = {}
        for lane, names in enumerate(self.lanes):
            if len(names) == 1:
                held.setdefault(names[0], []).append(lane)
        return [
            (held[names[0]].index(lane), len(held[names[0]])) if len(names) == 1 else (0, 1)
            for lane, names in enumerate(self.lanes)
        ]

    def session(self, lane: int, step: int) -> str:
        """The session that `lane` trains at `step`."""
        names = self.lanes[lane]
        return names[step % len(names)]

    def stream_of_lanes(self, step: int) -> list[int]:
        """The stream of every lane at `step`: random, but spread evenly over the streams."""
        rng = np.random.default_rng(seed_of("streams", self.seed, step))
        order, names = rng.permutation(len(self.lanes)), rng.permutation(self.streams)
        streams = [0] * len(self.lanes)
        for i, lane in enumerate(order):
            streams[lane] = int(names[i % self.streams])
        return streams

    def draw(self, lane: int, step: int) -> Draw:
        """What `lane` trains at `step`."""
        name = self.session(lane, step)
        turn = step // len(self.lanes[lane])
        ordinal, held = self._ordinals[lane]
        cursor = (turn * held + ordinal) * self.batch
        return Draw(
            step=step,
            lane=lane,
            session=name,
            clips=tuple(self._clip(name, cursor + i) for i in range(self.batch)),
            stream=self.stream_of_lanes(step)[lane],
            noise_seed=seed_of("noise", self.seed, lane, step),
        )

    def _clip(self, session: str, cursor: int) -> Clip:
        trials = self.trials[session]
        epoch, position = divmod(cursor, len(trials))
        trial = trials[_permutation(self.seed, session, epoch, len(trials))[position]]
        room = self.frames[session][trial] - self.clip + 1
        start = seed_of("window", self.seed, session, cursor) % room
        return Clip(trial, start)
