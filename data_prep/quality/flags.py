"""Which neurons and trials of a session a person should look at before training, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.quality.metrics import OUTLIER, robust_z
from data_prep.quality.types import (
    Behaviour,
    Drift,
    Duplicate,
    FlatLine,
    Missing,
    NeuronFlag,
    Rates,
    Reason,
    Reliability,
    TrialFlag,
)
from fmcortex.data.manifest import SessionManifest

#: Robust standard deviations from the population's median that are extreme. Of normal values one
#: in two million lies so far out, so that even of ten thousand neurons none should by chance.
EXTREME = 5.0
#: The least standard deviation of log10 of the neurons' scales that is believed: 12%. In a
#: population that is more alike than that, a neuron must still be twice as strong to be flagged.
LEAST_LOG_SPREAD = 0.06
#: The least standard deviation of the trials' population means, relative to their median, that is
#: believed: what is within 10% of the others is no bad trial.
LEAST_TRIAL_SPREAD = 0.02
#: A neuron below cannot be predicted: even a perfect model would explain less than 4% of the
#: variance of its mean response.
LOW_CC_MAX = 0.2
#: The part of a trial's behaviour beyond which too much of it is made up by interpolation.
MOST_FILLED = 0.1
#: Two cells of one population do not correlate so much from frame to frame; one cell that was
#: imaged in two planes, or segmented twice, does.
SAME_CELL = 0.95
#: Change of the population's response over a session that bleaching or lost focus explain better
#: than arousal and chance do.
LARGE_DRIFT = 0.3
#: Correlation with time below which such a change is scatter, no trend.
CLEAR_TREND = 0.5
#: The part of the trials left out beyond which something went wrong in the recording.
MANY_LEFT_OUT = 0.1
#: The part of a channel's frames beyond `OUTLIER` standard deviations that no blink explains.
MANY_OUTLIERS = 0.001


def extreme_scale(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust z of the neurons' mean and standard deviation, in logarithms.

    Scales of neurons are spread over powers of ten, so that only their logarithm has outliers in
    the ordinary sense.

    Args:
        mean: [U], any units that all neurons share; not positive ones have no logarithm.
        std: [U], likewise.

    Returns:
        Of the mean [U], of the standard deviation [U]; NaN where there is no logarithm.
    """
    found = []
    for values in (mean, std):
        log = np.full(len(values), np.nan)
        np.log10(values, where=values > 0, out=log)
        found.append(robust_z(log, LEAST_LOG_SPREAD))
    return found[0], found[1]


def flag_neurons(
    silent: np.ndarray,
    scales: tuple[np.ndarray, np.ndarray],
    missing: np.ndarray,
    cc_max: Sequence[float | None] | None,
    duplicates: Sequence[Duplicate],
    unit_ids: np.ndarray,
    areas: Sequence[str] | None,
) -> list[NeuronFlag]:
    """The neurons to look at, in their order.

    Args:
        silent: whether the response never changes, bool [U].
        scales: as of `extreme_scale`.
        missing: number of repeats that each misses, int [U].
        cc_max: of each [U], None where it has none; None if nothing was repeated.
        duplicates: pairs.
        unit_ids: [U].
        areas: of each [U], if known.
    """
    twins: dict[int, Duplicate] = {}
    for pair in duplicates:
        for neuron in (pair.first, pair.second):
            if neuron not in twins or pair.correlation > twins[neuron].correlation:
                twins[neuron] = pair
    flags = []
    for neuron in range(len(silent)):
        reasons = []
        if silent[neuron]:
            reasons.append(Reason("silent", "the response never changes in training"))
        for z, what in zip(scales, ("mean", "standard deviation"), strict=True):
            if abs(z[neuron]) > EXTREME and not silent[neuron]:
                side = "above" if z[neuron] > 0 else "below"
                detail = f"{what} {abs(z[neuron]):.1f} robust SD {side} the population's"
                reasons.append(Reason("extreme scale", detail))
                break
        if missing[neuron]:
            reasons.append(Reason("missing", f"missing in {_times(int(missing[neuron]))}"))
        if cc_max is not None:
            value = cc_max[neuron]
            if value is None:
                reasons.append(Reason("no CC_max", "repeats share no signal"))
            elif value < LOW_CC_MAX:
                reasons.append(Reason("low CC_max", f"{value:.2f}"))
        if neuron in twins:
            pair = twins[neuron]
            other = pair.second if neuron == pair.first else pair.first
            detail = f"correlates by {pair.correlation:.3f} with neuron {other}"
            reasons.append(Reason("duplicate", detail))
        if reasons:
            area = None if areas is None else areas[neuron]
            flags.append(NeuronFlag(neuron, int(unit_ids[neuron]), area, reasons))
    return flags


def trial_z(population: np.ndarray) -> np.ndarray:
    """Robust z [n] of the trials' population means [n]."""
    return robust_z(population, LEAST_TRIAL_SPREAD * abs(float(np.median(population))))


def flag_trials(
    manifest: SessionManifest, z: np.ndarray, pupil: Mapping[str, Sequence[FlatLine]]
) -> list[TrialFlag]:
    """The trials to look at: of training in their order, then repeats.

    Args:
        manifest: of the session.
        z: of the training trials' population means [n].
        pupil: flat lines by the name of each channel of the pupil.
    """
    flat: dict[tuple[str, str], list[str]] = {}
    for name, lines in pupil.items():
        for line in lines:
            said = f"{name} stands still for {line.seconds:.1f} s"
            flat.setdefault((line.tier, line.trial), []).append(said)
    shown = [("train", trial) for trial in manifest.trials]
    shown += [(video.tier, trial) for video in manifest.videos for trial in video.shown]
    flags = []
    for number, (tier, trial) in enumerate(shown):
        reasons = []
        if number < len(z) and abs(z[number]) > EXTREME:
            side = "above" if z[number] > 0 else "below"
            detail = f"mean response {abs(z[number]):.1f} robust SD {side} the session's"
            reasons.append(Reason("population response", detail))
        if trial.filled > MOST_FILLED:
            reasons.append(Reason("filled", f"{trial.filled:.0%} of behaviour is interpolated"))
        reasons += [Reason("flat pupil", said) for said in flat.get((tier, trial.key), [])]
        if reasons:
            flags.append(TrialFlag(trial.key, tier, reasons))
    return flags


def remarks(
    rates: Rates,
    missing: Missing,
    behaviour: Behaviour,
    found: Reliability | None,
    drift: Drift,
    duplicates: Sequence[Duplicate],
    trials: Sequence[TrialFlag],
) -> list[str]:
    """What to look at first, a sentence each; none where nothing stands out."""
    said = []
    left_out = sum(item.tier == "train" for item in missing.excluded)
    share = left_out / (left_out + len(missing.filled))
    if share > MANY_LEFT_OUT:
        said.append(f"{share:.0%} of the training trials were left out.")
    if rates.silent > 0:
        said.append(f"{rates.silent:.1%} of the neurons are silent.")
    if found is None:
        said.append("No video is repeated, so the reliability of responses is unknown.")
    elif found.median is None:
        said.append("No neuron has a CC_max: repeats of a video share no signal.")
    elif found.median < LOW_CC_MAX:
        said.append(f"The median CC_max is only {found.median:.2f}.")
    if drift.change is not None and drift.correlation is not None:
        large, clear = abs(drift.change) > LARGE_DRIFT, abs(drift.correlation) > CLEAR_TREND
        if large and clear:
            way = "falls" if drift.change < 0 else "rises"
            said.append(
                f"The population's response {way} by {abs(drift.change):.0%} of its mean over the"
                " session: bleaching, or the focus moved?"
            )
    if duplicates:
        pairs = _some(len(duplicates), "pair")
        said.append(f"Neurons that may be one cell, as they respond so much alike: {pairs}.")
    for channel in behaviour.channels:
        if channel.outliers > MANY_OUTLIERS:
            said.append(f"{channel.outliers:.2%} of {channel.name} lies beyond {OUTLIER:g} SD.")
    odd = sum(any(r.kind == "population response" for r in flag.reasons) for flag in trials)
    if odd:
        said.append(f"The population's response stands out in {_some(odd, 'trial')}.")
    still = sum(any(r.kind == "flat pupil" for r in flag.reasons) for flag in trials)
    if still:
        said.append(f"The pupil's trace stands still in {_some(still, 'trial')}.")
    return said


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _times(count: int) -> str:
    return _some(count, "repeat")
