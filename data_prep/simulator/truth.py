"""What a simulated session really is. No reader opens this folder; tests and studies do.

settings.json                   the settings and the session's index
neurons.npz                     a column per field of `Population`, and `monitor_pixel` [U, 2]:
                                x, y of the receptive field's centre at gaze zero, pixels
eye.json                        centre, gain (gaze = gain @ (pupil - centre)), degrees per pixel
recording.json                  scan rate (Hz), the trials: video, repeat, tier, start frame
gaze/<trial>.npy                true gaze, degrees [T, 2]; trials in the order shown
expected_rates/<video>.npy      noise-free response [T, U] at rest, eye still, before imaging
stimuli/<video>.json            the events of the other domains' videos
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.simulator.arrays import save
from data_prep.simulator.plan import render
from data_prep.simulator.session import Recorded, Session
from fmcortex.storage import write_json


class TruthWriter:
    """Writes a session's ground truth."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder = folder
        self.session = session
        self.count = 0

    def add(self, recorded: Recorded) -> None:
        """Write the truth of one trial."""
        save(self.folder / "gaze" / f"{self.count}.npy", recorded.gaze)
        self.count += 1

    def finish(self) -> None:
        """Write the truth of the session."""
        session, settings = self.session, self.session.settings
        centre = session.population.centre / settings.degrees_per_pixel
        # Pixel (0, 0) is the top left one's centre; the monitor's centre is zero degrees.
        pixel = centre + np.array([settings.width, settings.height]) / 2 - 0.5
        columns = session.population.columns() | {"monitor_pixel": pixel}
        np.savez(self.folder / "neurons.npz", allow_pickle=False, **columns)
        self._json("settings.json", {"session": session.index, **settings.model_dump(mode="json")})
        self._json(
            "eye.json",
            {
                "centre": session.eye.centre.tolist(),
                "gain": session.eye.gain.tolist(),
                "degrees_per_pixel": settings.degrees_per_pixel,
            },
        )
        trials = [
            {
                "video": trial.video.name,
                "repeat": trial.repeat,
                "tier": trial.video.tier,
                "start": trial.start,
                "frames": trial.video.frames,
            }
            for trial in session.plan.trials
        ]
        self._json("recording.json", {"imaging_rate": session.scanner.rate, "trials": trials})
        for video in session.plan.repeated():
            pixels, events = render(video, settings)
            save(
                self.folder / "expected_rates" / f"{video.name}.npy",
                session.responder.rates(pixels),
            )
            if events:
                self._json(f"stimuli/{video.name}.json", {"domain": video.domain, "events": events})

    def _json(self, name: str, document: object) -> None:
        write_json(str(self.folder / name), document)
