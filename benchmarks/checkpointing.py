"""What saving checkpoints costs a run: in the background, as it does, and if it waited for them.

Runs the loop of a rank with readouts of thousands of neurons on simulated data: without saving,
saving every few steps, and saving and waiting. The three take turns, several times over; on two
ranks, and on one rank with half of the sessions, which leaves a core to the thread that saves.

    python benchmarks/checkpointing.py
    python benchmarks/checkpointing.py --ranks 1 --repetitions 1 --output build/benchmarks
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ranks import run_ranks
from simulated import prepared

import cluster.loop
from cluster.checkpoints import Saved, Saver
from cluster.reporter import Reporter
from fmcortex.config import RunConfig, load_config
from fmcortex.report.figures import GRID, KNOWN, MUTED, new_figure, style
from fmcortex.tables import number, print_table
from fmcortex.training.checkpoint import open_checkpoint
from fmcortex.training.snapshot import Snapshot
from fmcortex.training.step import Trainer

NONE, BACKGROUND, WAITING = "no saving", "in the background", "waiting for it"
WAYS = (NONE, BACKGROUND, WAITING)
COLOURS = dict(zip(WAYS, (MUTED, KNOWN["foundation"], KNOWN["transferred"]), strict=True))
#: First steps, slower than the rest, that do not count.
WARM = 3


@dataclass
class Times:
    """What a rank saw, in seconds.

    Attributes:
        steps: from the begin of each step to that of the next.
        saving: whether a save was under way at some time in each of these steps.
        stalls: for which training stood still at each save.
        saves: from the snapshot to the manifest of each save.
    """

    steps: list[float] = field(default_factory=list)
    saving: list[bool] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)


def train(rank: int, ranks: int, settings: dict[str, Any], way: str) -> Times:
    """Train one rank, and look at the clock."""
    times, began = Times(), [0.0]
    savers: list[Saver] = []

    class Watched(Saver):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            savers.append(self)

        def start(self, snapshot: Snapshot) -> None:
            super().start(snapshot)
            if way == WAITING:
                self.finish()

        def _ended(self, problem: object) -> Saved:
            saved = super()._ended(problem)
            times.saves.append(saved.seconds)
            # Where training waits, no later step sees the save: the one that made it does.
            times.saving[-1] = True
            return saved

    step, stalled = Trainer.step, Reporter.stalled

    def timed(self: Trainer, *arguments: Any) -> Any:
        now = time.perf_counter()
        if times.saving:
            times.steps.append(now - began[0])
        began[0] = now
        times.saving.append(savers[0].busy)
        return step(self, *arguments)

    def kept(self: Reporter, seconds: float) -> None:
        times.stalls.append(seconds)
        times.saving[-1] = True
        stalled(self, seconds)

    cluster.loop.Saver = Watched  # type: ignore[misc]
    Trainer.step, Reporter.stalled = timed, kept  # type: ignore[method-assign]
    cluster.loop.train_rank(RunConfig.model_validate(settings), rank, ranks)
    # The last step, whose end nobody saw, saves in every way.
    return Times(
        times.steps[WARM:],
        times.saving[WARM : len(times.steps)],
        times.stalls[:-1],
        times.saves[:-1],
    )


@dataclass(frozen=True)
class Measured:
    """What a way of saving took.

    Attributes:
        ranks: of the run.
        way: of `WAYS`.
        steps: all steps of all repetitions, seconds.
        median: of these.
        mean: of these, over the mean of those without saving.
        overlapping: median of the steps in which a save was under way.
        ratio: of the same to the median without saving; by repetition, then their median.
        stall: median for which training stood still at a save.
        save: median from the snapshot to the manifest.
        bytes: of a checkpoint.
    """

    ranks: int
    way: str
    steps: list[float]
    median: float
    mean: float
    overlapping: float | None
    ratio: float | None
    stall: float | None
    save: float | None
    bytes: int


def measure(ranks: int, url: str, folder: Path, options: argparse.Namespace) -> list[Measured]:
    """All ways on so many ranks, in turn."""
    names = [f"mouse{i + 1:02d}-1-1" for i in range(2 * ranks)]
    told: dict[str, list[Times]] = {way: [] for way in WAYS}
    size = 0
    for repetition in range(options.repetitions):
        for way in WAYS:
            run = folder / f"{ranks}-{repetition}-{WAYS.index(way)}"
            config = load_config(
                None,
                [
                    f"output={run}",
                    f"data.url={url}",
                    f"data.sessions={json.dumps(names)}",
                    f"data.frames={options.frames}",
                    "data.batch=1",
                    "model.preset=tiny",
                    "model.recurrent_out=512",
                    "training.burnin=1",
                    "training.epochs=1",
                    "training.warmup_cycles=0",
                    f"training.steps_per_epoch={options.steps}",
                    "tracking.validate_every=0",
                    f"checkpoint.every={10**6 if way == NONE else options.every}",
                ],
            )
            told[way].append(run_ranks(train, ranks, config.model_dump(mode="json"), way)[0])
            files = open_checkpoint(str(run)).manifest.files.values()
            size = sum(file.bytes for file in files)
    return [_summary(ranks, way, times, told[NONE], size) for way, times in told.items()]


def _summary(
    ranks: int, way: str, times: Sequence[Times], without: Sequence[Times], size: int
) -> Measured:
    def during(one: Times) -> list[float]:
        return [t for t, saving in zip(one.steps, one.saving, strict=True) if saving]

    steps = [t for one in times for t in one.steps]
    overlapping = [t for one in times for t in during(one)]
    ratios = [
        statistics.median(during(one)) / statistics.median(base.steps)
        for one, base in zip(times, without, strict=True)
        if during(one)
    ]
    return Measured(
        ranks,
        way,
        steps,
        median=statistics.median(steps),
        mean=float(np.mean(steps) / np.mean([t for one in without for t in one.steps])),
        overlapping=_median(overlapping),
        ratio=_median(ratios),
        stall=_median([t for one in times for t in one.stalls]),
        save=_median([t for one in times for t in one.saves]),
        bytes=size,
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def table(found: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    columns = ["ranks", "saving", "s/step", "s/step in a save", "ratio", "time of all steps"]
    columns += ["stall, s", "save, s", "checkpoint, MB"]
    rows = [
        [
            str(m.ranks),
            m.way,
            number(m.median),
            number(m.overlapping),
            number(m.ratio, 2),
            number(m.mean),
            number(m.stall),
            number(m.save, 2),
            number(m.bytes / 1e6, 0),
        ]
        for m in found
    ]
    return columns, rows


def draw(found: Sequence[Measured]) -> Any:
    """How many steps took how long, a panel a number of ranks."""
    ranks = sorted({m.ranks for m in found}, reverse=True)
    figure = new_figure(4.0 * len(ranks), 2.8)
    panels = figure.subplots(1, len(ranks), squeeze=False)[0]
    for ax, count in zip(panels, ranks, strict=True):
        mine = [m for m in found if m.ranks == count]
        for m in mine:
            x = np.sort(m.steps) / mine[0].median
            ax.plot(x, 1 - np.arange(len(x)) / len(x), color=COLOURS[m.way], lw=1.8, label=m.way)
        ax.set_yscale("log")
        ax.set_yticks([1, 0.1, 0.01], ["100%", "10%", "1%"])
        ax.minorticks_off()
        ax.set_xlabel("time of a step, of the median without saving")
        ax.set_ylabel("steps that take longer")
        ax.set_title(f"{count} rank{'s' * (count > 1)}", loc="left")
        ax.grid(color=GRID, lw=0.7)
        ax.set_axisbelow(True)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=len(WAYS),
        frameon=False,
        fontsize=8.5,
    )
    return figure


def main() -> None:
    """Measure, print, and write the results and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--neurons", type=int, default=2000, help="of a session (2000)")
    parser.add_argument("--frames", type=int, default=4, help="of a clip (4)")
    parser.add_argument("--steps", type=int, default=35, help="of a run (35)")
    parser.add_argument("--every", type=int, default=10, help="steps between saves (10)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", default="build/benchmarks", help="folder of the results")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = prepared(folder, [options.neurons] * 2 * max(options.ranks), minutes=0.3)
        for ranks in options.ranks:
            found += measure(ranks, url, folder, options)
    columns, rows = table(found)
    print_table(f"saving every {options.every} steps", columns, rows)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"settings": vars(options), "results": [asdict(m) for m in found]}
    (folder / "checkpointing.json").write_text(json.dumps(document, indent=1) + "\n")
    with style():
        draw(found).savefig(folder / "checkpointing.png", dpi=150)


if __name__ == "__main__":
    main()
