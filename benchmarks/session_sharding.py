"""What it costs to keep each session on one rank, against readouts replicated on all ranks.

Trains the same clips of the same mice on the same number of ranks in three ways: each session on
one rank with the shared part in DeepSpeed (ZeRO 0 and 1), and all sessions on every rank in
DistributedDataParallel. Counts what a rank holds and sends.

    python benchmarks/session_sharding.py
    python benchmarks/session_sharding.py --sessions 2 4 --steps 2 --output build/benchmarks
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from ranks import Answer, Group, count_bytes
from session_ways import CPU, MODEL, TRAINING, Replicated, Sharded
from torch import Tensor

from cluster.engine import DeepSpeedEngine
from fmcortex.data.loader import Batch
from fmcortex.data.plan import SamplingPlan
from fmcortex.model.sizes import PRESETS
from fmcortex.report.figures import GRID, KNOWN, new_figure, style
from fmcortex.tables import print_table
from fmcortex.training.build import build_shared
from fmcortex.training.memory import numbers

WAYS = {"sharded, ZeRO 0": 0, "sharded, ZeRO 1": 1, "replicated, DDP": None}
COLOURS = dict(zip(WAYS, (KNOWN["individual"], KNOWN["foundation"], "#c0504d"), strict=True))
DDP = "replicated, DDP"
MB = 1e6


@dataclass(frozen=True)
class Measured:
    """What one way took with so many sessions.

    Attributes:
        way: of `WAYS`.
        sessions: of the run.
        owned: sessions of the busiest rank; where all are on every rank, those it trains.
        parameters: bytes of a rank's parameters.
        optimizer: bytes of its optimizer states.
        gradients: bytes of all other tensors when it is about to step: gradients, and what is
            made of them.
        rss: growth of the process's peak memory since before anything was built, bytes.
        sent: bytes handed to collectives in a step.
        seconds: median of a step.
        ratio: median of a step's seconds over those of DDP's step beside it.
    """

    way: str
    sessions: int
    owned: int
    parameters: int
    optimizer: int
    gradients: int
    rss: int
    sent: int
    seconds: float
    ratio: float

    @property
    def held(self) -> int:
        """Bytes of all tensors."""
        return self.parameters + self.optimizer + self.gradients


def make_plan(sessions: int, frames: int) -> SamplingPlan:
    """A lane a session."""
    names = [f"mouse{i:02d}" for i in range(sessions)]
    lengths = {name: [10 * frames] for name in names}
    trials = {name: [0] for name in names}
    return SamplingPlan(0, [[n] for n in names], lengths, trials, frames, 1, 1)


def make_batch(plan: SamplingPlan, lane: int, step: int, neurons: int) -> Batch:
    """A micro-batch of noise."""
    rng = torch.Generator().manual_seed(lane + 1000 * step)
    shape = (1, plan.clip)
    return Batch(
        plan.draw(lane, step),
        torch.randint(0, 256, (*shape, 36, 64), generator=rng, dtype=torch.uint8),
        torch.randn(*shape, MODEL.perspectives, generator=rng),
        torch.randn(*shape, MODEL.modulations, generator=rng),
        torch.rand(*shape, neurons, generator=rng),
    )


def make_rank(
    rank: int, ranks: int, stage: int | None, sessions: int, neurons: int, frames: int
) -> Answer:
    """Build one rank; it trains a step whenever it is asked to."""
    counted = count_bytes()
    plan = make_plan(sessions, frames)
    _warm_up()
    _release()
    before = psutil.Process().memory_info().rss
    way: Any = (
        Replicated(rank, ranks, plan, neurons)
        if stage is None
        else Sharded(rank, ranks, plan, neurons, stage)
    )
    done = 0

    def answer(measure: bool) -> dict[str, Any]:
        nonlocal done
        batches = [make_batch(plan, lane, done, neurons) for lane in way.lanes]
        found: dict[str, Any] = {}
        if measure:
            _before(way, lambda: found.update(_held(way, batches)))
        counted.clear()
        dist.barrier()
        began = time.perf_counter()
        way.step(done, batches)
        found["seconds"] = time.perf_counter() - began
        found["sent"] = sum(counted.values())
        found["owned"] = len(way.lanes)
        found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        done += 1
        return found

    return answer


def _warm_up() -> None:
    """Load what DeepSpeed loads late, in every way, so that it is not taken for growth."""
    engine = DeepSpeedEngine(build_shared(PRESETS["tiny"], 0), TRAINING, CPU, 1)
    engine.reduce({}, {0})
    engine.step({}, 0.0, {0})


def _release() -> None:
    """Give freed memory back, so that what is built next is seen to grow."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _before(way: Any, act: Any) -> None:
    """Do `act` before the next step of the parameters."""
    owner, name = way.stepping
    original = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        act()
        setattr(owner, name, original)
        return original(*arguments, **options)

    setattr(owner, name, patched)


def _held(way: Any, batches: Sequence[Batch]) -> dict[str, int]:
    """Bytes of all tensors of this process, by kind; shared storage counts once."""
    inputs = [(b.stimuli, b.perspectives, b.modulations, b.responses) for b in batches]
    seen = {_storage(t)[0] for some in inputs for t in some}

    def bytes_of(tensors: Iterable[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            where, size = _storage(tensor)
            if where not in seen:
                seen.add(where)
                total += size
        return total

    return {
        "parameters": bytes_of(way.parameters),
        "optimizer": bytes_of(way.states()),
        "gradients": bytes_of(o for o in gc.get_objects() if issubclass(type(o), Tensor)),
    }


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def measure(sessions: int, options: argparse.Namespace) -> list[Measured]:
    """All ways with so many sessions, which take their steps in turn."""
    groups = {
        way: Group(make_rank, options.ranks, stage, sessions, options.neurons, options.frames)
        for way, stage in WAYS.items()
    }
    try:
        told: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in groups}
        for _ in range(2 + options.steps):  # two to warm up
            for way, group in groups.items():
                told[way].append(group.ask(False))
        kinds = {way: group.ask(True) for way, group in groups.items()}
    finally:
        for group in groups.values():
            group.close()
    times = {
        way: [max(rank["seconds"] for rank in one) for one in steps[2:]]
        for way, steps in told.items()
    }
    found = []
    for way, steps in told.items():
        of_rank, last = kinds[way], steps[-1]
        found.append(
            Measured(
                way,
                sessions,
                owned=max(one["owned"] for one in last),
                parameters=max(one["parameters"] for one in of_rank),
                optimizer=max(one["optimizer"] for one in of_rank),
                gradients=max(one["gradients"] for one in of_rank),
                rss=max(one["rss"] for one in last),
                sent=max(one["sent"] for one in last),
                seconds=statistics.median(times[way]),
                ratio=statistics.median(np.divide(times[way], times[DDP]).tolist()),
            )
        )
    return found


def table(found: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    columns = ["sessions", "way", "parameters", "optimizer", "gradients", "held, MB"]
    columns += ["peak RSS, MB", "sent, MB/step", "s/step", "ratio to DDP"]
    rows = []
    for m in found:
        sizes = (m.parameters, m.optimizer, m.gradients, m.held, m.rss, m.sent)
        times = (m.seconds, m.ratio)
        row = [str(m.sessions), m.way, *(f"{size / MB:.1f}" for size in sizes)]
        rows.append([*row, *(f"{t:.2f}" for t in times)])
    return columns, rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a document."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Sequence[Measured], shared: int, ranks: int) -> Any:
    """Memory of a rank, the same for each session that it trains, and bytes of a step."""
    figure = new_figure(9.6, 3.1)
    panels = figure.subplots(1, 3)
    values = (
        lambda m: m.held / MB,
        lambda m: (m.held - _once_only(m, found)) / m.owned / MB,
        lambda m: m.sent / MB,
    )
    titles = (
        "Held by a rank, MB",
        "Held for each session trained, MB",
        "Sent by a rank in a step, MB",
    )
    for ax, value, title in zip(panels, values, titles, strict=True):
        for way in WAYS:
            points = [(m.sessions, value(m)) for m in found if m.way == way]
            first = way == next(iter(WAYS))  # thick: the second lies on it
            ax.plot(
                *zip(*points, strict=True),
                "o-",
                ms=7 if first else 3.5,
                lw=4 if first else 1.6,
                alpha=0.5 if first else 1.0,
                color=COLOURS[way],
                label=way,
            )
        ax.set_xscale("log", base=2)
        sessions = sorted({m.sessions for m in found})
        ax.set_xticks(sessions, [str(s) for s in sessions])
        ax.set_xlabel(f"sessions, on {ranks} ranks")
        ax.set_title(title, loc="left")
        ax.grid(axis="y", color=GRID, lw=0.7)
        ax.set_axisbelow(True)
    panels[0].set_ylim(0)
    panels[1].set_ylim(0)
    panels[2].set_yscale("log")
    ticks = [1, 3, 10, 30, 100]
    panels[2].minorticks_off()
    panels[2].set_ylim(0.8 * shared / MB)
    panels[2].set_yticks([t for t in ticks if t > 0.8 * shared / MB])
    panels[2].set_yticklabels([str(t) for t in ticks if t > 0.8 * shared / MB])
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=8.5,
    )
    return figure


def _once_only(m: Measured, found: Sequence[Measured]) -> float:
    """Bytes that a rank holds however many sessions it trains: from the least and the most."""
    mine = sorted((f for f in found if f.way == m.way), key=lambda f: f.owned)
    first, last = mine[0], mine[-1]
    if first.owned == last.owned:
        return 0.0
    slope = (last.held - first.held) / (last.owned - first.owned)
    return first.held - slope * first.owned


def main() -> None:
    """Measure, print, and write the results and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--neurons", type=int, default=2000, help="of a session (2000)")
    parser.add_argument("--frames", type=int, default=4, help="of a clip (4)")
    parser.add_argument("--steps", type=int, default=5, help="timed (5)")
    parser.add_argument("--output", default="build/benchmarks", help="folder of the results")
    options = parser.parse_args()
    counts = numbers(MODEL)
    shared, session = 4 * counts.shared, 4 * counts.of(options.neurons)
    found = []
    for sessions in options.sessions:
        found += measure(sessions, options)
    columns, rows = table(found)
    print_table(
        f"{options.ranks} ranks; {shared / MB:.1f} MB shared, {session / MB:.1f} MB a session",
        columns,
        rows,
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "settings": {**vars(options), "shared_bytes": shared, "session_bytes": session},
        "results": [asdict(m) for m in found],
    }
    (folder / "session_sharding.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "session_sharding.md").write_text(markdown(columns, rows) + "\n")
    with style():
        draw(found, shared, options.ranks).savefig(folder / "session_sharding.png", dpi=150)


if __name__ == "__main__":
    main()
