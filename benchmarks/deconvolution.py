"""How well and how fast fluorescence is deconvolved, by the way it is done.

Traces of an hour at 6.3 Hz are simulated: activity whose rate changes once a second, a calcium
response with a rise and a decay, noise, and a baseline that falls as dye bleaches. Told is the
correlation of what is found with the true activity, sample by sample and in bins of 1.3 s, the mean
over decays, rates and neurons. Then a session goes through the job, on one core.

    python benchmarks/deconvolution.py --neurons 2000
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from oasis import functions as oasis
from scipy.signal import lfilter

from data_prep.deconvolution import SLOWEST, DeconvolutionSettings, decay_of, deconvolve
from data_prep.deconvolve_job import deconvolve_sessions
from fmcortex.tables import print_table

RATE, SAMPLES, BIN = 6.3, int(3600 * 6.3), 8
#: Seconds of decay and rise, as of GCaMP6f and GCaMP6s, and one between.
RESPONSES = ((0.5, 0.05), (0.8, 0.12), (1.3, 0.18))
RATES = (0.1, 0.5)  # events a second, the mean
NOISES = (0.2, 0.5, 1.0)  # of the size of an event
REPEATS = 3
DRIFT = 8.0  # of the size of an event
NEURONS_OF_A_DECAY = 12

Way = Callable[[np.ndarray, np.ndarray, tuple[float, float]], np.ndarray]


def ours(**settings: float) -> Way:
    """`fmcortex deconvolve` with some settings."""

    def way(trace: np.ndarray, times: np.ndarray, _: tuple[float, float]) -> np.ndarray:
        return deconvolve(trace, times, DeconvolutionSettings(**settings)).values

    return way


def given_rise(trace: np.ndarray, times: np.ndarray, true: tuple[float, float]) -> np.ndarray:
    """With the true decay and rise."""
    settings = DeconvolutionSettings(decay_seconds=true[0], rise_seconds=true[1])
    return deconvolve(trace, times, settings).values


def estimated_rise(trace: np.ndarray, times: np.ndarray, _: tuple[float, float]) -> np.ndarray:
    """OASIS with its estimates of the decay and the rise."""
    return oasis.deconvolve(trace, tau_r=None, b_nonneg=False).s


WAYS: dict[str, Way] = {
    "as it comes": ours(),
    "true decay and rise given": given_rise,
    "detrend_seconds=0": ours(detrend_seconds=0),
    "OASIS, rise estimated": estimated_rise,
}


def simulate(
    generator: np.random.Generator, response: tuple[float, float], rate: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Activity and calcium [SAMPLES, count]."""
    spread = np.repeat(generator.normal(size=(SAMPLES // 6 + 1, count)), 6, axis=0)[:SAMPLES]
    activity = generator.poisson(rate / RATE * np.exp(1.2 * spread - 0.72)).astype(float)
    decay, rise = (np.exp(-1 / (seconds * RATE)) for seconds in response)
    calcium = lfilter([1.0], [1.0, -decay - rise, decay * rise], activity, axis=0)
    return activity, calcium / (decay / (decay - rise))  # an event is about one high


def quality() -> list[list[str]]:
    """The rows of the first table."""
    found: dict[tuple[str, float, bool], list[tuple[float, float, float]]] = {}
    times = np.arange(SAMPLES) / RATE
    fall = DRIFT * np.exp(-times / 1800)
    for response in RESPONSES:
        for rate in RATES:
            generator = np.random.default_rng(0)
            activity, calcium = simulate(generator, response, rate, REPEATS)
            noise = generator.normal(size=calcium.shape)
            for sigma in NOISES:
                for bleached in (False, True):
                    for neuron in range(REPEATS):
                        trace = 20 + calcium[:, neuron] + sigma * noise[:, neuron]
                        trace = trace + fall if bleached else trace
                        for name, way in WAYS.items():
                            start = time.perf_counter()
                            values = way(trace, times, response)
                            seconds = time.perf_counter() - start
                            score = scores(values, activity[:, neuron])
                            found.setdefault((name, sigma, bleached), []).append((*score, seconds))
    rows = []
    for sigma in NOISES:
        for bleached in (False, True):
            means = [np.mean(found[name, sigma, bleached], axis=0) for name in WAYS]
            cells = [f"{sample:.2f} / {binned:.2f}" for sample, binned, _ in means]
            rows.append([f"{sigma}", "yes" if bleached else "no", *cells])
    took = {
        name: [x[2] for key, some in found.items() if key[0] == name for x in some] for name in WAYS
    }
    return [*rows, ["ms a neuron", "", *(f"{1e3 * np.median(took[name]):.0f}" for name in WAYS)]]


def factor_by_sample(trace: np.ndarray, rate: float) -> float:
    """OASIS's decay with its factor of 0.98 from sample to sample, as fmcortex took it before."""
    found, _ = oasis.estimate_parameters(trace, p=1, fudge_factor=0.98)
    return min(float(oasis.ar1_to_tau(float(found[0]), rate)), SLOWEST)


def decays() -> list[list[str]]:
    """The decays found at several rates: the median over neurons, and from which to which."""
    rows = []
    for decay in (0.3, 0.5, 1.0, 2.0):
        for noise in (0.2, 1.0):
            for name, way in (("before", factor_by_sample), ("now", decay_of)):
                cells = []
                for rate in (6, 15, 30, 60):
                    found = []
                    for seed in range(NEURONS_OF_A_DECAY):
                        generator = np.random.default_rng(seed)
                        activity = generator.poisson(0.3 / rate, 1200 * rate).astype(float)
                        trace = lfilter([1.0], [1.0, -np.exp(-1 / (decay * rate))], activity)
                        trace += noise * generator.normal(size=len(trace))
                        found.append(way(trace, rate))
                    low, middle, high = min(found), float(np.median(found)), max(found)
                    cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
                rows.append([f"{decay}", f"{noise}", name, *cells])
    return rows


def scores(values: np.ndarray, activity: np.ndarray) -> tuple[float, float]:
    """Correlations with the true activity, by samples and by bins; 0 where nothing was found."""
    if np.ptp(values) == 0:
        return 0.0, 0.0
    whole = SAMPLES // BIN * BIN
    bins = [x[:whole].reshape(-1, BIN).mean(1) for x in (values, activity)]
    return float(np.corrcoef(values, activity)[0, 1]), float(np.corrcoef(*bins)[0, 1])


def job(neurons: int) -> str:
    """A line on the time and memory of deconvolving a session of an hour."""
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "mouse01-1-1"
        traces = session / "signals" / "fluorescence"
        traces.mkdir(parents=True)
        (session / "session.json").write_text(json.dumps({}))
        values = np.lib.format.open_memmap(
            traces / "values.npy", "w+", np.float32, (SAMPLES, neurons)
        )
        generator = np.random.default_rng(1)
        for start in range(0, neurons, 100):
            some = slice(start, min(start + 100, neurons))
            _, calcium = simulate(generator, RESPONSES[1], 0.3, some.stop - some.start)
            values[:, some] = 20 + calcium + 0.5 * generator.normal(size=calcium.shape)
        values.flush()
        np.save(traces / "times.npy", np.arange(SAMPLES) / RATE)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start_time = time.perf_counter()
        deconvolve_sessions(str(session))
        seconds = time.perf_counter() - start_time
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gigabytes = 4e-9 * values.size
    return (
        f"a session of {neurons} neurons and an hour, {gigabytes:.2f} GB: {seconds:.0f} s of a"
        f" core, {1e3 * seconds / neurons:.1f} ms a neuron; peak memory {peak / 2**20:.2f} GiB"
        f" ({before / 2**20:.2f} before)"
    )


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=2000, help="of the session")
    arguments = parser.parse_args()
    columns = ["decay, s", "noise", "", *(f"{rate} Hz" for rate in (6, 15, 30, 60))]
    print_table("the decay found, s", columns, decays())
    title = "correlation with the true activity, by samples / by bins of 1.3 s"
    print_table(title, ["noise", "bleached", *WAYS], quality())
    print(job(arguments.neurons))


if __name__ == "__main__":
    main()
