"""The quality of a prepared session in numbers: what to know before training on it.

Training trials are read one by one and repeated videos one by one, so that a session of any
length fits in memory.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.journal import SURVEY
from data_prep.quality.flags import (
    EXTREME,
    SAME_CELL,
    extreme_scale,
    flag_neurons,
    flag_trials,
    remarks,
    trial_z,
)
from data_prep.quality.metrics import Traces, most_alike, trend
from data_prep.quality.repeats import (
    BURNIN,
    Repeats,
    count_videos,
    flat_in_trial,
    look_at_repeats,
    reliability,
)
from data_prep.quality.types import (
    Behaviour,
    Channel,
    Drift,
    Duplicate,
    FlatLine,
    LeftOut,
    Missing,
    Rates,
    SessionQuality,
)
from data_prep.resampling import Moments
from data_prep.survey import Survey
from fmcortex import storage
from fmcortex.data.dataset import PreparedSession
from fmcortex.data.manifest import SessionManifest, Trial
from fmcortex.errors import DataError

__all__ = ["BURNIN", "SessionQuality", "session_quality"]

#: Stretches of a trace; more cannot be seen.
TRACE_POINTS = 2000
#: Frames over which neurons are compared to find duplicates: at 30 Hz two minutes, in which
#: independent neurons do not reach `SAME_CELL`.
DUPLICATE_FRAMES = 3600
#: Responses that are kept for that, 4 bytes each: 64 MiB.
DUPLICATE_VALUES = 1 << 24
#: Fewer frames do not tell duplicates from chance.
LEAST_DUPLICATE_FRAMES = 60


def session_quality(
    session: PreparedSession, burnin: int = BURNIN, track: Callable[[str], None] | None = None
) -> SessionQuality:
    """Look through a session.

    Args:
        session: of a prepared dataset.
        burnin: first frames of each repeated video that do not count in CC_max.
        track: is told of every training trial and every video before it is read.

    Raises:
        DataError: a part of the session is missing or damaged.
        StorageError: it cannot be read.
    """
    say = track or (lambda what: None)
    manifest = session.manifest
    survey = read_survey(session)
    table = session.neurons()
    areas, layers = _text(table, "area"), _text(table, "layer")
    training = _read_training(session, say)
    repeats = look_at_repeats(session, say)
    found = reliability(session, burnin, areas, say)
    scale = session.response_scale()
    mean, std = training.responses.mean * scale, training.responses.std * scale
    # What rounding leaves of a constant is no response.
    silent = std <= 1e-6 * np.abs(mean)
    scales = extreme_scale(np.where(silent, np.nan, mean), np.where(silent, np.nan, std))
    rates = Rates(
        mean=mean.tolist(),
        median=float(np.median(mean)),
        silent=float(silent.mean()),
        very_high=float((scales[0] > EXTREME).mean()),
    )
    missing = _missing(manifest, repeats)
    behaviour = _behaviour(manifest, training, repeats)
    z = trial_z(training.population)
    drift = _drift(manifest, survey, training.population, np.abs(z) <= EXTREME)
    duplicates = _duplicates(training, z)
    pupil = {channel.name: channel.flat for channel in behaviour.channels if channel.pupil}
    trials = flag_trials(manifest, z, pupil)
    return SessionQuality(
        session=manifest.session,
        animal=manifest.animal,
        layout=manifest.layout,
        neurons=manifest.neurons,
        frame_rate=manifest.frame_rate,
        areas=_counts(areas),
        layers=_counts(layers),
        train_minutes=manifest.train_minutes,
        trials=[trial.key for trial in manifest.trials],
        videos=count_videos(session),
        rates=rates,
        missing=missing,
        behaviour=behaviour,
        reliability=found,
        drift=drift,
        duplicates=duplicates,
        neuron_flags=flag_neurons(
            silent,
            scales,
            repeats.missing,
            None if found is None else found.cc_max,
            duplicates,
            table["unit_id"],
            None if areas is None else areas.tolist(),
        ),
        trial_flags=trials,
        position=_position(table),
        area_of=None if areas is None else areas.tolist(),
        remarks=remarks(rates, missing, behaviour, found, drift, duplicates, trials),
    )


def read_survey(session: PreparedSession) -> Survey:
    """What was found on the first reading of the session's source.

    Raises:
        DataError: `survey.json` is not the one that the session's manifest names.
        StorageError: it cannot be read.
    """
    url = storage.join(session.url, SURVEY)
    content = storage.read_bytes(url)
    stored = session.manifest.files.get(SURVEY)
    if stored is not None and storage.sha256(content) != stored.sha256:
        raise DataError(f"{url}: differs from its checksum in the session's manifest")
    return Survey.parse_sealed(content, url)


@dataclass
class _Training:
    """What was gathered while all training trials were read once.

    Attributes:
        responses: moments of the responses, divided by the response scale.
        population: mean over neurons and frames of each trial [n].
        traces: of perspectives and modulations.
        flat: flat lines of each channel.
        sample: number of a trial of the random subset, and its responses [t, U].
    """

    responses: Moments
    population: np.ndarray
    traces: Traces
    flat: list[list[FlatLine]]
    sample: list[tuple[int, np.ndarray]]


def _read_training(session: PreparedSession, say: Callable[[str], None]) -> _Training:
    manifest = session.manifest
    channels = len(manifest.perspectives) + len(manifest.modulations)
    found = _Training(
        Moments(manifest.neurons),
        np.empty(len(manifest.trials)),
        Traces(channels, manifest.train_frames, TRACE_POINTS),
        [[] for _ in range(channels)],
        [],
    )
    chosen = _subset(manifest)
    for number, trial in enumerate(manifest.trials):
        say(f"trial {trial.key}")
        arrays = session.trial(number)
        found.responses.add(arrays.responses)
        found.population[number] = arrays.responses.mean(dtype=np.float64)
        both = arrays.perspectives, arrays.modulations
        found.traces.add(np.concatenate(both, axis=1))
        lines = flat_in_trial(both, manifest.frame_rate, trial.key, "train")
        for channel, new in zip(found.flat, lines, strict=True):
            channel += new
        if number in chosen:
            found.sample.append((number, arrays.responses[: chosen[number]].copy()))
    return found


def _subset(manifest: SessionManifest) -> dict[int, int]:
    """Training trials in which neurons are compared, the same in every run: frames by number."""
    left = max(1, min(DUPLICATE_FRAMES, DUPLICATE_VALUES // manifest.neurons))
    chosen = {}
    for number in np.random.default_rng(0).permutation(len(manifest.trials)).tolist():
        frames = min(left, manifest.trials[number].frames)
        if frames > 0:
            chosen[number] = frames
        left -= frames
    return chosen


def _duplicates(training: _Training, z: np.ndarray) -> list[Duplicate]:
    """Neurons that are nearly the same as another: each with the one that is most alike.

    Trials are centred, as slow changes that all neurons share say nothing of who is who; for the
    same reason trials in which the whole population stands out do not count.
    """
    blocks = [
        block - block.mean(axis=0) for number, block in training.sample if abs(z[number]) <= EXTREME
    ]
    if sum(map(len, blocks)) < LEAST_DUPLICATE_FRAMES:
        return []
    other, most = most_alike(np.concatenate(blocks))
    pairs = {
        (min(neuron, int(other[neuron])), max(neuron, int(other[neuron]))): float(most[neuron])
        for neuron in np.flatnonzero(most > SAME_CELL).tolist()
    }
    return [Duplicate(*pair, correlation) for pair, correlation in sorted(pairs.items())]


def _missing(manifest: SessionManifest, repeats: Repeats) -> Missing:
    by_reason: dict[str, dict[str, int]] = {}
    counts = Counter((item.reason, item.tier) for item in manifest.excluded)
    for (reason, tier), count in sorted(counts.items()):
        by_reason.setdefault(reason, {})[tier] = count
    filled = sum(trial.filled * trial.frames for trial in manifest.trials)
    return Missing(
        excluded=[
            LeftOut(e.trial, e.tier, e.reason, _place(e.trial, manifest.trials))
            for e in manifest.excluded
        ],
        by_reason=by_reason,
        filled=[trial.filled for trial in manifest.trials],
        filled_mean=filled / manifest.train_frames,
        repeats=repeats.missing.tolist(),
    )


def _place(key: str, trials: list[Trial]) -> int | None:
    """How many training trials precede the one called `key`, where names are numbered in order."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in (key, *(t.key for t in trials))]
    if any(part is None or parts[0] is None or part[1] != parts[0][1] for part in parts):
        return None
    own, *numbers = [int(part[2]) for part in parts if part is not None]
    return bisect_left(numbers, own) if numbers == sorted(numbers) else None


def _behaviour(manifest: SessionManifest, training: _Training, repeats: Repeats) -> Behaviour:
    names = manifest.perspectives + manifest.modulations
    statistics = manifest.statistics
    means = statistics.perspective_mean + statistics.modulation_mean
    stds = statistics.perspective_std + statistics.modulation_std
    traces = training.traces
    channels = []
    for i, name in enumerate(names):
        low, high = float(traces.low[:, i].min()), float(traces.high[:, i].max())
        # A change is a derivative, not a signal of the tracker.
        pupil = i < len(manifest.perspectives) or ("pupil" in name and "change" not in name)
        channels.append(
            Channel(
                name=name,
                pupil=pupil,
                low=low,
                high=high,
                low_source=_unscaled(low, means[i], stds[i]),
                high_source=_unscaled(high, means[i], stds[i]),
                outliers=float(traces.outliers[i]),
                flat=training.flat[i] + repeats.flat[i],
                trace_low=traces.low[:, i].round(3).tolist(),
                trace_high=traces.high[:, i].round(3).tolist(),
            )
        )
    starts = np.cumsum([0, *(trial.frames for trial in manifest.trials)])
    radius = next((i for i, name in enumerate(names) if name == "pupil_radius"), None)
    treadmill = next((i for i, name in enumerate(names) if name.startswith("treadmill")), None)
    both = radius is not None and treadmill is not None
    return Behaviour(
        channels=channels,
        trial_minutes=(starts / manifest.frame_rate / 60).tolist(),
        radius_treadmill=traces.correlation(radius, treadmill) if both else None,  # type: ignore[arg-type]
    )


def _unscaled(value: float, mean: float, std: float) -> float:
    """A standardised value in the source's units; a zero that float32 rounded is zero again."""
    found = value * std + mean
    return 0.0 if abs(found) < 1e-5 * std else found


def _drift(
    manifest: SessionManifest, survey: Survey, population: np.ndarray, ordinary: np.ndarray
) -> Drift:
    """The population's response over the minutes of all trials that were kept, in their order.

    The line is laid through ordinary trials: a single artefact would turn it, or hide it.
    """
    before = {}
    frames = 0
    for trial in survey.trials:
        if trial.tier == "train":
            before[trial.key] = frames / manifest.frame_rate / 60
        frames += trial.frames
    minutes = np.array([before[trial.key] for trial in manifest.trials])
    line = trend(minutes[ordinary], population[ordinary])
    change, correlation = (None, None) if line is None else line
    return Drift(minutes.tolist(), population.tolist(), change, correlation)


def _text(table: dict[str, np.ndarray], column: str) -> np.ndarray | None:
    """A column of names as text [U]; None if the table has none."""
    return np.array([str(value) for value in table[column]]) if column in table else None


def _counts(names: np.ndarray | None) -> dict[str, int]:
    return {} if names is None else dict(sorted(Counter(names.tolist()).items()))


def _position(table: dict[str, np.ndarray]) -> tuple[list[float], list[float]] | None:
    """x and y of the neurons, micrometres, if all have them."""
    if "x" not in table or "y" not in table:
        return None
    x, y = (np.asarray(table[axis], float) for axis in ("x", "y"))
    return (x.tolist(), y.tolist()) if np.isfinite([x, y]).all() else None
