"""Two-photon imaging of firing rates, and the traces at stimulus frames that come of it.

Conventions. Frame i of a trial starts at t_i = i / frame_rate, and its rate holds until t_(i+1).
The scanner runs at 6-8 Hz all session long, on its own clock; within a scan period P the planes are
visited one after another, so that a neuron of plane p of n is sampled p P / n later. A sample at
time s stands, as deconvolved activity does, for the events of the period before it, (s - P, s].
Samples are interpolated linearly to the frame times t_i. An event is thus seen half a period late
on average, and spread over two periods: traces are smoother than what they report, and can rise up
to one period before an event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Variance over mean of the events behind a sample, at noise 1. An event is one a.u. for a second.
DISPERSION = 0.5


@dataclass(frozen=True)
class Imaged:
    """What the microscope tells of one trial of T frames.

    Attributes:
        responses: at the stimulus frames, float32 [T, U], a.u., not negative.
        scans: the samples that these are interpolated between, float64 [n, U].
        times: of the scans, before the neurons' delays: seconds [n] of the session.
    """

    responses: np.ndarray
    scans: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Scanner:
    """A session's microscope: scans per second, and each neuron's delay within a scan [U]."""

    rate: float
    delay: np.ndarray

    @property
    def period(self) -> float:
        """Seconds between two samples of a neuron."""
        return 1 / self.rate

    def frames_around(self, frame_rate: float) -> int:
        """Frames of context that `image` needs before and after a trial."""
        return int(np.ceil(3 * self.period * frame_rate)) + 1


def image(
    rates: np.ndarray,
    around: int,
    start: float,
    frame_rate: float,
    scanner: Scanner,
    noise: float,
    rng: np.random.Generator,
) -> Imaged:
    """Deconvolved traces at the stimulus frames of one trial, and the scans they come from.

    Events are Poisson with gamma-distributed sizes: at noise n the count behind a sample has
    variance over mean n * `DISPERSION`, and with noise 0 the expectation itself is returned.

    Args:
        rates: expected response [around + T + around, U], a.u. (events per second).
        around: frames of context on each side, at least `scanner.frames_around`.
        start: session time of the trial's first frame, seconds; sets the scanner's phase.
        frame_rate: Hz.
        scanner: of this session.
        noise: factor on the variance.
        rng: its generator.
    """
    frames = len(rates) - 2 * around
    neurons = rates.shape[1]
    period = scanner.period
    # Time zero is the first frame of `rates`; the scanner's ticks before it are skipped.
    origin = start - around / frame_rate
    phase = -origin % period
    first = phase + period + scanner.delay  # of the first whole sample, [U]
    samples = int(np.floor((len(rates) / frame_rate - first.max()) / period)) + 1
    times = first + period * np.arange(-1, samples)[:, None]  # [samples + 1, U]
    cumulative = np.zeros((len(rates) + 1, neurons))
    np.cumsum(rates, axis=0, out=cumulative[1:])
    counts = np.diff(_interpolate(cumulative, times * frame_rate), axis=0) / frame_rate
    activity = _noisy(np.maximum(counts, 0), noise, rng) / period
    wanted = (around + np.arange(frames)[:, None]) / frame_rate
    responses = _interpolate(activity, (wanted - first) / period).astype(np.float32)
    # Those between which the frames of all neurons lie, whatever their delay.
    base = phase + period * np.arange(1, len(activity) + 1)
    last = wanted[-1, 0] - scanner.delay.min()
    needed = (base > wanted[0, 0] - scanner.delay.max() - period) & (base < last + period)
    return Imaged(responses, activity[needed], origin + base[needed])


def _interpolate(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Column u of `values` [N, U] at the fractional rows `position` [M, U], linearly."""
    row = np.clip(np.floor(position).astype(np.intp), 0, len(values) - 2)
    part = position - row
    column = np.arange(values.shape[1])
    below, above = values[row, column], values[row + 1, column]
    return below + part * (above - below)


def _noisy(expected: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Compound Poisson-gamma events with mean `expected` and variance noise * DISPERSION * mean."""
    if noise == 0:
        return expected
    # Events of size gamma(shape 2) with mean m have variance / mean = m (1 + 1/2).
    size = noise * DISPERSION / 1.5
    events = rng.poisson(expected / size)
    return rng.standard_gamma(2.0 * events) * (size / 2)
