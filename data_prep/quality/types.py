"""What is known of the quality of one prepared session; `dataclasses.asdict` makes it JSON-ready.

Lists called [U] have an entry a neuron, None where it has no value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Videos:
    """The repeated videos of a tier and a stimulus domain.

    Attributes:
        tier, domain: of the videos.
        videos: how many.
        least, most: how often the least and the most repeated one was shown.
        minutes: of all repeats.
    """

    tier: str
    domain: str
    videos: int
    least: int
    most: int
    minutes: float


@dataclass(frozen=True)
class Rates:
    """Responses over the training trials.

    Attributes:
        mean: mean response [U], in the source's units.
        median: of `mean` over neurons.
        silent: the part of the neurons whose response never changes.
        very_high: the part of the neurons whose mean is far above the population's.
    """

    mean: list[float]
    median: float
    silent: float
    very_high: float


@dataclass(frozen=True)
class LeftOut:
    """A trial that was left out of the dataset.

    Attributes:
        trial, tier, reason: as the preparation noted them.
        after: number of training trials before it; None where the trials' names do not tell.
    """

    trial: str
    tier: str
    reason: str
    after: int | None


@dataclass(frozen=True)
class Missing:
    """Data that were not recorded.

    Attributes:
        excluded: trials that were left out.
        by_reason: number of these, by reason and tier.
        filled: the part of each training trial's behaviour that was interpolated over.
        filled_mean: the same over all training frames.
        repeats: number of repeats of validation and test videos that each neuron misses [U].
    """

    excluded: list[LeftOut]
    by_reason: dict[str, dict[str, int]]
    filled: list[float]
    filled_mean: float
    repeats: list[int]


@dataclass(frozen=True)
class FlatLine:
    """A stretch of a trial in which a channel stands still; times in seconds in the trial."""

    trial: str
    tier: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Channel:
    """A channel of pupil or behaviour over all training trials in order.

    Attributes:
        name: of the channel.
        pupil: whether it is of the pupil's position or size.
        low, high: least and greatest value, standardised.
        low_source, high_source: the same in the source's units.
        outliers: the part of the frames beyond `metrics.OUTLIER` standard deviations.
        flat: where it stands still, in training trials and repeats.
        trace_low, trace_high: least and greatest standardised value of each stretch of the trace.
    """

    name: str
    pupil: bool
    low: float
    high: float
    low_source: float
    high_source: float
    outliers: float
    flat: list[FlatLine]
    trace_low: list[float]
    trace_high: list[float]


@dataclass(frozen=True)
class Behaviour:
    """Pupil and treadmill.

    Attributes:
        channels: perspectives, then modulations.
        trial_minutes: training minutes at which each training trial starts, and the end.
        radius_treadmill: correlation of pupil radius and treadmill; None where one is not there
            or does not vary. A mouse that runs is aroused and its pupil wide, so it is positive.
    """

    channels: list[Channel]
    trial_minutes: list[float]
    radius_treadmill: float | None


@dataclass(frozen=True)
class Reliability:
    """How well responses repeat over the repeats of a tier's videos.

    Attributes:
        tier: test, or validation where no test video is repeated.
        videos: number of videos of the tier that count.
        too_short: names of those that do not, having no frames after the burn-in.
        repeats: the most that one was shown.
        burnin: first frames of each video that do not count.
        cc_max: of each neuron over all these videos [U]; None where the signal power is not
            positive.
        without: number of neurons without one.
        median: over the neurons that have one.
        by_area: median in each area.
        by_domain: median over neurons of CC_max on the videos of each domain alone, as
            `fmcortex evaluate` scores them.
    """

    tier: str
    videos: int
    too_short: list[str]
    repeats: int
    burnin: int
    cc_max: list[float | None]
    without: int
    median: float | None
    by_area: dict[str, float | None]
    by_domain: dict[str, float | None]


@dataclass(frozen=True)
class Drift:
    """The population's response over the session.

    Attributes:
        minutes: of kept trials of all tiers before each training trial.
        population: mean response over neurons and frames of each training trial, in units of the
            neurons' response scales.
        change: of the straight line through them from the first to the last, relative to their
            mean, without trials that are flagged for it; None where there is no line.
        correlation: of the response with the minutes in the same trials; None likewise.
    """

    minutes: list[float]
    population: list[float]
    change: float | None
    correlation: float | None


@dataclass(frozen=True)
class Reason:
    """Why something is flagged: one of a few kinds, and what was found."""

    kind: str
    detail: str


@dataclass(frozen=True)
class NeuronFlag:
    """A neuron to look at: its number from 0, its id and area, and why."""

    neuron: int
    unit_id: int
    area: str | None
    reasons: list[Reason]


@dataclass(frozen=True)
class TrialFlag:
    """A trial to look at: its name in the source, its tier, and why."""

    trial: str
    tier: str
    reasons: list[Reason]


@dataclass(frozen=True)
class Duplicate:
    """Two neurons that respond alike; numbers from 0."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True)
class SessionQuality:
    """All of one session.

    Attributes:
        session, animal, layout, neurons, frame_rate: as its manifest has them.
        areas, layers: number of neurons in each; empty where the neuron table does not tell.
        train_minutes: of the training tier.
        trials: names of the training trials in order [n].
        videos: repeated videos by tier and domain.
        reliability: None where no video is repeated.
        duplicates: pairs of neurons that seem to be one cell.
        area_of: of each neuron [U]; None where the table does not tell.
        position: x and y of each neuron, micrometres [U]; None where the table has none.
        remarks: what to look at first, a sentence each.
    """

    session: str
    animal: str
    layout: str
    neurons: int
    frame_rate: float
    areas: dict[str, int]
    layers: dict[str, int]
    train_minutes: float
    trials: list[str]
    videos: list[Videos]
    rates: Rates
    missing: Missing
    behaviour: Behaviour
    reliability: Reliability | None
    drift: Drift
    duplicates: list[Duplicate]
    neuron_flags: list[NeuronFlag]
    trial_flags: list[TrialFlag]
    area_of: list[str] | None
    position: tuple[list[float], list[float]] | None
    remarks: list[str]
