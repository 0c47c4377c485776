"""Metrics that are infinite, as training gone wrong logs them: they are read back and drawn."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fmcortex.tracking.curves import curves_figure
from fmcortex.tracking.page import comparison_page, curves_page, read_curves, write_curves_page
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.series import Curves

HUGE = sys.float_info.max
ODD = {
    "infinite": [(1, 2.0), (2, float("inf")), (3, 1.0)],
    "as SQL has it": [(1, 2.0), (2, HUGE), (3, 1.0)],
    "of both signs": [(1, -HUGE), (2, HUGE)],
    "nothing else": [(1, float("nan")), (2, float("inf"))],
    "very small": [(1, 5e-324), (2, 0.0)],
    "very large": [(1, 1e300), (2, 1e-300), (3, -1e300)],
}


@pytest.mark.parametrize("points", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["train/loss", "grad/norm", "validation/cc_abs", "loss/a", "x/y"])
def test_numbers_that_no_axis_can_show(name: str, points: list[tuple[int, float]]) -> None:
    curves_page({name: points}, "t")
    comparison_page({"a": Curves.of({name: points}), "b": Curves.of({name: points})}, "t")
    curves_figure({name: points}).savefig(io.BytesIO())


def test_one_infinite_value_does_not_flatten_a_curve() -> None:
    points = [(1, 2.0), (2, HUGE), (3, 1.0)]
    axes = curves_figure({"train/loss": points}).axes[0]
    assert axes.get_title() == "train/loss (1 not finite)"
    assert axes.get_ylim()[1] < 3
    series = Curves.of({"train/loss": points}).series["train/loss"]
    assert (series.unfinite, series.last) == (1, 1.0)


def test_an_infinite_loss_is_read_back_as_infinite(
    tmp_path: Path, store_in: Callable[[Path], str]
) -> None:
    """SQL stores keep it as the largest number."""
    run = RunLog.start(store_in(tmp_path), "e", "r")
    for step, value in enumerate((2.0, float("inf"), float("-inf"), float("nan"), 1.0)):
        run.metrics({"train/loss": value}, step)
    run.flush()
    found = [value for _, value in run.history("train/loss")]
    assert found[:3] == [2.0, float("inf"), float("-inf")]
    assert found[3] != found[3]
    series = read_curves(run).series["train/loss"]
    assert (series.count, series.unfinite, series.last) == (5, 3, 1.0)
    write_curves_page(run, str(tmp_path))
