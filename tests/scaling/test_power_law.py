"""Power-law fits against laws with known parameters."""

import numpy as np
import pytest

from fmcortex.errors import DataError
from fmcortex.scaling.power_law import PowerLaw, fit_power_law

X = np.geomspace(2.0, 400.0, 9)


def test_error_law_without_noise_is_recovered_exactly() -> None:
    law = fit_power_law(X, 1 - 0.62 * X**-0.21, "error")
    assert law.limit == 1
    assert law.scale == pytest.approx(0.62, rel=1e-9)
    assert law.exponent == pytest.approx(0.21, rel=1e-9)
    assert law.rms < 1e-12


def test_saturating_law_without_noise_is_recovered() -> None:
    law = fit_power_law(X, 0.82 - 0.5 * X**-0.45, "saturating")
    assert law.limit == pytest.approx(0.82, abs=1e-4)
    assert law.scale == pytest.approx(0.5, rel=1e-3)
    assert law.exponent == pytest.approx(0.45, rel=1e-3)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 60.0])
def test_unit_of_data_changes_the_scale_alone(unit: float) -> None:
    y = 0.8 - 0.5 * X**-0.4
    law = fit_power_law(X * unit, y, "saturating")
    assert law.exponent == pytest.approx(0.4, rel=1e-3)
    assert law.limit == pytest.approx(0.8, abs=1e-3)
    assert law.predict(X * unit) == pytest.approx(y, abs=1e-5)


@pytest.mark.parametrize(("form", "exponent"), [("error", 0.2), ("saturating", 0.4)])
def test_interval_holds_the_truth_as_often_as_it_says(form: str, exponent: float) -> None:
    generator = np.random.default_rng(3)
    held = []
    for _ in range(100):
        if form == "error":
            y = 1 - 0.7 * X**-exponent * np.exp(generator.normal(0, 0.02, len(X)))
        else:
            y = 0.8 - 0.6 * X**-exponent + generator.normal(0, 0.004, len(X))
        law = fit_power_law(X, y, form)  # type: ignore[arg-type]
        assert law.exponent_interval is not None
        low, high = law.exponent_interval
        held.append(low < exponent < high)
    assert 0.88 <= np.mean(held) <= 1.0  # 95% of 100, give or take three standard errors


def test_three_sizes_give_a_law_with_an_interval() -> None:
    law = fit_power_law([1, 10, 100], [0.31, 0.52, 0.66])
    assert (law.form, law.sizes, law.freedom) == ("error", 3, 1)
    assert law.exponent == pytest.approx(0.154, abs=0.01)
    assert law.significant is True
    band = law.band([1, 10, 1000])
    assert band is not None
    low, high = band
    assert (low < law.predict([1, 10, 1000])).all()
    assert (high < 1).all()
    assert high[2] - low[2] > high[1] - low[1]  # less sure beyond the points


def test_auto_fits_the_limit_where_it_is_determined_and_only_there() -> None:
    assert fit_power_law(X, 0.82 - 0.5 * X**-0.45).form == "saturating"
    assert fit_power_law(X, 0.2 + 0.01 * np.log(X)).form == "error"  # no limit in sight
    with pytest.raises(DataError, match="do not determine"):
        fit_power_law(X, 0.5 - 0.01 * np.log(X), "saturating")  # falls with data


def test_scores_without_a_trend_are_said_to_have_none() -> None:
    y = [0.5, 0.52, 0.49, 0.51]
    law = fit_power_law([1, 2, 4, 8], y, "error")
    assert law.significant is False


@pytest.mark.parametrize(
    ("x", "y", "form", "message"),
    [
        ([1, 2], [0.1, 0.2], "auto", "2 sizes of data"),
        ([5, 5, 5, 5], [0.1, 0.2, 0.3, 0.4], "auto", "1 sizes of data"),
        ([1, 2, 3], [0.1, 0.2, 0.3], "saturating", "needs at least 4"),
        ([1, 2, 3], [0.1, float("nan"), 0.3], "auto", "not finite"),
        ([0, 2, 3], [0.1, 0.2, 0.3], "auto", "must be positive"),
        ([1, 2, 3], [0.3, 0.3, 0.3], "auto", "do not vary"),
        ([1, 2, 3], [0.3, 0.9, 1.1], "error", "scores below 1"),
        ([1, 2, 3], [0.3, 0.9], "error", "2"),
        ([], [], "auto", "0 sizes"),
    ],
)
def test_degenerate_points_are_refused(
    x: list[float], y: list[float], form: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_power_law(x, y, form)  # type: ignore[arg-type]


def test_law_survives_json() -> None:
    law = fit_power_law([1, 10, 100, 100], [0.3, 0.5, 0.64, 0.66])
    assert PowerLaw.model_validate_json(law.model_dump_json()) == law
    assert law.formula().startswith("1 − 0.7")
