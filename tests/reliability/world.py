"""A small world to damage: recordings, a prepared dataset, runs, a registered model.

Everything is made by the command line, as a user would, and lies in one folder, which is copied
back before each damage. `older/` holds an earlier version of each: the recordings were simulated
with another seed, and what follows was made from those.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from forked_cli import run_forked

SESSIONS = ("mouse01-1-1", "mouse02-1-1")
#: The folder of the earlier version.
OLDER = "older"
STEPS = 8
NEWEST, HALF = f"step-{STEPS:08d}", f"step-{STEPS // 2:08d}"

CONFIG = """\
output: {root}/run
data:
  url: {root}/prepared
  frames: 16
  batch: 2
model:
  preset: tiny
  retina_height: 12
  retina_width: 18
training:
  burnin: 4
  epochs: 2
  steps_per_epoch: 4
  warmup_epochs: 1
checkpoint:
  every: 4
  keep: 2
tracking:
  validate_every: 0
"""

SIMULATION = (
    "mice=2",
    "trial_seconds=3",
    "height=18",
    "width=32",
    "test_videos=2",
    "test_repeats=3",
    "validation_videos=1",
    "validation_repeats=2",
    'domains=["drifting_gabor"]',
    "layout=digital_twin",
)


@dataclass(frozen=True)
class Said:
    """How a command ended, and all that it printed."""

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        """What it printed, line by line."""
        return self.text.splitlines()


def run(root: Path, *arguments: str, timeout: float = 300) -> Said:
    """Run a command of fmcortex in `root`."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "FMCORTEX_CACHE": str(root / "cache"),
        "COLUMNS": "200",
    }
    log = root.parent / "log"
    status = run_forked(list(arguments), root, environment, log, timeout)
    return Said(status, log.read_text())


def _do(root: Path, *arguments: str) -> None:
    said = run(root, *arguments)
    assert said.status == 0, f"{arguments}: {said.text}"


def make_world(root: Path) -> None:
    """Make the world in the folder `root`."""
    root.mkdir()
    for seed, name in ((1, OLDER), (0, "")):
        _make(root, seed)
        if name:
            kept = [path for path in root.iterdir() if path.name != "cache"]
            (root / name).mkdir()
            for path in kept:
                path.rename(root / name / path.name)
    shutil.rmtree(root / "cache", ignore_errors=True)


def _make(root: Path, seed: int) -> None:
    settings = [word for value in SIMULATION for word in ("--set", value)]
    size = ("--neurons", "8", "--minutes", "0.6", "--seed", str(seed))
    _do(root, "simulate", "recordings", *size, *settings)
    _do(root, "prep", "recordings", "--to", "prepared")
    (root / "run.yaml").write_text(CONFIG.format(root=root))
    _do(root, "individual", "--config", "run.yaml")
    _do(root, "register", "run", "--name", "cortex", "--alias", "best")
