"""The kinds of panels there are: what is drawn together, in what unit, and how to read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fmcortex.tracking.series import Binned, Spread


@dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Attributes:
        name: as the legend says.
        bins: its points.
        colour: of the line.
        last: its latest value.
        extremes: whether the band between the extremes of each bin is drawn too.
    """

    name: str
    bins: Binned
    colour: str
    last: float | None
    extremes: bool = False


@dataclass(frozen=True)
class Panel:
    """A small figure.

    Attributes:
        title: what it shows.
        about: what is good and what is bad, in a sentence or two.
        unit: of the vertical axis; empty for none.
        lines: the curves.
        spread: of many metrics, drawn below the lines.
        logarithmic: whether the vertical axis may be; it is where all values are above zero.
        least: the vertical axis goes down to this at least.
        most: and up to this.
        clock: whether the horizontal axis is seconds since the start, rather than steps.
        notes: remarks on what is drawn.
    """

    title: str
    about: str = ""
    unit: str = ""
    lines: tuple[Line, ...] = ()
    spread: Spread | None = None
    logarithmic: bool = False
    least: float | None = None
    most: float | None = None
    clock: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Kind:
    """Metrics that share a panel.

    Attributes:
        panel: without its curves.
        metrics: what each is called in the legend, by its name.
        pattern: or a pattern of names, of which the groups together are called so in the legend.
        worst: which of many are named: the highest or the lowest; None for none.
        scale: what values are multiplied by.
    """

    panel: Panel
    metrics: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ""
    worst: str | None = None
    scale: float = 1.0


NODE = r"system/(?:(.+)/)?"

GROUPS: Mapping[str, Sequence[Kind]] = {
    "Loss": (
        Kind(
            Panel(
                "training loss",
                "Mean over the clips of a step. Falls fast, then slowly; noise is normal. A rise "
                "that stays, or values that are not finite, mean that training diverges: lower "
                "the learning rate.",
                "loss",
            ),
            {"train/loss": "each step", "epoch/loss": "mean of the epoch"},
        ),
        Kind(
            Panel(
                "training loss by session",
                "Sessions differ in level, as their neurons do. One that rises while the others "
                "fall has bad data or too few neurons.",
                "loss",
            ),
            pattern=r"loss/(.+)",
            worst="highest",
        ),
    ),
    "Validation": (
        Kind(
            Panel(
                "validation CC",
                "Correlation of predicted and mean recorded responses on held-out videos, mean "
                "over sessions. Higher is better. Flat while the loss falls: overfitting.",
                "CC_abs",
            ),
            {"validation/cc_abs": "mean over sessions"},
        ),
        Kind(
            Panel(
                "validation CC by session",
                "Median over the session's neurons. One that stays near 0 is not being learned.",
                "CC_abs",
            ),
            pattern=r"validation/cc_abs/(.+)",
            worst="lowest",
        ),
    ),
    "Optimization": (
        Kind(
            Panel("learning rate", "Warm-up, then its decay, once a cycle.", "rate", least=0),
            {"train/lr": "learning rate"},
        ),
        Kind(
            Panel(
                "gradient norms",
                "After adaptive and before global clipping. Steady or slowly falling is good; "
                "growth by orders of magnitude comes before divergence, and 0 means that a part "
                "is not trained.",
                "norm",
                logarithmic=True,
            ),
            {"grad/norm": "all", "grad/shared": "shared part", "grad/sessions": "session parts"},
        ),
        Kind(
            Panel(
                "units clipped",
                "Part of the units whose gradient adaptive clipping shortens. High early on; near "
                "1 for long, the learning rate is too high or clipping too tight.",
                "fraction",
                least=0,
            ),
            {"grad/clipped": "fraction of units"},
        ),
        Kind(
            Panel(
                "global clipping",
                "What all gradients are multiplied by to keep their norm; 1 is no clipping.",
                "factor",
                least=0,
            ),
            {"grad/coefficient": "factor"},
        ),
        Kind(
            Panel(
                "skipped steps",
                "So far, because a loss was not finite. Should stay 0; a few are harmless, a "
                "steady climb is not.",
                "steps",
                least=0,
                most=1,
            ),
            {"train/skipped": "skipped so far"},
        ),
    ),
    "Speed": (
        Kind(
            Panel(
                "steps per second",
                "Of the whole run. Should be steady; dips at checkpoints and validations pass.",
                "steps/s",
                least=0,
            ),
            {"speed/steps_per_second": "steps/s"},
        ),
        Kind(
            Panel("clips per second", "Over all ranks. Higher is better.", "clips/s", least=0),
            {"speed/clips_per_second": "clips/s"},
        ),
        Kind(
            Panel(
                "waiting for data",
                "Part of the time that training waits for clips. Above 0.05, raise data.prefetch "
                "or data.cache_mb, set data.cache_unpacked=true, or bring the data nearer.",
                "fraction",
                least=0,
                most=0.1,
            ),
            {"speed/stall_fraction": "fraction of the time"},
        ),
        Kind(
            Panel(
                "checkpoints",
                "How long one takes to be written, and for how long training stands still for it.",
                "seconds",
                least=0,
            ),
            {"checkpoint/seconds": "to write", "checkpoint/stall_seconds": "training waits"},
        ),
    ),
    "Memory": (
        Kind(
            Panel(
                "memory of a rank",
                "Of the rank that needs most. Should level off; steady growth ends in a kill.",
                "GB",
                least=0,
            ),
            {"memory/rss_gb": "main memory", "memory/gpu_gb": "GPU"},
        ),
    ),
    "Machines": (
        Kind(
            Panel(
                "CPU use",
                "Of all cores. 100% while GPUs idle: reading data is what limits the run.",
                "%",
                least=0,
                most=100,
                clock=True,
            ),
            pattern=NODE + "cpu_utilization_percentage",
        ),
        Kind(
            Panel(
                "memory in use",
                "Of the whole machine, every process on it.",
                "GB",
                least=0,
                clock=True,
            ),
            pattern=NODE + "system_memory_usage_megabytes",
            scale=1e-3,
        ),
        Kind(
            Panel(
                "GPU use",
                "Part of the time in which a kernel runs. Low while CPUs are busy: starved of "
                "data.",
                "%",
                least=0,
                most=100,
                clock=True,
            ),
            pattern=NODE + r"(gpu_\d+)_utilization_percentage",
            worst="lowest",
        ),
        Kind(
            Panel("GPU memory in use", "Every process on it.", "GB", least=0, clock=True),
            pattern=NODE + r"(gpu_\d+)_memory_usage_megabytes",
            worst="highest",
            scale=1e-3,
        ),
        Kind(
            Panel(
                "GPU power",
                "Far below the card's limit, it is not kept busy.",
                "W",
                least=0,
                clock=True,
            ),
            pattern=NODE + r"(gpu_\d+)_power_usage_watts",
            worst="lowest",
        ),
        Kind(
            Panel(
                "network",
                "Bytes that come in and go out. Remote shards and gradients pass here.",
                "MB/s",
                least=0,
                clock=True,
            ),
            pattern=NODE + r"network_(receive|transmit)_megabytes_per_second",
        ),
        Kind(
            Panel(
                "disk in use",
                "Of the root file system; at 100% checkpoints fail.",
                "%",
                least=0,
                most=100,
                clock=True,
            ),
            pattern=NODE + "disk_usage_percentage",
            worst="highest",
        ),
    ),
}
#: Said by another panel already.
LEFT_OUT = re.compile(
    NODE + r"(system_memory_usage_percentage|gpu_\d+_(memory|power)_usage_percentage"
    r"|disk_(usage|available)_megabytes|network_(receive|transmit)_megabytes)"
)
