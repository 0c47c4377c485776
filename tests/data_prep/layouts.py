"""One small recording in each of the layouts, from the same trials, to hold checks against all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

LAYOUTS = ("signals", "nwb", "sensorium2022", "sensorium2023", "digital_twin")
NEURONS, FRAMES, HEIGHT, WIDTH, RATE = 4, 30, 4, 6, 30.0
TRAINING, TESTS = 5, 4
#: Seconds from one trial's first frame to that of the next, in layouts with clocks.
PERIOD = 2.0
NAME = "m-1-1"

Trial = dict[str, np.ndarray]


def trials(seed: int = 0) -> list[Trial]:
    """The trials, those of training first; the others are repeats of one video."""
    generator = np.random.default_rng(seed)
    videos = generator.integers(0, 256, (TRAINING + 1, FRAMES, HEIGHT, WIDTH)).astype(np.uint8)
    return [
        {
            "stimulus": videos[min(number, TRAINING)],
            "responses": generator.gamma(2.0, 1.0, (FRAMES, NEURONS)),
            "pupil": generator.normal(40, 3, (FRAMES, 2)),
            "behaviour": np.stack(
                [generator.normal(20, 2, FRAMES), generator.gamma(1.0, 5.0, FRAMES)], axis=1
            ),
        }
        for number in range(TRAINING + TESTS)
    ]


def write(layout: str, source: Path, change: Callable[[int, Trial], None] | None = None) -> Path:
    """Write the recording below the folder `source`; its own folder.

    Args:
        layout: one of `LAYOUTS`.
        source: the folder of the session's folder.
        change: is given each trial's number and arrays, to change them in place.
    """
    found = trials()
    for number, trial in enumerate(found):
        if change is not None:
            change(number, trial)
    folder = source / NAME
    folder.mkdir(parents=True)
    _WRITERS[layout](folder, found)
    return folder


def save(path: Path, values: object) -> None:
    """Write a .npy file and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(values))


def _continuous(found: list[Trial], name: str) -> np.ndarray:
    """A signal of the whole recording at `RATE` from second 0; trial n is from (n + 1) PERIOD."""
    values = found[0][name]
    base = np.broadcast_to(values.mean(axis=0), values.shape)
    gap = np.resize(base, (int(PERIOD * RATE) - FRAMES, *values.shape[1:]))
    parts = [base, gap]
    for trial in found:
        parts += [trial[name], gap]
    return np.concatenate(parts).astype(np.result_type(*(t[name].dtype for t in found), "f4"))


def _starts() -> np.ndarray:
    return PERIOD * (1 + np.arange(TRAINING + TESTS))


def _signals(folder: Path, found: list[Trial]) -> None:
    rows = ["trial,tier,domain,video,start"]
    for number, (trial, start) in enumerate(zip(found, _starts(), strict=True)):
        tier, video = ("train", f"v{number}") if number < TRAINING else ("test", "shown")
        rows.append(f"t{number},{tier},natural_movie,{video},{start}")
        save(folder / f"videos/{video}.npy", trial["stimulus"])
    (folder / "trials.csv").write_text("\n".join(rows) + "\n")
    table = "".join(f"{number + 1},V1\n" for number in range(NEURONS))
    (folder / "neurons.csv").write_text("unit_id,area\n" + table)
    (folder / "signals").mkdir()
    for name in ("responses", "pupil", "behaviour"):
        values = _continuous(found, name)
        times = np.arange(len(values)) / RATE
        np.savez(folder / f"signals/{name}.npz", values=values, times=times)
    described = {
        "layout": "signals",
        "version": 1,
        "frame_rate": RATE,
        "signals": {
            "responses": {},
            "pupil": {"channels": ["pupil_x", "pupil_y"]},
            "behaviour": {"channels": ["pupil_radius", "treadmill_speed"]},
        },
        "perspectives": ["pupil_x", "pupil_y"],
        "modulations": ["pupil_radius", "treadmill_speed"],
    }
    (folder / "session.json").write_text(json.dumps(described))


def _nwb(folder: Path, found: list[Trial]) -> None:
    import h5py

    with h5py.File(folder / "scan.nwb", "w") as file:

        def series(path: str, values: np.ndarray, kind: str = "TimeSeries") -> h5py.Group:
            group = file.create_group(path)
            group.attrs["neurodata_type"] = kind
            group["data"], group["timestamps"] = values, np.arange(len(values)) / RATE
            return group

        series("acquisition/Stimulus", _continuous(found, "stimulus").astype("u1"), "ImageSeries")
        behaviour = _continuous(found, "behaviour")
        series("acquisition/EyeTracking/eye_position", _continuous(found, "pupil"))
        series("acquisition/PupilTracking/pupil_major_radius", behaviour[:, 0])
        series("acquisition/treadmill_velocity", behaviour[:, 1])
        plane = file.create_group("processing/ophys/ImageSegmentation/PlaneSegmentation1")
        plane.attrs["colnames"] = ["mask_type"]
        plane["id"], plane["mask_type"] = np.arange(NEURONS) + 1, np.array([b"soma"] * NEURONS)
        path = "processing/ophys/Activity/RoiResponseSeries1"
        traces = series(path, _continuous(found, "responses"), "RoiResponseSeries")
        traces["rois"] = np.arange(NEURONS)
        traces["rois"].attrs["table"] = plane.ref
        table = file.create_group("intervals/Clip")
        table["id"] = np.arange(len(found))
        table["start_time"], table["stop_time"] = _starts(), _starts() + FRAMES / RATE
        shown = [f"v{number}" for number in range(TRAINING)] + ["shown"] * TESTS
        table["condition_hash"] = np.array([name.encode() for name in shown])
    (folder / "nwb.json").write_text(json.dumps({"responses": "processing/ophys/Activity"}))


def _sensorium2023(folder: Path, found: list[Trial]) -> None:
    for number, trial in enumerate(found):
        save(folder / f"data/videos/{number}.npy", np.moveaxis(trial["stimulus"], 0, -1))
        save(folder / f"data/responses/{number}.npy", trial["responses"].T)
        save(folder / f"data/behavior/{number}.npy", trial["behaviour"].T)
        save(folder / f"data/pupil_center/{number}.npy", trial["pupil"].T)
    _tiers_and_units(folder)


def _sensorium2022(folder: Path, found: list[Trial]) -> None:
    for number, trial in enumerate(found):
        save(folder / f"data/images/{number}.npy", trial["stimulus"][:1])
        save(folder / f"data/responses/{number}.npy", trial["responses"][0])
        behaviour = trial["behaviour"][0]
        save(folder / f"data/behavior/{number}.npy", [behaviour[0], 0.1 * number, behaviour[1]])
        save(folder / f"data/pupil_center/{number}.npy", trial["pupil"][0])
    _tiers_and_units(folder)


def _tiers_and_units(folder: Path) -> None:
    save(folder / "meta/trials/tiers.npy", ["train"] * TRAINING + ["test"] * TESTS)
    save(folder / "meta/neurons/unit_ids.npy", np.arange(NEURONS) + 1)
    save(folder / "meta/neurons/area.npy", ["V1"] * NEURONS)


def _digital_twin(folder: Path, found: list[Trial]) -> None:
    for number, trial in enumerate(found):
        training = number < TRAINING
        root = folder if training else folder / "evaluation"
        key = str(number) if training else f"natural_movie-0/{number}"
        save(root / f"stimuli/{key}.npy", trial["stimulus"][..., None])
        save(root / f"units/{key}.npy", trial["responses"])
        save(root / f"perspectives/{key}.npy", trial["pupil"])
        save(root / f"modulations/{key}.npy", trial["behaviour"])
        if training:
            save(folder / f"training/{key}.npy", True)
            save(folder / f"samples/{key}.npy", FRAMES)
    save(folder / "neurons/unit_ids.npy", np.arange(NEURONS) + 1)


_WRITERS: dict[str, Callable[[Path, list[Trial]], None]] = {
    "signals": _signals,
    "nwb": _nwb,
    "sensorium2022": _sensorium2022,
    "sensorium2023": _sensorium2023,
    "digital_twin": _digital_twin,
}
