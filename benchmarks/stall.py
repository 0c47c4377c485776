"""How long a real run waits for its data: a pretraining on a recording of a real one's size.

    python benchmarks/stall.py --steps 60
    python benchmarks/stall.py --model configs/demo.yaml --units 120 --size 18x32 --frames 30

Writes and prepares a recording, pretrains on it with one Ray worker, and prints what the run's
metrics say of the steps after the first ones: steps and clips a second, and the fraction of the
time in which training waited for clips.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from recordings import Size, write_recording

from cluster.pretrain import pretrain
from data_prep.job import prepare
from fmcortex.config import RunConfig, load_config
from fmcortex.tracking.run import RunLog


def config_of(arguments: argparse.Namespace, folder: Path) -> RunConfig:
    """Of the run."""
    file = Path(arguments.model)
    base = [] if file.suffix == ".yaml" else [f"model.preset={arguments.model}"]
    return load_config(
        file if file.suffix == ".yaml" else None,
        [
            *base,
            f"output={folder / 'run'}",
            f"data.url={folder / 'prepared'}",
            "data.sessions=null",
            f"data.frames={arguments.frames}",
            f"data.batch={arguments.batch}",
            "training.warmup_epochs=0",
            "training.epochs=1",
            f"training.steps_per_epoch={arguments.steps}",
            f"training.burnin={min(10, arguments.frames // 2)}",
            f"training.precision={arguments.precision}",
            f"training.device={arguments.device}",
            f"checkpoint.every={arguments.steps}",
            f"cluster.cpus_per_worker={arguments.threads}",
            "cluster.zero_stage=0",
            "cluster.max_failures=0",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
            "tracking.validate_every=0",
            "tracking.page_seconds=0",
        ],
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="paper", help="a preset, or a configuration's file")
    parser.add_argument("--units", type=int, default=8000)
    parser.add_argument("--trials", type=int, default=36, help="of 300 frames")
    parser.add_argument("--size", default="144x256", help="height and width of the stimulus")
    parser.add_argument("--frames", type=int, default=70)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of the worker")
    arguments = parser.parse_args()
    height, width = (int(size) for size in arguments.size.split("x"))
    folder = Path(tempfile.mkdtemp(prefix="fmcortex-"))
    try:
        size = Size(arguments.units, arguments.trials, height=height, width=width)
        source = write_recording(folder / "source", size)
        prepare(str(source), str(folder / "prepared"))
        made = pretrain(config_of(arguments, folder))
        log = RunLog(made.tracking_uri, made.run_id)
        told = {
            name: log.history(f"speed/{name}")
            for name in ("steps_per_second", "clips_per_second", "stall_fraction")
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {arguments.units} neurons, {arguments.batch} x {arguments.frames} "
        f"frames, {arguments.precision}, {where}"
    )
    for name, values in told.items():
        print(f"  {name}: " + ", ".join(f"{step}: {value:.4f}" for step, value in values))


if __name__ == "__main__":
    main()
