"""Lossless compression of what a prepared dataset stores: bytes against the time to decode.

Movies are uint8 [T, H, W] in blocks of frames, as they are and as differences between successive
frames; responses are [samples, neurons] at a scan rate of 7 Hz in blocks of samples. Every
candidate is one that zarr's own `BloscCodec` or `ZstdCodec` expresses. Times are of one thread.

    python benchmarks/compression.py --movie film.npy --output build/benchmarks

Prints, for each kind of data, the candidates that no other beats in both size and speed of
decoding; all of them, hundreds, are in the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

import numcodecs
import numpy as np
from numcodecs.abc import Codec
from numcodecs.blosc import BITSHUFFLE, NOSHUFFLE, SHUFFLE

from data_prep.resampling import reduce_area
from data_prep.simulator.movies import natural_movie
from data_prep.simulator.population import sample_population
from data_prep.simulator.recording import Scanner, image
from data_prep.simulator.response import Responder
from data_prep.simulator.stimuli import DOMAIN_STIMULI, Screen
from fmcortex.tables import print_table

SIZES = ((36, 64), (144, 256))
FRAME_BLOCKS = (15, 25, 50)
SAMPLE_BLOCKS = (8, 16, 64)
#: Hz. Movies for the responses are made at four frames a scan, so that no sample is interpolated.
SCAN_RATE = 7.0
DEGREES = 120.0  # the monitor's width
#: Seconds after which nothing is measured again: what takes long varies little from run to run.
ENOUGH = 0.5
COLUMNS = ["data", "block", "codec", "delta", "stored/raw", "encode MB/s", "decode MB/s"]


@dataclass(frozen=True)
class Measured:
    """One candidate on one array; speeds in 10^6 raw bytes per second, the median of repeats."""

    data: str
    block: int
    codec: str
    delta: bool
    ratio: float
    encode: float
    decode: float

    def row(self) -> list[str]:
        """As strings for a table."""
        speeds = [f"{self.encode:.0f}", f"{self.decode:.0f}"]
        delta = "yes" if self.delta else ""
        return [self.data, str(self.block), self.codec, delta, f"{self.ratio:.3f}", *speeds]


def candidates() -> dict[str, Codec | None]:
    """The codecs by name; None is the plain bytes."""
    found: dict[str, Codec | None] = {"none": None}
    found |= {f"zstd-{level}": numcodecs.Zstd(level) for level in (1, 3, 9)}
    shuffles = {"noshuffle": NOSHUFFLE, "shuffle": SHUFFLE, "bitshuffle": BITSHUFFLE}
    for inner, level, name in product(("lz4", "zstd"), (1, 5, 9), shuffles):
        found[f"blosc-{inner}-{level}-{name}"] = numcodecs.Blosc(inner, level, shuffles[name])
    return found


def frame_delta(block: np.ndarray) -> np.ndarray:
    """Differences modulo 256 of successive frames of uint8 [T, H, W], the first as it is."""
    delta = block.copy()
    np.subtract(block[1:], block[:-1], out=delta[1:])
    return delta


def undo_frame_delta(delta: np.ndarray) -> np.ndarray:
    """The frames again, in place; a loop over whole frames, see `undo_speeds`."""
    for before, frame in pairwise(delta):
        np.add(before, frame, out=frame)
    return delta


def undo_speeds(repeats: int) -> Iterator[list[str]]:
    """MB/s at which a delta is undone: by `np.add.accumulate`, and frame by frame in place."""
    for (height, width), frames in product(SIZES, FRAME_BLOCKS):
        shape = (frames, height, width)
        delta = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        whole = median_seconds(
            lambda d: np.add.accumulate(d, axis=0, dtype=np.uint8), delta, repeats
        )
        loop = median_seconds(lambda d: undo_frame_delta(d.copy()), delta, 4 * repeats)
        speeds = [f"{delta.nbytes / seconds / 1e6:.0f}" for seconds in (whole, loop)]
        yield [f"{height} x {width}", str(frames), *speeds]


def median_seconds(work: Callable, argument: object, repeats: int = 5) -> float:
    """Median time of `work(argument)`; of fewer than `repeats` runs once they took `ENOUGH`."""
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < ENOUGH:
        start = time.perf_counter()
        work(argument)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def measure(
    name: str, array: np.ndarray, block: int, codec: tuple[str, Codec | None], *, delta: bool
) -> Measured:
    """Encode and decode `array` in whole blocks of `block` along its first axis.

    Raises:
        ValueError: what was decoded is not what was encoded.
    """
    title, coder = codec
    count = len(array) // block
    blocks = [np.ascontiguousarray(b) for b in np.split(array[: count * block], count)]

    def encode(parts: list[np.ndarray]) -> list[bytes]:
        ready = (frame_delta(part) if delta else part for part in parts)
        return [bytes(p.data) if coder is None else coder.encode(p) for p in ready]

    def decode(parts: list[bytes]) -> list[np.ndarray]:
        found = []
        for part in parts:
            data = bytearray(part) if coder is None else coder.decode(part)
            values = np.frombuffer(data, array.dtype).reshape(blocks[0].shape)
            if delta:
                # Decoders hand out immutable bytes that nobody else holds; writing needs a copy.
                values = undo_frame_delta(values if values.flags.writeable else values.copy())
            found.append(values)
        return found

    stored = encode(blocks)
    if not all(map(np.array_equal, decode(stored), blocks)):
        raise ValueError(f"{title} does not give {name} back")
    raw = sum(b.nbytes for b in blocks)
    return Measured(
        name,
        block,
        title,
        delta,
        sum(map(len, stored)) / raw,
        raw / median_seconds(encode, blocks, 3) / 1e6,
        raw / median_seconds(decode, stored, 7) / 1e6,
    )


def best(found: list[Measured]) -> Iterator[Measured]:
    """Of each kind of data those that none is both smaller and faster to decode than, by size."""
    for data in dict.fromkeys(m.data for m in found):
        fastest = 0.0
        for one in sorted((m for m in found if m.data == data), key=lambda m: (m.ratio, -m.decode)):
            if one.decode > fastest:
                fastest = one.decode
                yield one


def simulated_movies(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Natural movies and drifting pink noise of 10 s at 30 Hz, uint8 [300, height, width]."""
    rng = np.random.default_rng(0)
    yield "simulated", natural_movie(300, height, width, 30.0, rng)
    screen = Screen(height, width, 30.0, DEGREES / width)
    yield "pink noise", DOMAIN_STIMULI["pink_noise"](300, screen, rng)[0]


def simulated_responses(neurons: int, seconds: int) -> Iterator[tuple[str, np.ndarray]]:
    """Deconvolved traces float32 [samples, neurons], each divided by its mean.

    As simulated, zero where there was no event; with a little activity in all samples; and that
    with all below each neuron's 55th percentile set to zero, as real deconvolved traces are zero
    in over half of their samples, and arbitrary numbers in the others.
    """
    per_scan, height, width = 4, 36, 64
    frame_rate = per_scan * SCAN_RATE
    rng = np.random.default_rng(1)
    screen = Screen(height, width, frame_rate, DEGREES / width)
    half = (DEGREES / 2, DEGREES / 2 * height / width)
    population = sample_population(neurons, half, 1, rng)
    make = (height, width, frame_rate, rng)
    responder = Responder(population, screen, [natural_movie(224, *make)])
    rates = responder.rates(natural_movie(round(seconds * frame_rate), *make))
    rates = rates.reshape(-1, per_scan, neurons).mean(1)
    scanner = Scanner(SCAN_RATE, np.zeros(neurons))
    around = scanner.frames_around(SCAN_RATE)
    traces = image(rates, around, around / SCAN_RATE, SCAN_RATE, scanner, 1.0, rng).responses
    mean = np.maximum(traces.mean(0), 1e-6)
    active = traces + rng.exponential(0.1 * mean, traces.shape)
    sparse = np.where(active > np.quantile(active, 0.55, axis=0), active, 0)
    for name, values in (("simulated", traces), ("no zeros", active), ("sparse", sparse)):
        zeros = f"{name}, {100 * np.mean(values == 0):.0f}% zero"
        yield zeros, (values / np.maximum(values.mean(0), 1e-6)).astype(np.float32)


def movies(paths: list[str], frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """All movies by name, in the sizes that they are large enough for; their first `frames`."""
    for height, width in SIZES:
        size = f"{height}x{width}"
        for name, movie in simulated_movies(height, width):
            yield f"{name} {size}", movie[:frames]
        for path in paths:
            movie = np.load(path)[:frames]
            if movie.shape[1] >= height and movie.shape[2] >= width:
                yield f"{Path(path).stem} {size}", reduce_area(movie, height, width)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--movie", nargs="*", default=[], help=".npy files, uint8 [T, H, W]")
    parser.add_argument("--frames", type=int, default=100, help="of a movie, at most 300 (100)")
    parser.add_argument("--neurons", type=int, default=4000, help="(4000)")
    parser.add_argument("--seconds", type=int, default=20, help="of responses (20)")
    parser.add_argument("--output", default="build/benchmarks", help="folder of the results")
    options = parser.parse_args()
    numcodecs.blosc.use_threads = False
    found = []
    for name, movie in movies(options.movie, options.frames):
        for block, codec in product(FRAME_BLOCKS, candidates().items()):
            for delta in (False, True):
                found.append(measure(name, movie, block, codec, delta=delta))
    for name, traces in simulated_responses(options.neurons, options.seconds):
        for kind, block in product(("float32", "float16"), SAMPLE_BLOCKS):
            for codec in candidates().items():
                title = f"{name} {kind}"
                found.append(measure(title, traces.astype(kind), block, codec, delta=False))
    print_table("Compression", COLUMNS, [m.row() for m in best(found)])
    print_table(
        "Undoing a delta",
        ["size", "block", "np.add.accumulate MB/s", "frame by frame MB/s"],
        list(undo_speeds(5)),
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"settings": vars(options), "results": [asdict(m) for m in found]}
    (folder / "compression.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
