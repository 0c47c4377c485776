"""The whole way on simulated mice, by the public commands: `make demo`.

Four mice are recorded in one layout and pretrained on together; a fifth, recorded in the other
layout, is fitted with the frozen core and, for comparison, from scratch on the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fmcortex import storage
from fmcortex.tables import number, print_table
from fmcortex.training.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yaml"
NEW_MOUSE, NEW_MINUTES = "mouse05-1-1", 2
NATURAL = "natural_movie"
MICE = (
    "--mice 5 --neurons 120 --set noise=0.4 --set eye_movement=0.5 --set height=18 --set width=32 "
    "--set test_videos=3 --set test_repeats=8 --set validation_videos=1 --set domain_videos=2 "
    "--set domains=[drifting_gabor,gaussian_dots]"
)


def run(command: str) -> float:
    """Print and run a public command.

    Returns:
        The seconds that it took.
    """
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).parent / words[0])
    began = time.monotonic()
    code = subprocess.run(words, cwd=ROOT).returncode
    if code:
        sys.exit(f"demo: the command above ended with exit code {code}")
    return time.monotonic() - began


def scores(path: Path) -> dict[str, dict[str, Any]]:
    """The natural-movie scores of an evaluation file, by session."""
    return {
        session["session"]: domain
        for session in json.loads(path.read_text())
        for domain in session["domains"]
        if domain["domain"] == NATURAL
    }


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="folder (default: demo, in the checkout)")
    parser.add_argument("--workers", type=int, default=2, help="Ray workers (default: 2)")
    options = parser.parse_args()
    folder = Path(options.output).absolute() if options.output else ROOT / "demo"
    out = shlex.quote(str(folder)) if options.output else "demo"
    began = time.monotonic()
    if (folder / "summary.json").exists() or (folder / "pretrain").exists():
        sys.exit(f"demo: {folder} holds an earlier demo; remove that folder to run it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        sys.exit(f"demo: cannot write to {folder}; name another folder with --output")

    seconds: dict[str, float] = {}
    run(
        f"fmcortex simulate {out}/recordings/known {MICE} --minutes 8 --only 0 --only 1 --only 2 "
        "--only 3 --workers 2"
    )
    run(f"fmcortex simulate {out}/recordings/new {MICE} --minutes 4 --only 4 --layout digital_twin")
    run(f"fmcortex prep {out}/recordings/known --to {out}/prepared")
    run(f"fmcortex prep {out}/recordings/new --to {out}/prepared")
    run(f"fmcortex data info {out}/prepared")
    common = f"--config {CONFIG}"
    if options.output:  # the configuration names the demo's own folder
        common += f" --set data.url={out}/prepared --set tracking.uri=sqlite:///{out}/mlflow.db"
    seconds["foundation"] = run(
        f"fmcortex pretrain {common} --workers {options.workers} --output {out}/pretrain"
    )
    few = f"--minutes {NEW_MINUTES} --set training.epochs=6"
    seconds["transferred"] = run(
        f"fmcortex transfer {common} {few} --from {out}/pretrain --session {NEW_MOUSE} "
        f"--output {out}/transfer"
    )
    seconds["individual"] = run(
        f"fmcortex individual {common} {few} --session {NEW_MOUSE} --output {out}/individual"
    )
    runs = {"foundation": "pretrain", "transferred": "transfer", "individual": "individual"}
    for model, name in runs.items():
        run(
            f"fmcortex evaluate {out}/{name} --data {out}/prepared "
            f"--to {out}/evaluations/{model}.json --burnin 8"
        )
    run(f"fmcortex register {out}/pretrain --name demo-mouse-cortex --alias champion")
    run(
        f"fmcortex report {out} --to {out}/report.html --title 'Four simulated mice, and a fifth' "
        f"--checkpoint {out}/pretrain --data {out}/prepared"
    )
    finish(folder, runs, seconds, time.monotonic() - began)


def finish(folder: Path, runs: dict[str, str], seconds: dict[str, float], total: float) -> None:
    """Write the summary, print the table and check that the foundation model has learnt."""
    summary: dict[str, Any] = {"seconds": round(total, 1), "models": {}}
    rows = []
    for model, name in runs.items():
        checkpoint = open_checkpoint(str(folder / name))
        known = storage.read_json(str(folder / name / "run.json"))
        config = known["config"]
        ray = model == "foundation"
        entry: dict[str, Any] = {
            "steps": checkpoint.step,
            "seconds": round(seconds[model], 1),
            "workers": config["cluster"]["workers"] if ray else 1,
            "zero_stage": config["cluster"]["zero_stage"] if ray else None,
            "run_id": known["run_id"],
            "mice": {},
        }
        for mouse, score in sorted(scores(folder / "evaluations" / f"{model}.json").items()):
            entry["mice"][mouse] = {
                "cc_norm": score["cc_norm"],
                "baseline_cc_norm": score["baseline_cc_norm"],
                "cc_abs": score["cc_abs"],
                "neurons": score["neurons"],
            }
            rows.append(
                [
                    model,
                    mouse,
                    number(score["cc_norm"]),
                    number(score["baseline_cc_norm"]),
                    str(entry["steps"]),
                    f"{seconds[model]:.0f}",
                    str(entry["workers"]),
                ]
            )
        summary["models"][model] = entry
    storage.write_json(str(folder / "summary.json"), summary)
    print()
    print_table(
        "Median CC_norm on held-out natural movies",
        ["model", "mouse", "CC_norm", "other videos", "steps", "seconds", "workers"],
        rows,
        keys=2,
    )
    print(
        f"report {folder / 'report.html'}\nsummary {folder / 'summary.json'}\n{total:.0f} s in all"
    )

    if problem := problem_of(summary):
        sys.exit(f"demo: {problem}")
    print(
        "\nMore: activate the environment, then use the commands above on these mice or on yours:\n"
        "  source .venv/bin/activate\n"
        "  fmcortex --help"
    )


def problem_of(summary: dict[str, Any]) -> str | None:
    """What shows that the models have not learnt, if anything does.

    The foundation model has to be far above what it gets from other videos, which luck does not
    bring about. Which of the new mouse's models is better, two minutes of data do not say for sure.
    """

    def values(model: str, key: str) -> list[float]:
        return [mouse[key] for mouse in summary["models"][model]["mice"].values()]

    foundation = statistics.median(values("foundation", "cc_norm"))
    baseline = statistics.median(values("foundation", "baseline_cc_norm"))
    if foundation < baseline + 0.1:
        return (
            f"the foundation model ({foundation:.3f}) is not clearly above what it gets from "
            f"other videos ({baseline:.3f})"
        )
    return None


if __name__ == "__main__":
    main()
