"""The learning rate, against the spec's formulas and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from fmcortex.training.schedule import learning_rate


def test_warm_up_then_cosine_by_hand() -> None:
    rates = [learning_rate(e, 0.8, cycle_size=6, warmup_epochs=2) for e in range(6)]
    # (e + 0.5)/2, then (1 + cos(pi*(e - 2)/4))/2 = 1, 0.5 + sqrt(2)/4, 0.5, 0.5 - sqrt(2)/4.
    expected = [0.25, 0.75, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]
    assert rates == pytest.approx([0.8 * x for x in expected], rel=1e-12)


def test_cosine_without_warm_up() -> None:
    rates = [learning_rate(e, 1.0, cycle_size=3) for e in range(3)]
    assert rates == pytest.approx([1.0, 0.75, 0.25])


def test_the_released_recipe() -> None:
    def rate(epoch: int) -> float:
        return learning_rate(epoch, 0.1, 100, warmup_epochs=10)

    assert rate(0) == pytest.approx(0.005)
    assert rate(9) == pytest.approx(0.095)
    assert rate(10) == pytest.approx(0.1)
    assert rate(55) == pytest.approx(0.05)
    assert rate(99) == pytest.approx(0.05 * (1 + math.cos(math.pi * 89 / 90)))
    rates = [rate(e) for e in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) > 0


def test_the_preprint_restarts_without_a_warm_up() -> None:
    def rate(epoch: int) -> float:
        return learning_rate(epoch, 0.1, 100, warmup_epochs=10, warmup_cycles=1, cycles=2)

    assert rate(99) == learning_rate(99, 0.1, 100, 10)
    assert rate(100) == pytest.approx(0.1)
    assert rate(150) == pytest.approx(0.05)


def test_a_warm_up_in_every_cycle() -> None:
    one = [learning_rate(e, 1.0, 5, 2) for e in range(5)]
    assert [learning_rate(e, 1.0, 5, 2, warmup_cycles=2, cycles=3) for e in range(10)] == one * 2
    assert learning_rate(10, 1.0, 5, 2, warmup_cycles=2, cycles=3) == 1.0


def test_the_last_rate_stays() -> None:
    last = learning_rate(9, 1.0, 5, cycles=2)
    assert 0 < last < 0.2
    assert [learning_rate(e, 1.0, 5, cycles=2) for e in (10, 11, 50)] == [last] * 3


def test_no_warm_up_cycles() -> None:
    assert learning_rate(0, 1.0, 10, warmup_epochs=3, warmup_cycles=0) == 1.0
