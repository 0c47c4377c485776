"""From a neuron's fluorescence to its activity: OASIS, with what a recording needs around it.

A calcium trace is an autoregressive response to the activity, plus noise. Its activity is the
sparsest that is nowhere negative and explains the trace to within the noise (Pnevmatikakis et al.,
Neuron 89, 2016; solved by OASIS, Friedrich et al., PLOS Computational Biology 13, 2017), which is
what the pipeline behind the MICrONS release does.

That pipeline also estimates how each neuron's response rises. Of traces at 6 Hz, on which a rise is
a sample long, OASIS's estimate is poor (benchmarks/deconvolution.py), so that a rise is modelled
only if it is given.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.interpolate import make_interp_spline

from fmcortex.errors import DataError

#: Counted up when the same settings give other activity: 2 estimates decays without OASIS's factor.
METHOD = 2
#: Missing samples in a row that are bridged linearly, as those of behaviour are.
LONGEST_GAP = 10
#: Samples between longer gaps of which something can be said.
SHORTEST = 100
#: Seconds that an estimated decay may take; a slower one is a drift.
SLOWEST = 10.0
#: Lags over which the decay is estimated, as samples and as seconds, whichever is more.
LAGS, LAG_SECONDS = 6, 0.5
#: Part of the calcium that is left after a sample where a trace shows no decay, as OASIS has it.
LEAST = 0.15
#: Of the largest value of a trace that does not vary.
ROUNDING = 1e-9
#: Part of the time between samples below which a time constant is none.
FASTEST = 0.1


class DeconvolutionSettings(BaseModel):
    """How fluorescence becomes activity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sessions: list[str] | None = Field(
        None, description="names of the session folders to deconvolve; all if absent"
    )
    decay_seconds: float | None = Field(
        None,
        gt=0,
        le=60,
        description="time constant with which the calcium response decays; estimated for each"
        " neuron if absent",
    )
    rise_seconds: float | None = Field(
        None,
        gt=0,
        le=60,
        description="time constant of its rise; if absent, or far below the time between samples,"
        " it rises at once",
    )
    detrend_seconds: float = Field(
        600.0,
        ge=0,
        le=86400,
        description="length of the windows, half overlapping, whose percentiles make the baseline"
        " that is taken away first; 0: a constant baseline",
    )
    missing_neurons: Literal["error", "leave_out"] = Field(
        "error",
        description="a neuron of whose samples too many are missing: refuse the session, or leave"
        " the neuron's activity out, as NaN, with which `fmcortex prep` is to be told the same",
    )
    detrend_percentile: float = Field(8.0, ge=0, le=100, description="of the samples of a window")

    @model_validator(mode="after")
    def _constants(self) -> Self:
        if self.rise_seconds is not None:
            if self.decay_seconds is None:
                raise ValueError("rise_seconds: needs decay_seconds, too")
            if self.rise_seconds >= self.decay_seconds:
                raise ValueError("rise_seconds: is not shorter than decay_seconds")
        return self

    def content(self) -> dict[str, Any]:
        """The settings that the activity depends on, JSON-ready."""
        found = self.model_dump(mode="json", exclude={"sessions"})
        if self.missing_neurons == "error":
            del found["missing_neurons"]  # as of activity that is older than the setting
        return found


@dataclass(frozen=True)
class Activity:
    """A neuron's activity, and the calcium response that it was found with.

    Attributes:
        values: float64 [n], in units of the fluorescence and nowhere negative; NaN where the
            trace says nothing.
        fit: float64 [n], the baseline and the calcium that this activity gives; NaN likewise.
        decay: seconds in which the response decays; NaN of a trace that is constant.
        noise: standard deviation of the noise.
        signal: standard deviation of the calcium.
    """

    values: np.ndarray
    fit: np.ndarray
    decay: float
    noise: float
    signal: float


def deconvolve(trace: np.ndarray, times: np.ndarray, settings: DeconvolutionSettings) -> Activity:
    """The activity of a neuron, sample by sample.

    Missing samples, NaN or lacking from the times, are bridged linearly up to `LONGEST_GAP` in a
    row; the parts between longer gaps are deconvolved each for itself with the same parameters,
    and parts shorter than `SHORTEST` samples are left out.

    Args:
        trace: fluorescence [n]; NaN where missing.
        times: seconds [n], increasing.
        settings: the parameters that are given.

    Raises:
        DataError: OASIS is not installed.
        ValueError: the decay is far below the time between samples, or OASIS cannot make anything
            of the trace.
    """
    oasis = _oasis()
    interval = float(np.median(np.diff(times)))
    if settings.decay_seconds is not None and settings.decay_seconds < FASTEST * interval:
        raise ValueError(f"decay_seconds is far below the {interval:.3g} s between samples")
    place, grid = _on_grid(trace, times, interval)
    parts = _parts(grid)
    activity, fit = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    window = round(settings.detrend_seconds / interval)
    bases = [baseline(grid[part], window, settings.detrend_percentile) for part in parts]
    flat = [grid[part] - base for part, base in zip(parts, bases, strict=True)]
    whole = np.concatenate([np.zeros(0), *flat])
    size = max((float(np.abs(grid[part]).max()) for part in parts), default=0.0)
    if len(whole) == 0 or np.ptp(whole) <= ROUNDING * size:
        for part in parts:
            activity[part], fit[part] = 0.0, grid[part]
        return Activity(activity[place], fit[place], np.nan, 0.0, 0.0)
    decay, noise = _parameters(whole, 1 / interval, settings)
    rise = settings.rise_seconds or 0.0
    rising = rise >= FASTEST * interval
    # By default, a response with a rise is sought only among the events of one without.
    more = {"tau_r": rise, "decimate": 0, "max_iter": 3} if rising else {}
    # OASIS has tolerances that know no units.
    unit = noise or 1.0
    calcium = []
    for part, base, signal in zip(parts, bases, flat, strict=True):
        found = oasis.deconvolve(
            signal / unit, decay, framerate=1 / interval, sn=noise / unit, b_nonneg=False, **more
        )
        # Rounding leaves traces of negative values.
        activity[part] = np.maximum(found.s, 0.0) * unit
        if rising:
            # Calcium that was there before is in these, as if it were activity.
            activity[part.start : part.start + 2] = 0.0
        fit[part] = base + (found.b + found.c) * unit
        calcium.append(found.c * unit)
    spread = float(np.std(np.concatenate(calcium)))
    return Activity(activity[place], fit[place], decay, noise, spread)


def baseline(trace: np.ndarray, window: int, percentile: float) -> np.ndarray:
    """The percentile of windows that overlap by half or less, on lines through their centres [n].

    A constant where `window` is 0 or the trace is shorter than one and a half windows.
    """
    count, step = len(trace), window // 2
    windows = (count - window) // step + 1 if step else 1
    if windows < 2:
        return np.full(count, np.percentile(trace, percentile))
    starts = np.linspace(0, count - window, windows).round().astype(int)
    levels = [np.percentile(trace[start : start + window], percentile) for start in starts]
    lines = make_interp_spline(starts + (window - 1) / 2, levels, k=1)
    return lines(np.arange(count))  # beyond the outer centres, on the outer lines


def _on_grid(
    trace: np.ndarray, times: np.ndarray, interval: float
) -> tuple[np.ndarray, np.ndarray]:
    """The samples' places [n] on an even grid, and the trace there, with NaN where none is.

    Of a gap longer than is bridged, no more samples are made than tell it as such.
    """
    steps = np.clip(np.rint(np.diff(times) / interval), 1, LONGEST_GAP + 2).astype(np.int64)
    place = np.concatenate([[0], np.cumsum(steps)])
    grid = np.full(int(place[-1]) + 1, np.nan)
    grid[place] = trace
    return place, grid


def _parts(grid: np.ndarray) -> list[slice]:
    """Bridge the short gaps of `grid` in place; the parts between the long ones."""
    known = np.flatnonzero(np.isfinite(grid))
    if len(known) == 0:
        return []
    breaks = np.flatnonzero(np.diff(known) > LONGEST_GAP + 1) + 1
    parts = []
    for some in np.split(known, breaks):
        part = slice(int(some[0]), int(some[-1]) + 1)
        if part.stop - part.start >= SHORTEST:
            grid[part] = np.interp(np.arange(part.start, part.stop), some, grid[some])
            parts.append(part)
    return parts


def _parameters(
    trace: np.ndarray, rate: float, settings: DeconvolutionSettings
) -> tuple[float, float]:
    """The decay in seconds, and the standard deviation of the noise."""
    oasis = _oasis()
    with warnings.catch_warnings():
        # scipy says that it takes shorter windows for a short trace.
        warnings.simplefilter("ignore", UserWarning)
        noise = float(oasis.GetSn(trace))
    decay = settings.decay_seconds
    return decay_of(trace, rate) if decay is None else decay, noise


def decay_of(trace: np.ndarray, rate: float) -> float:
    """The time constant in seconds with which the autocovariance of a trace decays.

    OASIS's estimate takes the noise off the autocovariance at no lag, where it also finds part of
    the signal at low rates, and so comes out too long; it makes up for that by a factor that acts
    from sample to sample, so that it is far too short at high rates. Without that lag, noise does
    not matter, and of lags that last a given time the rate does not either.

    Args:
        trace: finite [n], which varies.
        rate: its samples per second.

    Returns:
        At most `SLOWEST`, and at least a factor of `LEAST` from sample to sample.
    """
    trace = trace - trace.mean()
    count = min(max(LAGS, round(LAG_SECONDS * rate)), len(trace) - 2)
    covariances = np.array([trace[lag:] @ trace[:-lag] for lag in range(1, count + 2)])
    before, after = covariances[:-1], covariances[1:]
    size = float(before @ before)
    factor = float(before @ after) / size if size > 0 else 0.0
    slowest = float(np.exp(-1 / (SLOWEST * rate)))
    return float(-1 / (np.log(np.clip(factor, LEAST, slowest)) * rate))


def _oasis() -> Any:
    try:
        from oasis import functions
    except ImportError as error:
        raise DataError(
            "deconvolution needs OASIS: pip install -e '.[deconvolution]' in the checkout"
        ) from error
    return functions
