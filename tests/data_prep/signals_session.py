"""A recording in the signals layout, with the arrays that it was made from."""

import csv
import json

import numpy as np
import zarr
from scipy.interpolate import interp1d

NEURONS, HEIGHT, WIDTH, FRAMES = 6, 6, 8, 40
RATES = {"responses": 6.5, "pupil": 20.0, "treadmill": 70.0}
OFFSETS = {"responses": 0.0, "pupil": 0.03, "treadmill": -0.2}
COLUMNS = ("trial", "tier", "domain", "video")
TRIALS = [
    ("t0", "train", "natural_movie", "clip0"),
    ("t1", "validation", "natural_movie", "oracle"),
    ("t2", "train", "natural_movie", "clip1"),
    ("t3", "test", "drifting_gabor", "gabor"),
    ("t4", "none", "unknown", "clip1"),
    ("t5", "validation", "natural_movie", "oracle"),
    ("t6", "train", "natural_movie", "clip2"),
]
NAME = "mouse07-2-1"


class Session:
    """A recording of 20 s on disk, and the arrays that it was made from."""

    def __init__(self, folder, form="npz", even=True, rate=30.0, delays=True):
        self.folder, self.even = folder, even
        generator = np.random.default_rng(5)
        self.signals = {}
        for number, (name, hz) in enumerate(RATES.items()):
            steps = 1 / hz + generator.uniform(-0.1, 0.1, int(21 * hz)) / hz
            columns = (NEURONS, 3, 1)[number]
            values = generator.gamma(2.0, 1.5, (len(steps), columns))
            self.signals[name] = (values, 99.5 + np.cumsum(steps))
        self.delays = np.arange(NEURONS) % 3 * 0.04 if delays else np.zeros(NEURONS)
        self.videos = {
            name: generator.integers(0, 256, (FRAMES, HEIGHT, WIDTH)).astype(np.uint8)
            for name in ("clip0", "clip1", "clip2", "oracle", "gabor")
        }
        self.starts = {row[0]: 101.013 + 2.5 * n for n, row in enumerate(TRIALS)}
        self.frames = {key: start + np.arange(FRAMES) / rate for key, start in self.starts.items()}
        if not even:
            for times in self.frames.values():
                times[1:] += generator.uniform(-0.1, 0.1, FRAMES - 1) / rate
        self.json = {
            "layout": "signals",
            "version": 1,
            "frame_rate": rate if even else None,
            "signals": {
                "responses": {},
                "pupil": {
                    "channels": ["pupil_radius", "pupil_x", "pupil_y"],
                    "offset_seconds": OFFSETS["pupil"],
                },
                "treadmill": {
                    "channels": ["treadmill_speed"],
                    "offset_seconds": OFFSETS["treadmill"],
                },
            },
            "perspectives": ["pupil_x", "pupil_y"],
            "modulations": ["treadmill_speed", "pupil_radius"],
        }
        self.rows = [[*row, repr(self.starts[row[0]])] if even else list(row) for row in TRIALS]
        self.table = {
            "unit_id": np.arange(NEURONS) * 3 + 1,
            "area": np.array(["V1", "V1", "LM", "AL", "RL", "V1"]),
            "z": np.linspace(100, 400, NEURONS),
        }
        if delays:
            self.table["delay_seconds"] = self.delays
        for name in RATES:
            self.write_signal(name, *self.signals[name], form)
        for name, video in self.videos.items():
            self.save(f"videos/{name}.npy", video)
        if not even:
            for key, times in self.frames.items():
                self.save(f"frames/{key}.npy", times)
        self.write()

    def save(self, path, values):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, values)

    def write(self):
        """Write the description and the tables as they are now."""
        (self.folder / "session.json").write_text(json.dumps(self.json))
        with open(self.folder / "trials.csv", "w", newline="") as stream:
            header = [*COLUMNS, "start"] if self.even else COLUMNS
            csv.writer(stream).writerows([header, *self.rows])
        with open(self.folder / "neurons.csv", "w", newline="") as stream:
            rows = zip(*(values.tolist() for values in self.table.values()), strict=False)
            csv.writer(stream).writerows([self.table, *rows])

    def write_signal(self, name, values, times, form="npz"):
        folder = self.folder / "signals"
        folder.mkdir(parents=True, exist_ok=True)
        if form == "npz":
            np.savez(folder / f"{name}.npz", values=values, times=times)
        elif form == "npy":
            self.save(f"signals/{name}/values.npy", values)
            self.save(f"signals/{name}/times.npy", times)
        else:
            group = zarr.create_group(str(folder / f"{name}.zarr"))
            group.create_array("values", data=values, chunks=(50, values.shape[1]))
            group.create_array("times", data=times, chunks=(50,))

    def expected(self, training):
        """Every trial as it should be prepared, neuron by neuron and channel by channel."""

        def at(name, column, times, delay=0.0):
            values, own = self.signals[name]
            return interp1d(own + OFFSETS[name] + delay, values[:, column])(times)

        raw = {}
        for key, _, _, video in TRIALS:
            times = self.frames[key]
            raw[key] = {
                "stimulus": self.videos[video],
                "responses": np.stack(
                    [at("responses", n, times, self.delays[n]) for n in range(NEURONS)], axis=1
                ),
                "perspectives": np.stack([at("pupil", n, times) for n in (1, 2)], axis=1),
                "modulations": np.stack([at("treadmill", 0, times), at("pupil", 0, times)], axis=1),
            }
        joined = {
            kind: np.concatenate([raw[key][kind] for key in training])
            for kind in ("responses", "perspectives", "modulations")
        }
        for trial in raw.values():
            trial["responses"] = trial["responses"] / joined["responses"].mean(0)
            for kind in ("perspectives", "modulations"):
                trial[kind] = (trial[kind] - joined[kind].mean(0)) / joined[kind].std(0)
        return raw
