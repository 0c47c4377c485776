"""The files of the signals layout: every signal with its own clock, as a laboratory records it.

    session.json, neurons.npz, trials.csv, videos/<video>.npy
    signals/responses/{values,times}.npy   scans [n, U] float32; neurons.npz has their delays
    signals/pupil/..., signals/treadmill/...   at the camera's and the encoder's rates

See `data_prep.readers.signals`. Of the scans between trials, only those are there that a trial's
frames are interpolated between. Long gaps of the pupil are NaN.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.simulator.arrays import save
from data_prep.simulator.session import Recorded, Session


def description(frame_rate: float) -> dict[str, Any]:
    """`session.json` of a session with the pupil and the treadmill."""
    return {
        "layout": "signals",
        "version": 1,
        "frame_rate": frame_rate,
        "signals": {
            "responses": {},
            "pupil": {"channels": ["pupil_x", "pupil_y", "pupil_radius"]},
            "treadmill": {"channels": ["treadmill_speed"]},
        },
        "perspectives": ["pupil_x", "pupil_y"],
        "modulations": ["pupil_radius", "treadmill_speed"],
    }


class SignalsWriter:
    """Writes a session's videos as they come, its signals at the end."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder = folder
        self.session = session
        self.scans: list[tuple[np.ndarray, np.ndarray]] = []  # times and values, by trial
        self.rows: list[list[str]] = []

    def add(self, recorded: Recorded) -> None:
        """Write one trial's video and keep its scans."""
        trial = recorded.trial
        path = self.folder / "videos" / f"{trial.video.name}.npy"
        if not path.exists():
            save(path, recorded.video)
        start = trial.start / self.session.settings.frame_rate
        key = f"trial-{len(self.rows):04d}"
        video = trial.video
        self.rows.append([key, video.tier, video.domain, video.name, repr(start)])
        self.scans.append((recorded.scan_times, recorded.scans.astype(np.float32)))

    def finish(self) -> None:
        """Write the signals, the tables and the description."""
        session, settings = self.session, self.session.settings
        times = np.concatenate([times for times, _ in self.scans])
        # Trials that follow closely may share a scan: each has simulated its own, one is kept.
        _, first = np.unique(np.round(times / session.scanner.period), return_index=True)
        save(self.folder / "signals" / "responses" / "times.npy", times[first])
        values = np.concatenate([values for _, values in self.scans])[first]
        save(self.folder / "signals" / "responses" / "values.npy", values)
        pupil = np.column_stack([session.pupil_centre, session.pupil_radius])
        self._behaviour("pupil", pupil, settings.eye_rate)
        treadmill = session.behaviour.treadmill[:, None]
        self._behaviour("treadmill", treadmill, settings.treadmill_rate)
        population = session.population
        np.savez(
            self.folder / "neurons.npz",
            unit_id=population.unit_id,
            x=population.coordinates[:, 0],
            y=population.coordinates[:, 1],
            z=population.coordinates[:, 2],
            area=population.area,
            layer=population.layer,
            delay_seconds=session.scanner.delay,
        )
        with open(self.folder / "trials.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["trial", "tier", "domain", "video", "start"])
            writer.writerows(self.rows)
        content = json.dumps(description(settings.frame_rate), indent=1)
        (self.folder / "session.json").write_text(content)

    def _behaviour(self, name: str, values: np.ndarray, rate: float) -> None:
        """Sample what is simulated at the stimulus frames [frames, k] at another rate."""
        frame_rate = self.session.settings.frame_rate
        times = np.arange(0, (len(values) - 1) / frame_rate, 1 / rate)
        position = times * frame_rate
        row = np.minimum(position.astype(np.intp), len(values) - 2)
        part = (position - row)[:, None]
        sampled = values[row] * (1 - part) + values[row + 1] * part
        save(self.folder / "signals" / name / "values.npy", sampled.astype(np.float32))
        save(self.folder / "signals" / name / "times.npy", times)
