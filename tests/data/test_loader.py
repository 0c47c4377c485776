"""The loader: what the plan drew, in its order, read ahead on threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fmcortex.data import loader
from fmcortex.data.dataset import PreparedDataset, open_dataset
from fmcortex.data.loader import Batch, ClipLoader, read_batch
from fmcortex.data.plan import Clip, Draw, SamplingPlan
from fmcortex.errors import DataError

ARRAYS = ("stimuli", "perspectives", "modulations", "responses")


@pytest.fixture
def dataset(prepared: Path) -> PreparedDataset:
    """Session "s1": 6 trials of 8 frames, 3 neurons, 4 x 6 pixels."""
    return open_dataset(str(prepared))


@pytest.fixture
def plan() -> SamplingPlan:
    """Three lanes of that session, clips of 5 frames, two a micro-batch."""
    trials = list(range(6))
    return SamplingPlan(0, [["s1"]] * 3, {"s1": [8] * 6}, {"s1": trials}, 5, 2, 4)


def test_a_batch_holds_the_windows_that_were_drawn(dataset: PreparedDataset) -> None:
    draw = Draw(0, 0, "s1", (Clip(4, 3), Clip(1, 0)), 0, 0)
    batch = read_batch(dataset, draw, 5)
    assert batch.draw is draw
    session = dataset.session("s1")
    for i, (trial, window) in enumerate(((4, slice(3, 8)), (1, slice(0, 5)))):
        arrays = session.trial(trial)
        pairs = (
            (batch.stimuli, arrays.stimulus),
            (batch.perspectives, arrays.perspectives),
            (batch.modulations, arrays.modulations),
            (batch.responses, arrays.responses),
        )
        for ours, whole in pairs:
            assert ours.shape == (2, 5, *whole.shape[1:])
            assert np.array_equal(ours[i].numpy(), whole[window])
    assert batch.stimuli.dtype == torch.uint8
    assert batch.responses.dtype == torch.float32


def test_a_batch_is_a_copy(dataset: PreparedDataset) -> None:
    draw = Draw(0, 0, "s1", (Clip(0, 0),), 0, 0)
    before = dataset.session("s1").trial(0).responses.copy()
    read_batch(dataset, draw, 5).responses.fill_(-1)
    assert np.array_equal(dataset.session("s1").trial(0).responses, before)


def test_to_a_device_keeps_everything(dataset: PreparedDataset) -> None:
    batch = read_batch(dataset, Draw(0, 0, "s1", (Clip(0, 2),), 0, 0), 5)
    moved = batch.to(torch.device("cpu"))
    assert moved.draw is batch.draw
    for name in ARRAYS:
        assert torch.equal(getattr(moved, name), getattr(batch, name))


@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (4, 2), (50, 3)])
@pytest.mark.parametrize("lanes", [[0, 1, 2], [2, 0]])
def test_batches_come_in_the_order_of_steps_and_lanes(
    dataset: PreparedDataset, plan: SamplingPlan, lanes: list[int], prefetch: int, threads: int
) -> None:
    found = list(ClipLoader(dataset, plan, lanes, 3, 10, prefetch, threads))
    expected = [[plan.draw(lane, step) for lane in lanes] for step in range(3, 10)]
    assert [[batch.draw for batch in batches] for batches in found] == expected
    for batches in found:
        for batch in batches:
            again = read_batch(dataset, batch.draw, 5)
            assert all(torch.equal(getattr(batch, n), getattr(again, n)) for n in ARRAYS)


def test_order_holds_when_reads_end_out_of_order(
    dataset: PreparedDataset, plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
        time.sleep(0.02 if draw.lane == 0 else 0)
        return read_batch(dataset, draw, clip, pin)

    monkeypatch.setattr(loader, "read_batch", slow)
    found = list(ClipLoader(dataset, plan, [0, 1, 2], 0, 4, 12, 3))
    assert [[b.draw.lane for b in batches] for batches in found] == [[0, 1, 2]] * 4


def test_it_reads_ahead_but_not_without_bound(
    dataset: PreparedDataset, plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def note(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
        read.append((draw.step, draw.lane))
        return read_batch(dataset, draw, clip, pin)

    monkeypatch.setattr(loader, "read_batch", note)
    iterator = iter(ClipLoader(dataset, plan, [0, 1], 0, 100, prefetch=6, threads=1))
    next(iterator)
    end = time.monotonic() + 5
    while len(read) < 7 and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    # Two were taken; the last refill, before the second was taken, filled up to six waiting.
    assert read == [(step, lane) for step in range(4) for lane in range(2)][:7]
    iterator.close()


def test_it_waits_only_where_it_must(
    dataset: PreparedDataset, plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def held(dataset: PreparedDataset, draw: Draw, clip: int, pin: bool = False) -> Batch:
        gate.wait(5)
        return read_batch(dataset, draw, clip, pin)

    monkeypatch.setattr(loader, "read_batch", held)
    clips = ClipLoader(dataset, plan, [0], 0, 2)
    threading.Timer(1.0, gate.set).start()
    assert clips.stalled == 0
    assert len(list(clips)) == 2
    assert 0.1 < clips.stalled < 5


def test_a_rank_without_lanes_still_counts_the_steps(
    dataset: PreparedDataset, plan: SamplingPlan
) -> None:
    assert list(ClipLoader(dataset, plan, [], 2, 5)) == [[], [], []]
    assert list(ClipLoader(dataset, plan, [0], 5, 5)) == []


def test_stopping_early_leaves_no_thread(dataset: PreparedDataset, plan: SamplingPlan) -> None:
    before = {t.ident for t in threading.enumerate()}
    for batches in ClipLoader(dataset, plan, [0, 1], 0, 1000):
        assert len(batches) == 2
        break
    end = time.monotonic() + 5
    while {t.ident for t in threading.enumerate()} - before and time.monotonic() < end:
        time.sleep(0.01)
    assert {t.ident for t in threading.enumerate()} <= before


def test_a_corrupt_shard_stops_it_by_name(prepared: Path, plan: SamplingPlan) -> None:
    shard = prepared / "sessions" / "s1" / "train-00001.tar"
    content = bytearray(shard.read_bytes())
    for position in range(600, len(content), 64):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001.tar: trial "):
        list(ClipLoader(open_dataset(str(prepared)), plan, [0, 1, 2], 0, 10))
