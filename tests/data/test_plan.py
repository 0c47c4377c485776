"""The sampling plan: pure, without replacement, balanced over streams and lanes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from fmcortex.data.plan import Clip, Draw, Origin, SamplingPlan
from fmcortex.errors import ConfigError

#: Frames of the trials of three sessions; with clips of 10, two of "a" are too short.
FRAMES = {"a": [10, 30, 9, 12, 25, 3, 11], "b": [40] * 4, "c": [15, 10, 60]}
Plans = Callable[..., SamplingPlan]


@pytest.fixture
def make() -> Plans:
    """Makes plans of clips of 10 frames."""

    def plan(
        lanes: list[list[str]], seed: int = 0, batch: int = 2, streams: int = 4, **trials: list[int]
    ) -> SamplingPlan:
        chosen = {name: trials.get(name, list(range(len(f)))) for name, f in FRAMES.items()}
        return SamplingPlan(seed, lanes, FRAMES, chosen, 10, batch, streams)

    return plan


def drawn(plan: SamplingPlan, steps: int) -> list[list[Draw]]:
    """The draws of every lane at every step."""
    return [[plan.draw(lane, step) for lane in range(len(plan.lanes))] for step in range(steps)]


def clips_of(plan: SamplingPlan, session: str, count: int) -> list[Clip]:
    """The first `count` clips of a session, in the order of steps and lanes."""
    found: list[Clip] = []
    step = 0
    while len(found) < count:
        for lane in range(len(plan.lanes)):
            draw = plan.draw(lane, step)
            found += draw.clips if draw.session == session else ()
        step += 1
    return found[:count]


def test_a_draw_does_not_depend_on_what_was_drawn_before(make: Plans) -> None:
    lanes = [["a"], ["b"], ["c"], ["a"]]
    expected = drawn(make(lanes), 30)
    other = make(lanes)
    places = [(step, lane) for step in range(30) for lane in range(4)]
    np.random.default_rng(0).shuffle(places)
    for step, lane in places:
        assert other.draw(lane, step) == expected[step][lane]


def test_a_draw_says_what_it_is_of(make: Plans) -> None:
    plan = make([["a"], ["b", "c"]], batch=3)
    draw = plan.draw(1, 7)
    assert (draw.lane, draw.step, draw.session, len(draw.clips)) == (1, 7, "c", 3)
    assert draw.stream == plan.stream_of_lanes(7)[1]


def test_another_seed_draws_otherwise(make: Plans) -> None:
    one, two = (drawn(make([["a"], ["b"]], seed=seed), 10) for seed in (0, 1))
    for key in ("clips", "stream", "noise_seed"):
        first, second = ([getattr(d, key) for s in run for d in s] for run in (one, two))
        assert first != second


def test_noise_differs_between_all_draws(make: Plans) -> None:
    draws = [d for step in drawn(make([["a"], ["a"], ["b"]]), 50) for d in step]
    assert len({d.noise_seed for d in draws}) == 150


def test_clips_lie_within_their_trials(make: Plans) -> None:
    for step in drawn(make([["a"], ["b"], ["c"]], batch=5), 100):
        for draw in step:
            for clip in draw.clips:
                assert 0 <= clip.start <= FRAMES[draw.session][clip.trial] - 10


def test_windows_cover_all_places_evenly(make: Plans) -> None:
    starts = Counter(c.start for c in clips_of(make([["b"]]), "b", 3100) if c.trial == 0)
    assert set(starts) == set(range(31))
    # 775 draws over 31 places: 25 each, with a standard deviation of 5.
    assert max(starts.values()) < 50
    assert min(starts.values()) > 5


@pytest.mark.parametrize(
    "lanes",
    [
        [["a"], ["b"], ["c"]],
        [["a"], ["a"], ["b"], ["c"], ["a"]],
        [["b"], ["a", "c"]],
        [["c", "b", "a"]],
    ],
)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_trial_is_drawn_once_an_epoch(
    make: Plans, lanes: list[list[str]], batch: int
) -> None:
    plan = make(lanes, batch=batch)
    usable = {"a": [0, 1, 3, 4, 6], "b": [0, 1, 2, 3], "c": [0, 1, 2]}
    for name, trials in usable.items():
        clips = clips_of(plan, name, 6 * len(trials))
        epochs = [
            [clip.trial for clip in clips[i : i + len(trials)]]
            for i in range(0, len(clips), len(trials))
        ]
        assert all(sorted(epoch) == trials for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
        # A trial is seen through other windows in later epochs.
        first = {clip.trial: clip.start for clip in clips[: len(trials)]}
        room = {t: FRAMES[name][t] > 10 for t in trials}
        assert any(clip.start != first[clip.trial] for clip in clips if room[clip.trial])


def test_the_clips_of_a_session_do_not_depend_on_how_many_lanes_it_holds(make: Plans) -> None:
    one, three = make([["a"]]), make([["a"], ["b"], ["a"], ["a"]])
    assert clips_of(one, "a", 60) == clips_of(three, "a", 60)


def test_only_the_given_trials_are_drawn(make: Plans) -> None:
    plan = make([["a"], ["b"]], a=[1, 5, 6], b=[2])
    assert {clip.trial for clip in clips_of(plan, "a", 40)} == {1, 6}  # trial 5 is too short
    assert {clip.trial for clip in clips_of(plan, "b", 40)} == {2}


def test_a_session_without_a_trial_that_is_long_enough(make: Plans) -> None:
    with pytest.raises(
        ConfigError, match=r"session a has no training trial of 10 frames \(the longest has 9\)"
    ):
        make([["a"]], a=[2, 5])
    make([["b"]], a=[2, 5])  # it is on no lane: no matter
    with pytest.raises(ConfigError, match=r"session b .*the longest has 0"):
        make([["b"]], b=[])


def test_lanes_take_their_sessions_in_turn(make: Plans) -> None:
    plan = make([["b"], ["a", "c"]])
    assert [plan.session(1, step) for step in range(5)] == ["a", "c", "a", "c", "a"]
    assert [plan.session(0, step) for step in range(3)] == ["b", "b", "b"]
    assert plan.sessions == ["a", "b", "c"]


@pytest.mark.parametrize(("lanes", "streams"), [(1, 4), (3, 4), (4, 4), (6, 4), (9, 2), (5, 1)])
def test_streams_are_balanced_in_every_step(make: Plans, lanes: int, streams: int) -> None:
    plan = make([["a"]] * lanes, streams=streams)
    for step in range(60):
        counts = Counter(plan.stream_of_lanes(step))
        assert set(counts) <= set(range(streams))
        if lanes >= streams:
            assert len(counts) == streams  # every stream is trained in every step
        full = [counts[s] for s in range(streams)]
        assert max(full) - min(full) <= 1


def test_streams_are_random_over_steps(make: Plans) -> None:
    plan = make([["a"], ["b"], ["c"]])
    each = np.array([plan.stream_of_lanes(step) for step in range(1200)])
    for lane in range(3):
        counts = np.bincount(each[:, lane], minlength=4)
        # 300 each, with a standard deviation of 15.
        assert counts.min() > 225
        assert counts.max() < 375
        # Nor does a lane repeat its stream more often than by chance: 300 of 1199.
        assert 225 < (each[1:, lane] == each[:-1, lane]).sum() < 375


#: Lanes of one session, of several in unequal turns, and of a session that has both.
MIXED = [["a"], ["b", "c", "b"], ["a"], ["c", "a"]]


@pytest.mark.parametrize("batch", [1, 3])
def test_unequal_turns_draw_every_trial_once_an_epoch(make: Plans, batch: int) -> None:
    plan = make(MIXED, batch=batch)
    for name, trials in {"a": [0, 1, 3, 4, 6], "b": [0, 1, 2, 3], "c": [0, 1, 2]}.items():
        clips = clips_of(plan, name, 6 * len(trials))
        for i in range(0, len(clips), len(trials)):
            assert sorted(clip.trial for clip in clips[i : i + len(trials)]) == trials
        assert clips == clips_of(make([[name]], batch=batch), name, 6 * len(trials))


@pytest.mark.parametrize("lanes", [MIXED, [["a"], ["b"], ["c"]], [["a", "b", "a", "c", "a"]]])
def test_what_was_drawn_is_counted(make: Plans, lanes: list[list[str]]) -> None:
    plan = make(lanes)
    counts = dict.fromkeys("abc", 0)
    for step in range(20):
        assert plan.drawn(step) == counts
        for lane in range(len(lanes)):
            counts[plan.session(lane, step)] += 1
    assert plan.drawn(10**12)["a"] > 10**11  # counts no steps


@pytest.mark.parametrize("step", [1, 7, 12])
def test_an_origin_with_the_same_lanes_changes_nothing(make: Plans, step: int) -> None:
    plan = make(MIXED)
    again = make(MIXED)
    again.origin = Origin(step, plan.drawn(step))
    for k in range(step, step + 20):
        assert [again.draw(v, k) for v in range(4)] == [plan.draw(v, k) for v in range(4)]
        assert again.drawn(k) == plan.drawn(k)


def test_a_run_that_goes_on_with_other_sessions_keeps_their_places() -> None:
    trials = {name: list(range(len(f))) for name, f in FRAMES.items()}

    def plan(lanes: list[list[str]], origin: Origin | None = None) -> SamplingPlan:
        return SamplingPlan(0, lanes, FRAMES, trials, 10, 2, 4, origin)

    before = plan([["a"], ["b", "a", "a"]])
    step = 4
    after = plan([["b"], ["c", "a"], ["a"]], Origin(step, before.drawn(step)))
    assert after.drawn(step) == {"a": 6, "b": 2, "c": 0}
    for name in "abc":
        clips = [
            clip
            for k in range(12)
            for draw in [
                now.draw(v, k)
                for now in [before if k < step else after]
                for v in range(len(now.lanes))
            ]
            if draw.session == name
            for clip in draw.clips
        ]
        assert clips == clips_of(plan([[name]]), name, len(clips))
    # What went on may go on again.
    third = plan([["a"], ["c"]], Origin(9, after.drawn(9)))
    assert third.drawn(11)["a"] == after.drawn(9)["a"] + 2
    assert third.drawn(9)["c"] == after.drawn(9)["c"]
