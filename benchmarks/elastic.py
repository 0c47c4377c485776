"""The same run on one rank throughout, and on 2, then 1, then 4 ranks, in three ZeRO stages.

Draws the two curves of the loss, and how far they are apart; prints how far the parameters are.

    python benchmarks/elastic.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import run_ranks
from simulated import prepared
from torch import Tensor

from cluster.loop import train_rank
from fmcortex.config import RunConfig, load_config
from fmcortex.report.figures import GRID, INK, KNOWN, MUTED, new_figure, style
from fmcortex.tables import print_table
from fmcortex.training.checkpoint import SHARED, Checkpoint, step_folder
from fmcortex.training.step import Trainer

#: Ranks, ZeRO stage, and the step after which to stop.
LEGS = ((2, 1, 10), (1, 3, 20), (4, 2, 30))
#: The largest relative difference that the tests of parity allow.
TOLERANCE = 1e-5


def train(rank: int, ranks: int, settings: dict[str, Any], last: int) -> list[dict[str, Any]]:
    """Train one rank up to step `last`; its lanes' losses in every step."""
    reports: list[dict[str, Any]] = []
    original = Trainer.step

    def step(self: Trainer, *arguments: Any) -> Any:
        report = original(self, *arguments)
        reports.append({"step": report.step, "losses": report.losses})
        return report

    Trainer.step = step  # type: ignore[method-assign]
    train_rank(RunConfig.model_validate(settings), rank, ranks, last=last)
    return reports


def losses(config: RunConfig, ranks: int, stage: int, last: int) -> dict[int, float]:
    """The mean loss over the lanes of each step that was trained."""
    settings = config.model_dump(mode="json")
    settings["cluster"]["zero_stage"] = stage
    found: dict[int, list[float]] = {}
    for of_rank in run_ranks(train, ranks, settings, last):
        for report in of_rank:
            found.setdefault(report["step"], []).extend(report["losses"].values())
    return {step: float(np.mean(sorted(some))) for step, some in sorted(found.items())}


def state(run: str, step: int) -> dict[str, Tensor]:
    """All parameters and momenta of a run after `step` steps."""
    checkpoint = Checkpoint(step_folder(run, step))
    found = {}
    for part in (SHARED, *checkpoint.sessions):
        for optimizer in (False, True):
            tensors = checkpoint.tensors(part, optimizer)
            found |= {f"{part}/{name}": value for name, value in tensors.items()}
    return found


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[tuple[float, str]]:
    """The difference of each tensor, relative to its largest value, and its name; descending."""
    assert one.keys() == other.keys()
    found = []
    for name, value in one.items():
        scale = float(value.abs().max())
        if value.is_floating_point() and scale:
            found.append((float((value - other[name]).abs().max()) / scale, name))
        elif not value.is_floating_point():
            assert torch.equal(value, other[name]), name
    return sorted(found, reverse=True)


def draw(alone: list[float], moved: list[float], parameters: dict[int, float]) -> Any:
    """The curves over each other, and their difference."""
    figure = new_figure(6.6, 4.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, len(alone) + 1)
    legs = ", then ".join(str(ranks) for ranks, *_ in LEGS)
    top.plot(steps, alone, color=KNOWN["foundation"], lw=6, alpha=0.3, label="1 rank")
    colour = KNOWN["transferred"]
    top.plot(steps, moved, "o-", ms=3, lw=1.2, color=colour, label=f"{legs} ranks")
    apart = np.abs(np.subtract(moved, alone)) / np.abs(alone)
    least, known = 1e-9, apart > 0
    bottom.scatter(steps[known], apart[known], s=14, color=INK, label="loss")
    bottom.scatter(
        steps[~known],
        np.full((~known).sum(), least),
        s=14,
        facecolors="none",
        edgecolors=INK,
        label="equal to the last bit",
    )
    bottom.scatter(
        list(parameters),
        np.maximum(list(parameters.values()), least),
        s=26,
        marker="D",
        color=KNOWN["foundation"],
        label="parameters and momenta, the largest",
    )
    bottom.axhline(TOLERANCE, color=MUTED, lw=0.9, ls=":")
    bottom.annotate(
        "allowed by the tests",
        (len(alone), TOLERANCE),
        (0, 2),
        textcoords="offset points",
        ha="right",
        color=MUTED,
        fontsize=8,
    )
    bottom.set_yscale("log")
    bottom.set_ylim(least * 0.4, max(1e-4, *parameters.values()))
    ticks = (-9, -8, -7, -6, -5, -4)
    bottom.set_yticks([10.0**t for t in ticks], [f"1e{t}" for t in ticks])
    bottom.minorticks_off()
    first = 0
    for ranks, stage, last in LEGS:
        if first:
            for ax in (top, bottom):
                ax.axvline(first + 0.5, color=MUTED, lw=0.8, ls="--")
        top.annotate(
            f"{ranks} rank{'s' * (ranks > 1)}, ZeRO {stage}",
            ((first + last + 1) / 2, 1.0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=8.5,
        )
        first = last
    top.ticklabel_format(axis="y", useOffset=False)
    top.margins(y=0.12)
    top.set_ylabel("loss")
    bottom.set_ylabel("relative difference")
    bottom.set_xlabel("step")
    bottom.set_xlim(0.3, len(alone) + 0.7)
    top.legend(frameon=False, loc="upper left")
    figure.legend(
        *bottom.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    for ax in (top, bottom):
        ax.grid(axis="y", color=GRID, lw=0.7)
        ax.set_axisbelow(True)
    return figure


def main() -> None:
    """Train both, print, and write the results and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, nargs="+", default=[70, 120, 90])
    parser.add_argument("--lanes", type=int, default=5, help="micro-batches of a step (5)")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate (0.02)")
    parser.add_argument("--output", default="build/benchmarks", help="folder of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        url = prepared(where, options.neurons, height=18, width=32)
        common = [
            f"data.url={url}",
            "data.frames=16",
            "data.batch=2",
            "model.preset=tiny",
            "model.retina_height=12",
            "model.retina_width=18",
            f"training.lanes={options.lanes}",
            "training.burnin=4",
            f"training.lr={options.lr}",
            "training.epochs=5",
            "training.steps_per_epoch=6",
            "training.warmup_epochs=1",
            "checkpoint.every=10",
            "checkpoint.keep=3",
            "tracking.validate_every=0",
        ]
        alone = load_config(None, [*common, f"output={where / 'alone'}"])
        moved = load_config(None, [*common, f"output={where / 'moved'}"])
        one = losses(alone, 1, 1, LEGS[-1][2])
        other: dict[int, float] = {}
        for ranks, stage, last in LEGS:
            other |= losses(moved, ranks, stage, last)
        apart = {
            last: differences(state(alone.output, last), state(moved.output, last))
            for *_, last in LEGS
        }
    assert list(one) == list(other) == list(range(LEGS[-1][2]))
    curves = [one[step] for step in one], [other[step] for step in other]
    of_loss = max(abs(b - a) / abs(a) for a, b in zip(*curves, strict=True))
    print_table(
        f"{LEGS[-1][2]} steps on 1 rank, and on "
        + ", ".join(f"{ranks} (ZeRO {stage})" for ranks, stage, _ in LEGS),
        ["largest relative difference of", "", ""],
        [["the loss of a step", f"{of_loss:.1e}", ""]]
        + [
            [
                f"parameters and momenta after step {step}",
                f"{found[0][0]:.1e}",
                f"in {found[0][1]}; {sum(d > TOLERANCE for d, _ in found)} of {len(found)} tensors "
                f"above {TOLERANCE:g}",
            ]
            for step, found in apart.items()
        ],
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "legs": LEGS,
        "lanes": options.lanes,
        "neurons": options.neurons,
        "alone": curves[0],
        "moved": curves[1],
        "loss": of_loss,
        "lr": options.lr,
        "parameters": {step: found[:20] for step, found in apart.items()},
    }
    (folder / "elastic.json").write_text(json.dumps(document, indent=1) + "\n")
    with style():
        draw(*curves, {step: found[0][0] for step, found in apart.items()}).savefig(
            folder / "elastic.png", dpi=150
        )


if __name__ == "__main__":
    main()
