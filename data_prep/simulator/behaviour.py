"""The animal's behaviour over a session: running, arousal, the pupil and its gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

#: A gap of the pupil's trace up to this many frames is interpolated, a longer one left as NaN.
LONGEST_BRIDGED = 10


@dataclass(frozen=True)
class Behaviour:
    """Behaviour at every stimulus frame of a session.

    Attributes:
        treadmill: running speed, cm/s [frames].
        arousal: standardised arousal that the pupil's size follows [frames].
        pupil_radius: camera pixels [frames].
    """

    treadmill: np.ndarray
    arousal: np.ndarray
    pupil_radius: np.ndarray


def smooth(values: np.ndarray, seconds: float, frame_rate: float) -> np.ndarray:
    """First-order low-pass along axis 0 with time constant `seconds`."""
    keep = np.exp(-1 / (seconds * frame_rate))
    start = keep * values[:1]
    return lfilter([1 - keep], [1, -keep], values, axis=0, zi=start)[0]


def slow_noise(
    frames: int, seconds: float, frame_rate: float, rng: np.random.Generator
) -> np.ndarray:
    """An Ornstein-Uhlenbeck process [frames] with unit variance and time constant `seconds`."""
    keep = np.exp(-1 / (seconds * frame_rate))
    kicks = rng.standard_normal(frames) * np.sqrt(1 - keep**2)
    return lfilter([1], [1, -keep], kicks, zi=[keep * rng.standard_normal()])[0]


def simulate_behaviour(frames: int, frame_rate: float, rng: np.random.Generator) -> Behaviour:
    """A session of bouts of running and rest; arousal, and with it the pupil, rises with running.

    Rest lasts 12 s and a bout 7 s on average. Pupil size and running are correlated but not the
    same, as in head-fixed mice (McGinley et al., Neuron 87, 179-192, 2015).
    """
    running = np.zeros(frames)
    frame, active = 0, bool(rng.random() < 0.4)
    while frame < frames:
        length = 1 + int(rng.exponential(7.0 if active else 12.0) * frame_rate)
        if active:
            running[frame : frame + length] = rng.lognormal(np.log(14), 0.35)
        frame, active = frame + length, not active
    bumps = 1 + 0.25 * slow_noise(frames, 0.3, frame_rate, rng)
    treadmill = np.maximum(0, smooth(running, 0.4, frame_rate) * bumps)
    treadmill += np.abs(rng.normal(0, 0.05, frames))  # encoder noise
    arousal = 0.8 * smooth(running, 1.5, frame_rate) / 14
    arousal = arousal - arousal.mean() + 0.75 * slow_noise(frames, 6.0, frame_rate, rng)
    arousal = (arousal - arousal.mean()) / (arousal.std() + 1e-9)
    base, swing = rng.uniform(22, 32), rng.uniform(4, 6)
    radius = np.maximum(6, base + swing * arousal) + rng.normal(0, 0.2, frames)
    return Behaviour(treadmill, arousal, radius)


def sample_blinks(
    frames: int, frame_rate: float, rate: float, long: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Gaps of the pupil's trace as (start, stop) frames, in order.

    Args:
        frames: of the whole session.
        frame_rate: Hz; the eye camera is taken to run on the stimulus clock.
        rate: gaps per minute.
        long: share of gaps longer than `LONGEST_BRIDGED` frames (12-40 frames).
        rng: its generator.
    """
    count = rng.poisson(rate * frames / frame_rate / 60)
    starts = np.sort(rng.integers(1, max(2, frames - 1), count))
    lengths = np.where(
        rng.random(count) < long, rng.integers(12, 41, count), rng.integers(2, 9, count)
    )
    gaps: list[tuple[int, int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        # Kept apart, so that two short gaps never make a long one.
        if not gaps or start > gaps[-1][1] + 1:
            gaps.append((start, min(frames - 1, start + length)))
    return gaps


def apply_blinks(trace: np.ndarray, gaps: list[tuple[int, int]]) -> np.ndarray:
    """A copy of `trace` [frames, ...] with short gaps interpolated and long ones NaN."""
    result = trace.copy()
    for start, stop in gaps:
        if stop - start > LONGEST_BRIDGED:
            result[start:stop] = np.nan
            continue
        before, after = trace[start - 1], trace[stop]
        share = np.arange(1, stop - start + 1) / (stop - start + 1)
        share = share.reshape(-1, *(1,) * (trace.ndim - 1))
        result[start:stop] = before + share * (after - before)
    return result
