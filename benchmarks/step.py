"""Training step, prediction and optimizer, beside the authors' implementation.

    python benchmarks/step.py --fnn ../fnn
    python benchmarks/step.py --fnn ../fnn --device cuda --precisions float32,tf32,bf16 --batch 4

Both sides get the same weights and inputs, and take turns; their outputs and gradients are compared
first. `--fnn` names a checkout of the public repository cajal/fnn (commit 614d33e); without it only
this implementation is measured. A training step is the forward and backward pass of one micro-batch
on one stream, from arrays on the device to gradients; a prediction is of all streams, from NumPy
to NumPy. Floating-point operations are those that torch.utils.flop_counter counts in the forward
pass, times three for a step: each is repeated for either gradient.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors
import torch
from measure import (
    CELLS,
    Timing,
    alternate,
    arithmetic,
    machine,
    markdown,
    matrix_rate,
    wait,
)
from sides import Ours, Theirs, Work, differences, weights
from stages import profile_table, stage_times
from torch.utils.flop_counter import FlopCounterMode

from fmcortex.config import load_config
from fmcortex.model.sizes import PRESETS, ModelConfig, preset
from fmcortex.tables import number

Way = tuple[str, str, bool]  # side, precision, recompute
PARTS = ("step", "predict", "optimizer", "stages")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fnn", type=Path, help="checkout of cajal/fnn to compare with")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--models", default="paper-convlstm,paper", help="presets, or demo for configs/demo.yaml"
    )
    parser.add_argument("--units", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--frames", default="70", help="of a sequence; several with commas")
    parser.add_argument("--size", default="144x256", help="height and width of the stimulus")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, help="of fnn; as many unless given")
    parser.add_argument("--precisions", default="float32", help="of float32, tf32, bf16")
    parser.add_argument("--recompute", action="store_true", help="measure that way, too")
    parser.add_argument("--parts", default=",".join(PARTS), help="of step,predict,optimizer,stages")
    parser.add_argument("--profile", action="store_true", help="operations of one step, as a table")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--json", type=Path, help="file that receives all numbers")
    return parser


def model_of(name: str) -> ModelConfig:
    """A preset, or the demo's model."""
    if name in PRESETS:
        return preset(name)
    return load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml").model


def count(call: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


class Bench:
    """One model at one length of the sequences.

    Args:
        arguments: of the command line.
        name: of the model.
        frames: of a sequence.
        rates: operations a second of matrix products, by precision.
    """

    def __init__(
        self, arguments: argparse.Namespace, name: str, frames: int, rates: dict[str, float]
    ) -> None:
        self.arguments, self.name, self.frames, self.rates = arguments, name, frames, rates
        self.device = torch.device(arguments.device)
        height, width = (int(size) for size in arguments.size.split("x"))
        config = model_of(name)
        self.work = Work.random(config, arguments.units, arguments.batch, frames, height, width)
        self.state = weights(self.work)
        self.precisions = arguments.precisions.split(",")
        self.theirs = Theirs(self.work, self.state, self.device) if arguments.fnn else None
        self.label = f"{name}, {arguments.batch} x {frames} frames, {arguments.units} neurons"
        self.numbers: dict[str, Any] = {"model": name, "frames": frames}

    def ours(self, precision: str, recompute: bool = False) -> Ours:
        """This implementation."""
        return Ours(self.work, self.state, self.device, precision, recompute)

    def check(self) -> None:
        """Print how far both sides are apart."""
        if self.theirs is None:
            return
        apart = differences(self.ours("float32"), self.theirs)
        self.numbers["differences"] = apart
        told = ", ".join(f"{kind} {value:.1e}" for kind, value in apart.items())
        print(f"{self.label}: largest relative differences from fnn: {told}", flush=True)

    def _ways(self, part: str) -> list[Way]:
        found: list[Way] = []
        for precision in self.precisions:
            if self.theirs is not None and precision != "bf16":
                found.append(("fnn", precision, False))
            found.append(("fmcortex", precision, False))
            if part == "step" and self.arguments.recompute:
                found.append(("fmcortex", precision, True))
        return found

    def measure(self, part: str) -> tuple[list[str], list[list[str]]]:
        """The table of `step` or `predict`."""
        flops = 0
        with torch.no_grad():
            one = self.ours("float32")
            flops = 3 * count(one.loss) if part == "step" else count(one.predict)
            del one
        timings: dict[Way, Timing] = {}
        for precision in self.precisions:
            ways = [way for way in self._ways(part) if way[1] == precision]
            with arithmetic(precision):
                timings.update(self._turns(ways, part))
        base = {p: timings.get(("fnn", p, False)) for p in ("float32", "tf32")}
        rows = []
        for (side, precision, recompute), timing in timings.items():
            rate = flops / timing.median
            row = [self.label, side + (", computed again" if recompute else ""), precision]
            row += [*timing.cells(), f"{rate / 1e12:.3f}"]
            row.append(f"{100 * rate / self.rates[precision]:.2f}")
            for against in ("float32", "tf32"):
                other = base[against]
                row.append("-" if other is None else f"{other.median / timing.median:.2f}")
            rows.append(row)
            key = f"{part}/{side}/{precision}" + ("/again" if recompute else "")
            self.numbers[key] = {**vars(timing), "flops": flops}
            print(f"  {part}: " + " | ".join(row), flush=True)
        columns = ["micro-batch", "side", "arithmetic", *CELLS, "TFLOP/s", "% of rate"]
        return [*columns, "x fnn float32", "x fnn tf32"], rows

    def _turns(self, ways: list[Way], part: str) -> dict[Way, Timing]:
        calls: dict[str, Callable[[], object]] = {}
        for side, precision, recompute in ways:
            which = self.theirs if side == "fnn" else self.ours(precision, recompute)
            calls[f"{side}/{recompute}"] = getattr(which, part)
        found = {}
        repeats, slow = self.arguments.repeats, self.arguments.slow_repeats
        if slow and len(calls) > 1:
            found = alternate({n: c for n, c in calls.items() if "fnn" in n}, self.device, slow)
            calls = {n: c for n, c in calls.items() if "fnn" not in n}
        found.update(alternate(calls, self.device, repeats))
        return {way: found[f"{way[0]}/{way[2]}"] for way in ways}

    def optimizer(self) -> list[list[str]]:
        """Clipping and the optimizer's step of both sides."""
        ours = self.ours("float32")
        gradients = ours.step()
        prepared = ours.clip(gradients)
        calls: dict[str, Callable[[], object]] = {
            "fmcortex, clipping": lambda: ours.clip(gradients),
            "fmcortex, step": lambda: ours.optimize(prepared),
        }
        if self.theirs is not None:
            theirs = self.theirs
            wanted = theirs.step()
            calls["fnn, both"] = lambda: theirs.optimize(wanted)
        found = alternate(calls, self.device, max(self.arguments.repeats, 5), warm=2)
        self.numbers["optimizer"] = {name: vars(timing) for name, timing in found.items()}
        return [[self.label, name, *timing.cells()] for name, timing in found.items()]

    def stages(self, precision: str) -> list[list[str]]:
        """Shares of a step by stage."""
        with arithmetic(precision):
            found = stage_times(self.ours(precision), self.device, self.arguments.repeats)
        total = sum(found.values())
        self.numbers[f"stages/{precision}"] = found
        rows = []
        for name in dict.fromkeys(key.partition(", ")[0] for key in found):
            both = [found.get(f"{name}, {way}") for way in ("forward", "backward")]
            seconds = found.get(name, 0.0) + sum(part or 0.0 for part in both)
            cells = [number(None if part is None else 1e3 * part, 1) for part in both]
            share = f"{100 * seconds / total:.1f}"
            rows.append([self.label, precision, name, *cells, f"{1e3 * seconds:.1f}", share])
        return rows


def main() -> None:
    """Measure, and print tables."""
    arguments = options().parse_args()
    if arguments.fnn:
        authors.import_fnn(arguments.fnn)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    precisions = arguments.precisions.split(",")
    print(machine(device), flush=True)
    rates = {precision: matrix_rate(device, precision) for precision in precisions}
    told = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in rates.items())
    print(f"matrix product, TFLOP/s: {told}", flush=True)
    columns: dict[str, list[str]] = {
        "optimizer": ["micro-batch", "what", *CELLS],
        "stages": ["micro-batch", "arithmetic", "stage", "forward ms", "backward", "both", "%"],
    }
    tables: dict[str, list[list[str]]] = {part: [] for part in PARTS}
    numbers = []
    profiles = []
    for name in arguments.models.split(","):
        for frames in (int(text) for text in arguments.frames.split(",")):
            bench = Bench(arguments, name, frames, rates)
            bench.check()
            for part in arguments.parts.split(","):
                if part in ("step", "predict"):
                    columns[part], rows = bench.measure(part)
                    tables[part] += rows
                elif part == "optimizer":
                    tables[part] += bench.optimizer()
                else:
                    for precision in precisions:
                        tables[part] += bench.stages(precision)
            if arguments.profile:
                profiles.append(profile_table(bench.ours(precisions[-1]), device, bench.label))
            numbers.append(bench.numbers)
            if arguments.json:
                known = {"machine": machine(device), "rates": rates, "benches": numbers}
                arguments.json.write_text(json.dumps(known, indent=1))
            del bench
            wait(device)
    for text in profiles:
        print(text)
    titles = {
        "step": "Training step, forward and backward",
        "predict": "Prediction of all streams",
        "optimizer": "Adaptive clipping and optimizer",
        "stages": "A step by stage",
    }
    for part, rows in tables.items():
        if rows:
            print(f"\n{titles[part]} ({machine(device)})\n")
            print(markdown(columns[part], rows))


if __name__ == "__main__":
    main()
