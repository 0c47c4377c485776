"""Power laws of a score in the amount of training data, with confidence intervals.

Two forms, both written y = a - b x^-c:

- *error*: a is 1, the largest CC_norm, so that 1 - y = b x^-c is a straight line in logarithms.
  Two parameters, for few sizes of data (Hestness et al. 2017; Kaplan et al. 2020).
- *saturating*: a is fitted too: the score that more data of this kind would lead to.

Intervals are Student's t with the covariance of the least-squares fit. They speak of the scatter
of the points around the law, not of whether the law holds beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from fmcortex.errors import DataError

Form = Literal["error", "saturating"]
Floats = NDArray[np.float64]

#: Sizes of data from which on `auto` tries to fit the limit too.
SIZES_FOR_LIMIT = 5
#: Bounds of the saturating form: the limit, log b (x in units of its geometric mean), c.
LOWER, UPPER = (-1.0, -20.0, 1e-3), (1.0, 5.0, 5.0)
_RAISED = str.maketrans("0123456789-.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·")


class PowerLaw(BaseModel):
    """A fitted law y = limit - scale * x^-exponent.

    Attributes:
        form: `error` (the limit is 1) or `saturating`.
        limit: a, the score at infinite data.
        scale: b, the distance to the limit at x = 1.
        exponent: c.
        level: of the intervals.
        limit_interval: of a; None where it is fixed or there are no points to spare.
        exponent_interval: of c; None where there are no points to spare.
        rms: root mean square of the points' distance from the law, in units of the score.
        sizes: different amounts of data that were fitted.
        freedom: points beyond the parameters.
        unit: the x that `covariance` is in units of, the geometric mean of the fitted x.
        covariance: of (log scale, exponent), or of (limit, log scale, exponent).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Form
    limit: float
    scale: float
    exponent: float
    level: float
    limit_interval: tuple[float, float] | None
    exponent_interval: tuple[float, float] | None
    rms: float
    sizes: int
    freedom: int
    unit: float
    covariance: list[list[float]] | None

    def predict(self, x: ArrayLike) -> Floats:
        """The law at amounts of data `x`, in the unit that it was fitted in."""
        x = np.asarray(x, np.float64)
        return self.limit - self.scale * x**-self.exponent

    def band(self, x: ArrayLike) -> tuple[Floats, Floats] | None:
        """Bounds of the law at `x` at the interval's level (delta method).

        In the form `error` they are taken in the logarithm of the error, so that they stay below
        the limit.

        Returns:
            Lower and upper bound; None where there are no points to spare.
        """
        if self.covariance is None:
            return None
        x = np.asarray(x, np.float64)
        covariance = np.array(self.covariance)
        along = np.log(x / self.unit)
        quantile = _quantile(self.level, self.freedom)
        error = self.limit - self.predict(x)
        slopes = np.stack([np.ones_like(along), -along])  # of log error by (log scale, exponent)
        if self.form == "error":
            spread = quantile * np.sqrt(np.einsum("ix,ij,jx->x", slopes, covariance, slopes))
            return self.limit - error * np.exp(spread), self.limit - error * np.exp(-spread)
        slopes = np.stack([np.ones_like(along), -error, error * along])
        spread = quantile * np.sqrt(np.einsum("ix,ij,jx->x", slopes, covariance, slopes))
        return self.predict(x) - spread, self.predict(x) + spread

    @property
    def significant(self) -> bool | None:
        """Whether the exponent's interval leaves out zero; None where there is no interval."""
        return None if self.exponent_interval is None else self.exponent_interval[0] > 0

    def formula(self, x: str = "x") -> str:
        """The law as text, such as `1 − 0.62 x⁻⁰·²¹`."""
        power = f"{-self.exponent:.{2 if abs(self.exponent) >= 0.1 else 4}f}"
        return f"{self.limit:.3g} − {self.scale:.3g} {x}{power.translate(_RAISED)}"


def fit_power_law(
    x: Sequence[float] | ArrayLike,
    y: Sequence[float] | ArrayLike,
    form: Form | Literal["auto"] = "auto",
    level: float = 0.95,
) -> PowerLaw:
    """Fit a law to points.

    Args:
        x: amounts of training data, positive, in any unit; a size may occur several times.
        y: the score of each.
        form: of the law; `auto` fits the limit where there are enough sizes and its
            interval leaves out 1.
        level: of the intervals.

    Raises:
        DataError: there are too few sizes for the form, the points are not finite or not
            positive, the scores do not vary, or they do not determine the form's parameters.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise DataError(f"power law: {xs.shape} amounts of data for {ys.shape} scores")
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise DataError("power law: an amount of data or a score is not finite")
    if (xs <= 0).any():
        raise DataError("power law: amounts of data must be positive")
    sizes = len(np.unique(xs))
    if form == "auto":
        return _chosen(xs, ys, sizes, level)
    needed = 3 if form == "error" else 4
    if sizes < needed:
        raise DataError(
            f"power law: {sizes} sizes of data; the form `{form}` needs at least {needed}"
        )
    if np.ptp(ys) <= 1e-12 * max(1.0, float(np.abs(ys).max())):
        raise DataError("power law: the scores do not vary with the amount of data")
    if form == "error" and (ys >= 1).any():
        raise DataError(
            f"power law: a score of {ys.max():.3g} leaves no error; a law of 1 - score needs "
            "scores below 1"
        )
    unit = float(np.exp(np.log(xs).mean()))
    along = np.log(xs / unit)
    found = _straight(along, ys) if form == "error" else _saturating(along, ys)
    if found is None:
        raise DataError(
            "power law: the points do not determine where the score saturates; use the form `error`"
        )
    theta, covariance = found
    limit = 1.0 if form == "error" else float(theta[0])
    log_scale, exponent = (float(value) for value in theta[-2:])
    scale = float(np.exp(log_scale)) * unit**exponent
    freedom = len(xs) - len(theta)
    return PowerLaw(
        form=form,
        limit=limit,
        scale=scale,
        exponent=exponent,
        level=level,
        limit_interval=None if form == "error" else _interval(theta, covariance, 0, level, freedom),
        exponent_interval=_interval(theta, covariance, -1, level, freedom),
        rms=float(np.sqrt(np.mean((limit - scale * xs**-exponent - ys) ** 2))),
        sizes=sizes,
        freedom=freedom,
        unit=unit,
        covariance=None if covariance is None else covariance.tolist(),
    )


def _chosen(x: Floats, y: Floats, sizes: int, level: float) -> PowerLaw:
    """The saturating law where the points tell its limit from 1, else that of the error."""
    if sizes >= SIZES_FOR_LIMIT:
        try:
            law = fit_power_law(x, y, "saturating", level)
        except DataError:
            pass  # the other form says what is wrong, if it is the points
        else:
            if law.limit_interval is not None and law.limit_interval[1] < 1:
                return law
    return fit_power_law(x, y, "error", level)


def _straight(along: Floats, y: Floats) -> tuple[Floats, Floats | None]:
    """log(1 - y) = log b - c log x by linear least squares: (log b, c) and their covariance."""
    design = np.stack([np.ones_like(along), -along], axis=1)
    error = np.log(1 - y)
    theta = np.linalg.lstsq(design, error, rcond=None)[0]
    return theta.astype(np.float64), _covariance(design, design @ theta - error)


def _saturating(along: Floats, y: Floats) -> tuple[Floats, Floats | None] | None:
    """y = a - b x^-c by bounded least squares: (a, log b, c) and their covariance.

    None where a parameter ends at a bound: the points do not determine it, and a covariance there
    would claim a certainty that they do not give.
    """
    from scipy.optimize import least_squares

    def residuals(theta: Floats) -> Floats:
        limit, log_scale, exponent = theta
        return limit - np.exp(log_scale - exponent * along) - y

    best: Any = None
    for exponent in (0.1, 0.3, 1.0, 2.0):  # the valley is long and curved: start at several ends
        limit = min(float(y.max()) + 0.1 * float(np.ptp(y)), 0.99)
        scale = max(limit - float(np.median(y)), 1e-3)
        start = np.clip([limit, np.log(scale), exponent], LOWER, UPPER)
        found = least_squares(residuals, start, bounds=(LOWER, UPPER), x_scale="jac")
        if best is None or found.cost < best.cost:
            best = found
    reach = 1e-3 * (np.array(UPPER) - LOWER)
    if (best.x - LOWER < reach).any() or (UPPER - best.x < reach).any():
        return None
    return best.x, _covariance(best.jac, best.fun)


def _covariance(jacobian: Floats, residuals: Floats) -> Floats | None:
    """Covariance of a least-squares fit; None without points to spare."""
    freedom = len(residuals) - jacobian.shape[1]
    if freedom < 1:
        return None
    variance = float(residuals @ residuals) / freedom
    return np.linalg.pinv(jacobian.T @ jacobian) * variance


def _quantile(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))


def _interval(
    theta: Floats, covariance: Floats | None, index: int, level: float, freedom: int
) -> tuple[float, float] | None:
    if covariance is None:
        return None
    half = _quantile(level, freedom) * float(np.sqrt(covariance[index, index]))
    return float(theta[index]) - half, float(theta[index]) + half
