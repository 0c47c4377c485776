"""Bytes stored, and windows read a second: the prepared dataset against what people use today.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --remote s3://bucket/folder    # AWS_ENDPOINT_URL, AWS_...

Writes a recording of the size of a real session, prepares it, writes it in the other forms, and
reads the same random windows from each into locked memory, in turns, so that all suffer the same
noise of the machine. A turn has three parts: the first windows, of files that were dropped from
the page cache, as of a dataset that is larger than memory; other windows of the same trials; and
others again, after every trial was read whole (untimed), so that all that a way keeps is kept.
With `--remote` all forms are then copied there and read from there. mosaicml-streaming is measured
where it is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import loaders
import numpy as np
from loaders import Read
from locked import LockedBatches
from recordings import Size, write_recording

from data_prep.job import prepare
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.loader import Batch
from fmcortex.data.plan import Clip, Draw
from fmcortex.progress import Progress
from fmcortex.tables import print_table

WINDOW, BATCH = 70, 4


@dataclass
class Way:
    """A way of reading: `make` opens it anew, as in a fresh run."""

    name: str
    make: Callable[[], Read]
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def parts(self) -> tuple[list[float], list[float], list[float]]:
        """Windows a second in the three parts of each turn."""
        return self.first, self.second, self.settled


def draws(trials: int, frames: int, count: int, seed: int) -> list[Draw]:
    """Random micro-batches of windows."""
    generator = np.random.default_rng(seed)
    found = []
    for step in range(count):
        clips = tuple(
            Clip(int(generator.integers(trials)), int(generator.integers(frames - WINDOW + 1)))
            for _ in range(BATCH)
        )
        found.append(Draw(0, step, "mouse01-1-1", clips, 0, 0))
    return found


def whole(trials: int, frames: int) -> list[Draw]:
    """Every frame of every trial."""
    starts = [*range(0, frames - WINDOW, WINDOW), frames - WINDOW]
    clips = [Clip(trial, start) for trial in range(trials) for start in starts]
    clips += clips[: -len(clips) % BATCH]
    groups = [tuple(clips[n : n + BATCH]) for n in range(0, len(clips), BATCH)]
    return [Draw(0, step, "mouse01-1-1", group, 0, 0) for step, group in enumerate(groups)]


def speed(read: Read, work: list[Draw], threads: int, batches: LockedBatches) -> float:
    """Windows a second, read ahead on so many threads as the training loader does."""

    def filled(draw: Draw) -> Batch:
        batch = batches.take(draw)
        read(batch)
        return batch

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for batch in pool.map(filled, work):
            batches.give(batch)
    return len(work) * BATCH / (time.perf_counter() - began)


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident(name: str) -> float:
    """MB of `VmRSS`, the memory of this process now, or `VmHWM`, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> float:
    """Start a new peak; the memory of this process in MB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would not count when used again
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def drop(folder: Path) -> None:
    """Drop all files below from the page cache."""
    os.sync()  # pages that are not yet written would stay
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def copy_to(folder: Path, url: str) -> None:
    """Copy a folder to a URL."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda p: storage.write_bytes(
                    storage.join(url, p.relative_to(folder).as_posix()), p.read_bytes()
                ),
                files,
            )
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batches", type=int, default=24, help="of 4 windows, a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--remote", help="URL of a folder to copy to and read from")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fmcortex-"))
    try:
        size = Size(
            arguments.neurons,
            arguments.trials,
            height=arguments.height,
            width=arguments.width,
        )
        run(folder, size, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, size: Size, arguments: argparse.Namespace) -> None:
    """Make all forms, measure their bytes, then the speeds."""
    source = write_recording(folder / "source", size)
    began, before = time.perf_counter(), time.process_time()
    prepare(str(source), str(folder / "ours"))
    wall, core = time.perf_counter() - began, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"prep: {size.seconds / 60:.1f} recorded minutes of {size.neurons} neurons, "
        f"{size.height} x {size.width} pixels, in {wall:.1f} s ({core:.1f} s of a core): "
        f"{size.seconds / core:.1f} recorded minutes a core-minute; peak memory {peak:.2f} GiB"
    )
    session = open_dataset(str(folder / "ours")).session("mouse01-1-1")
    loaders.write_npy(session, folder / "npy-float32", floats=True)
    loaders.write_npy(session, folder / "npy-uint8", floats=False)
    loaders.write_zarr(session, str(folder / "zarr"))
    forms = {
        "fmcortex": "ours",
        ".npy a trial, float32 (Sensorium 2023)": "npy-float32",
        ".npy a trial, uint8 video": "npy-uint8",
        "zarr": "zarr",
    }
    if importlib.util.find_spec("streaming") is not None:
        loaders.write_mds(session, folder / "mds")
        forms["mosaicml-streaming"] = "mds"
    print_bytes(folder, forms, size)
    if arguments.remote:
        for form in forms.values():
            copy_to(folder / form, storage.join(arguments.remote, form))
    some = draws(size.trials, size.frames, 1, seed=99)[0]
    ours = open_dataset(str(folder / "ours"))
    batches = LockedBatches(ours, some, WINDOW, arguments.threads + 2)
    for base in (str(folder), *filter(None, [arguments.remote])):
        ways = ways_of(base, folder, list(forms.values()))
        check(ways, size, batches)
        remote = not storage.is_local(base)
        measure(ways, size, None if remote else folder, arguments, batches)
        where = "the object store" if remote else "local disk"
        print_speeds(ways, f"{where}, {arguments.threads} threads, into batches {batches.how}")


def print_speeds(ways: list[Way], where: str) -> None:
    """Windows a second of each way, and how many times as many are those of the first way."""
    rows = []
    for way in ways:
        rows.append([way.name])
        for rates, mine in zip(way.parts, ways[0].parts, strict=True):
            # Ratios turn by turn: both suffered the same.
            ratio = np.median([a / b for a, b in zip(mine, rates, strict=True)])
            spread = f"{min(rates):.0f}-{max(rates):.0f}"
            rows[-1] += [f"{np.median(rates):.1f}", spread, f"{ratio:.2f}"]
        rows[-1].append(f"{max(way.memory):.0f}")
    part = ["range", "ours / it"]
    columns = ["way", "first", *part, "second", *part, "all read", *part, "peak MB"]
    print_table(f"Windows of {WINDOW} frames a second from {where}", columns, rows)


def print_bytes(folder: Path, forms: dict[str, str], size: Size) -> None:
    """The bytes of each form, in all and a recorded hour and neuron."""
    rows = []
    plain = size_of(folder / "npy-float32")
    hours = size.seconds / 3600 * size.neurons
    for name, form in forms.items():
        total = size_of(folder / form)
        movies = size_of(folder / "ours" / "movies")
        videos = movies if form == "ours" else size_of(folder / form / "stimulus")
        responses = total - videos
        known = form != "mds"
        rows.append(
            [
                name,
                f"{total / 1e6:.0f}",
                f"{videos / 1e6:.0f}" if known else "-",
                f"{responses / 1e6:.0f}" if known else "-",
                f"{total / hours / 1e3:.1f}",
                f"{total / plain:.3f}",
            ]
        )
    columns = ["form", "MB", "videos MB", "rest MB", "kB a neuron-hour", "of Sensorium's .npy"]
    print_table("Bytes stored", columns, rows)


def ways_of(base: str, folder: Path, forms: list[str]) -> list[Way]:
    """Every way to read, ours first."""

    def at(form: str) -> str:
        return storage.join(base, form)

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    session = open_dataset(str(folder / "ours")).session("mouse01-1-1")
    # As it is by default, and the other form that there is.
    unpacked = not storage.is_local(base)
    form, other = ("unpacked", "packed") if unpacked else ("packed", "unpacked")
    ways = [
        Way(f"fmcortex, {form}", lambda: loaders.ours(at("ours"), fresh(), unpacked)),
        Way(f"fmcortex, {other}", lambda: loaders.ours(at("ours"), fresh(), not unpacked)),
    ]
    if not unpacked:
        ways.append(
            Way("fmcortex, all in memory", lambda: loaders.ours(at("ours"), fresh(), False, 1024))
        )
    ways.append(Way(".npy a trial, float32", lambda: loaders.npy(at("npy-float32"), True)))
    ways.append(Way(".npy a trial, uint8 video", lambda: loaders.npy(at("npy-uint8"), False)))
    if "mds" in forms:
        ways.append(Way("mosaicml-streaming", lambda: loaders.mds(at("mds"), fresh())))
    ways.append(Way("zarr", lambda: loaders.plain_zarr(at("zarr"), session)))
    return ways


def check(ways: list[Way], size: Size, batches: LockedBatches) -> None:
    """All ways give the same values."""
    [draw] = draws(size.trials, size.frames, 1, seed=99)
    with batches.one(draw) as expected, batches.one(draw) as found:
        ways[0].make()(expected)
        for way in ways[1:]:
            way.make()(found)
            for name in ("stimuli", "perspectives", "modulations", "responses"):
                ours, theirs = getattr(expected, name).numpy(), getattr(found, name).numpy()
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=way.name)
                theirs.fill(0)


def measure(
    ways: list[Way],
    size: Size,
    cold: Path | None,
    arguments: argparse.Namespace,
    batches: LockedBatches,
) -> None:
    """Turns of all ways, each opened anew.

    Args:
        ways: to read.
        size: of the recording.
        cold: folder of files to drop from the page cache first.
        arguments: of the command line.
        batches: to read into.
    """
    total = arguments.turns * len(ways)
    with Progress("read", total, "turn", every=20) as bar:
        for turn in range(arguments.turns):
            for number, way in enumerate(ways):
                before = forget_peak()
                read = way.make()
                if cold is not None:
                    drop(cold)
                for part, rates in enumerate(way.parts):
                    if rates is way.settled:
                        speed(read, whole(size.trials, size.frames), arguments.threads, batches)
                    seed = 3 * turn + part
                    work = draws(size.trials, size.frames, arguments.batches, seed)
                    rates.append(speed(read, work, arguments.threads, batches))
                way.memory.append(resident("VmHWM") - before)
                del read
                bar.update(turn * len(ways) + number + 1, f"{way.name}: {rates[-1]:.0f} windows/s")


if __name__ == "__main__":
    main()
