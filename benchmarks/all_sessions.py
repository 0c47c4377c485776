"""All sessions of a table, scaled down, through the real job: does what is planned come out?

    python benchmarks/all_sessions.py sessions.csv
    python benchmarks/all_sessions.py sessions.csv --scale 100 --workers 2 --to s3://bucket/all

Writes a recording of every session with a fraction of its neurons and minutes, whose movies are
drawn from one collection, prepares them all, prepares them again, verifies, and prints the
prepared dataset beside the plan (`data_prep.sizing`).
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from recordings import FRAME_RATE, SCAN_RATE, Size, write_recording

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from data_prep.simulator.movies import natural_movie
from data_prep.sizing import Rates, Session, read_table, sizes_of
from fmcortex.data.describe import describe, verify
from fmcortex.progress import Progress
from fmcortex.tables import print_table

FRAMES, HEIGHT, WIDTH = 90, 36, 64


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="CSV with session, neurons, minutes, scan_hz")
    parser.add_argument("--scale", type=float, default=200, help="by which neurons are fewer")
    parser.add_argument("--shorter", type=float, default=300, help="by which minutes are fewer")
    parser.add_argument("--movies", type=int, default=150, help="distinct movies")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--to", help="URL of the prepared dataset")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fmcortex-"))
    try:
        run(folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Write, prepare, prepare again, verify."""
    whole = read_table(arguments.table)
    generator = np.random.default_rng(0)
    movies = [
        natural_movie(FRAMES, HEIGHT, WIDTH, FRAME_RATE, generator) for _ in range(arguments.movies)
    ]
    small = []
    with Progress("write", len(whole), "session", every=20) as bar:
        for number, session in enumerate(whole):
            neurons = max(3, round(session.neurons / arguments.scale))
            seconds = session.minutes * 60 / arguments.shorter
            trials = max(2, round(seconds * FRAME_RATE / FRAMES))
            size = Size(neurons, trials, FRAMES, HEIGHT, WIDTH)
            write_recording(folder / "source", size, number, session.name, movies)
            small.append(Session(session.name, neurons, size.seconds / 60, SCAN_RATE))
            bar.update(number + 1)
    to = arguments.to or str(folder / "prepared")
    source = str(folder / "source")
    # In a few seconds some neurons stay silent.
    settings = PrepSettings(trials_per_shard=4, silent_neurons="keep")
    seconds = []
    for turn in ("prep", "again"):
        began = time.perf_counter()
        with Progress(turn, len(whole), "session", every=20) as bar:
            manifest = prepare(
                source,
                to,
                settings,
                arguments.workers,
                track=lambda done, _, what, bar=bar: bar.update(done, what),
            )
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    problems = verify(to)
    checked = time.perf_counter() - began
    assert not problems, problems[:5]
    assert len(manifest.sessions) == len(whole)
    found = describe(to)
    plan = sizes_of(
        small,
        settings.model_copy(update={"height": HEIGHT, "width": WIDTH}),
        Rates(),
        trial_seconds=FRAMES / FRAME_RATE,
        shared_movies=1 - len(movies) * FRAMES / FRAME_RATE / sum(s.minutes * 60 for s in small),
    )
    rows = [
        ["sessions", str(len(plan)), str(found["sessions"])],
        ["neurons", str(sum(s.neurons for s in plan)), str(found["neurons"])],
        ["trials", str(sum(s.trials for s in plan)), str(found["train_trials"])],
        ["shards", str(sum(s.shards for s in plan)), str(shards(to))],
        ["movies", str(len(movies)), str(found["movies"])],
        ["movies MB", _mb(sum(s.movie_bytes for s in plan)), _mb(found["movie_bytes"])],
        ["sessions MB", _mb(sum(s.response_bytes for s in plan)), _mb(found["bytes"])],
    ]
    print_table(f"{to}: as planned, as prepared", ["what", "planned", "prepared"], rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    minutes = sum(s.minutes for s in small)
    print(
        f"{minutes:.1f} recorded minutes with {arguments.workers} workers in {seconds[0]:.0f} s "
        f"({len(whole) / seconds[0]:.1f} sessions/s), again in {seconds[1]:.0f} s, verified in "
        f"{checked:.0f} s; driver at most {peak:.2f} GiB"
    )


def shards(url: str) -> int:
    """Shards of a prepared dataset."""
    from fmcortex.data.describe import shards_of

    return len(shards_of(url))


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f}"


if __name__ == "__main__":
    main()
