"""The sampling plan: what each lane trains at each step, a pure function of the run's seed.

A *lane* is one micro-batch a step. Sessions are placed on lanes once; what lane v does at step k
depends on (seed, v, k) alone, never on how many ranks carry the lanes, so that a run draws the
same clips on any number of ranks and continues exactly after a restart.
"""

from __future__ import annotations

from bisect import bisect_left
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


@dataclass(frozen=True)
class Origin:
    """Where the sessions stood when a run went on with other sessions or lanes.

    Attributes:
        step: the first that the new lanes train.
        drawn: micro-batches that each session drew before it; none of those that are not named.
    """

    step: int
    drawn: Mapping[str, int]


class SamplingPlan:
    """The clips, stream and noise of every lane at every step.

    Within a session, trials are drawn without replacement: each is drawn once before any is drawn
    again, whichever of the session's lanes draws it.

    Args:
        seed: of the run.
        lanes: the turns of each lane, from `place_sessions`: the names of its sessions, in the
            order in which it trains them, over and over.
        frames: of each training trial, by session.
        trials: the trials that may be drawn, by session.
        clip: frames of a sequence.
        batch: sequences of a micro-batch.
        streams: of the model.
        origin: where the sessions stood when the run went on with these lanes; None for a run
            that began with them. Steps before it are not to be asked for.

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
        origin: Origin | None = None,
    ) -> None:
        self.seed, self.clip, self.batch, self.streams = seed, clip, batch, streams
        self.origin = origin
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
    def _alone(self) -> dict[str, list[int]]:
        """Of each session: the lanes that it holds alone, ascending."""
        found: dict[str, list[int]] = {name: [] for name in self.sessions}
        for lane, names in enumerate(self.lanes):
            if len(set(names)) == 1:
                found[names[0]].append(lane)
        return found

    @cached_property
    def _turns(self) -> dict[str, list[tuple[int, list[int]]]]:
        """Of each session: the lanes that it shares, and the places of its turns in theirs."""
        found: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in self.sessions}
        for lane, names in enumerate(self.lanes):
            if len(set(names)) > 1:
                places: dict[str, list[int]] = {}
                for place, name in enumerate(names):
                    places.setdefault(name, []).append(place)
                for name, turns in places.items():
                    found[name].append((lane, turns))
        return found

    def _count(self, session: str, step: int) -> int:
        """Micro-batches that these lanes draw of `session` before `step`."""
        count = step * len(self._alone[session])
        for lane, turns in self._turns[session]:
            periods, place = divmod(step, len(self.lanes[lane]))
            count += periods * len(turns) + bisect_left(turns, place)
        return count

    @cached_property
    def _before(self) -> dict[str, int]:
        """Of each session: what is added to `_count` because the run began with other lanes."""
        if self.origin is None:
            return dict.fromkeys(self.sessions, 0)
        return {
            name: self.origin.drawn.get(name, 0) - self._count(name, self.origin.step)
            for name in self.sessions
        }

    def drawn(self, step: int) -> dict[str, int]:
        """Micro-batches of each session that the run drew before `step`."""
        return {name: self._before[name] + self._count(name, step) for name in self.sessions}

    def session(self, lane: int, step: int) -> str:
        """The session that `lane` trains at `step`."""
        names = self.lanes[lane]
        return names[step % len(names)]

    def stream_of_lanes(self, step: int) -> list[int]:
        """The stream of every lane at `step`: random, but spread evenly over the streams."""
        rng = np.random.default_rng(seed_of("streams", self.seed, step))
        order, names = rng.permutation(len(self.lanes)), rng.permutation(self.streams)
        streams = np.empty(len(self.lanes), int)
        streams[order] = names[np.arange(len(self.lanes)) % self.streams]
        return [int(stream) for stream in streams]

    def _cursor(self, session: str, lane: int, step: int) -> int:
        """Micro-batches of `session` drawn before the one of `lane` at `step`."""
        earlier = bisect_left(self._alone[session], lane)
        for other, _ in self._turns[session]:
            earlier += other < lane and self.session(other, step) == session
        return self._before[session] + self._count(session, step) + earlier

    def draw(self, lane: int, step: int) -> Draw:
        """What `lane` trains at `step`."""
        name = self.session(lane, step)
        cursor = self._cursor(name, lane, step) * self.batch
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
