"""A scan as an NWB file written by pynwb, with the arrays that it was made from."""

import datetime
import json

import h5py
import numpy as np
import pynwb
from scipy.interpolate import interp1d

NAME = "sub-17797_ses-4-scan-10"
VIDEO = "Video: stimulus_17797_4_10_v4"
HEIGHT, WIDTH, CLIP = 6, 8, 60
ROIS = (5, 4)
#: Conditions in the order of the trials; A is shown four times and so is of the test tier.
CLIPS = ["A=", "b", "A=", "c", "A=", "d", "A="]


class Scan:
    """A scan of 30 s with two fields, and the arrays that it was made from."""

    def __init__(self, folder, delay=0.0, external=True, rate=False, raw=False):
        self.folder = folder
        folder.mkdir(parents=True)
        generator = np.random.default_rng(3)
        self.flips = 2.0 + np.arange(1500) / 60 + generator.uniform(-2e-4, 2e-4, 1500)
        clips = {name: generator.integers(0, 256, (CLIP // 2, HEIGHT, WIDTH)) for name in CLIPS}
        self.frames = np.full((1500, HEIGHT, WIDTH), 127, np.uint8)
        self.trials = []
        for number, name in enumerate(CLIPS):
            first = 60 + number * 150
            # A clip at 30 Hz on a display at 60 Hz: every frame twice.
            self.frames[first : first + CLIP] = clips[name].repeat(2, axis=0)
            self.trials.append((first, self.flips[first], self.flips[first + CLIP - 1]))
        self.clips = {name: clip.astype(np.uint8) for name, clip in clips.items()}
        count = int(28 * 6.3)
        steps = np.ones(count) if rate else generator.uniform(0.9, 1.1, count)
        self.scan_times = 1.5 + np.cumsum(steps) / 6.3
        self.traces = [generator.gamma(2.0, 1.0, (len(self.scan_times), n)) for n in ROIS]
        self.delays = (0.0, delay)
        self.pupil_times = 1.0 + np.cumsum(generator.uniform(0.9, 1.1, 28 * 20)) / 20
        self.position = generator.normal(80, 4, (len(self.pupil_times), 2))
        self.radius = generator.normal(20, 3, len(self.pupil_times))
        self.run_times = 1.0 + np.cumsum(generator.uniform(0.9, 1.1, 28 * 80)) / 80
        self.speed = generator.gamma(1.0, 5.0, len(self.run_times))
        self.mask_types = (["soma", "soma", "artifact", "soma", "soma"], ["soma"] * 4)
        self.path = folder / "scan.nwb"
        self.external, self.rate = external, rate
        # Without this, the traces are raw fluorescence, as those of the release.
        self.json = {} if raw else {"responses": "processing/ophys/Fluorescence"}
        if external:
            np.save(folder / "stimulus.npy", self.frames)
            self.json["stimulus_file"] = "stimulus.npy"
        if delay:
            self.json["field_delays_seconds"] = {"RoiResponseSeries2": delay}
        self.write()

    def write(self):
        """Write the file with pynwb, as the release's converter lays it out."""
        (self.folder / "nwb.json").write_text(json.dumps(self.json))
        start = datetime.datetime(2018, 3, 4, tzinfo=datetime.UTC)
        nwb = pynwb.NWBFile("a scan", "id", start, session_id="4-scan-10")
        nwb.subject = pynwb.file.Subject(subject_id="17797", species="Mus musculus", age="P75D")
        radius = pynwb.TimeSeries(
            name="pupil_major_radius", data=self.radius, timestamps=self.pupil_times, unit="px"
        )
        nwb.add_acquisition(pynwb.behavior.PupilTracking(time_series=[radius]))
        nwb.add_acquisition(
            pynwb.behavior.EyeTracking(
                pynwb.behavior.SpatialSeries(
                    name="eye_position",
                    data=self.position,
                    timestamps=radius,
                    unit="px",
                    reference_frame="unknown",
                )
            )
        )
        nwb.add_acquisition(
            pynwb.TimeSeries(
                name="treadmill_velocity",
                data=self.speed,
                timestamps=self.run_times,
                unit="m/s",
                conversion=0.01,
            )
        )
        how = (
            {"external_file": ["stimulus.avi"], "format": "external", "starting_frame": [0]}
            if self.external
            else {"data": self.frames}
        )
        nwb.add_acquisition(
            pynwb.image.ImageSeries(name="stimulus", unit="n.a.", timestamps=self.flips, **how)
        )
        self.add_fields(nwb)
        clip = pynwb.epoch.TimeIntervals(name="Clip", description="clips")
        clip.add_column("condition_hash", "hash")
        for number, (_, begin, end) in enumerate(self.trials):
            clip.add_interval(
                start_time=begin, stop_time=end, condition_hash=CLIPS[number], id=number + 1
            )
        nwb.add_time_intervals(clip)
        with pynwb.NWBHDF5IO(str(self.path), "w") as io:
            io.write(nwb)
        # So is it called in the release, which the library has since come to refuse.
        self.change(lambda file: file.move("acquisition/stimulus", f"acquisition/{VIDEO}"))

    def add_fields(self, nwb):
        device = nwb.create_device(name="Microscope")
        ophys = nwb.create_processing_module("ophys", "processed 2p data")
        segmentation = pynwb.ophys.ImageSegmentation()
        fluorescence = pynwb.ophys.Fluorescence(name="Fluorescence")
        ophys.add(segmentation)
        ophys.add(fluorescence)
        for number, traces in enumerate(self.traces, 1):
            channel = pynwb.ophys.OpticalChannel(
                name="OpticalChannel", description="a channel", emission_lambda=500.0
            )
            plane = nwb.create_imaging_plane(
                name=f"ImagingPlane{number}",
                optical_channel=channel,
                description="a field",
                device=device,
                excitation_lambda=920.0,
                indicator="GCaMP6",
                location="VISp,VISrl",
                origin_coords=[0.0, 0.0, number * 1e-4],
                origin_coords_unit="meters",
            )
            masks = segmentation.create_plane_segmentation(
                name=f"PlaneSegmentation{number}",
                description="masks",
                imaging_plane=plane,
            )
            for roi in range(traces.shape[1]):
                masks.add_roi(id=roi + 1, image_mask=np.zeros((4, 4), "f4"))
            types = self.mask_types[number - 1]
            masks.add_column(name="mask_type", description="type", data=types)
            ids = [[7], [], [8, 9], *([[]] * (traces.shape[1] - 3))]
            masks.add_column(name="cave_ids", description="ragged", data=ids, index=True)
            region = masks.create_roi_table_region(
                region=list(range(traces.shape[1])), description="all"
            )
            clock = (
                {"starting_time": self.scan_times[0], "rate": 6.3}
                if self.rate
                else {"timestamps": self.scan_times}
            )
            fluorescence.add_roi_response_series(
                pynwb.ophys.RoiResponseSeries(
                    name=f"RoiResponseSeries{number}",
                    data=traces,
                    rois=region,
                    unit="n.a.",
                    **clock,
                )
            )

    def change(self, edit):
        """Damage the file below the library."""
        with h5py.File(self.path, "a") as file:
            edit(file)

    def expected(self, training):
        """Every trial as it should be prepared, at every second flip."""
        raw = []
        for name, (first, _, _) in zip(CLIPS, self.trials, strict=True):
            times = self.flips[first : first + CLIP : 2]
            responses = np.concatenate(
                [
                    interp1d(self.scan_times + delay, traces, axis=0)(times)
                    for traces, delay in zip(self.traces, self.delays, strict=True)
                ],
                axis=1,
            )
            raw.append(
                {
                    "stimulus": self.clips[name],
                    "responses": np.delete(responses, 2, axis=1),  # the artifact
                    "perspectives": interp1d(self.pupil_times, self.position, axis=0)(times),
                    "modulations": np.stack(
                        [
                            interp1d(self.pupil_times, self.radius)(times),
                            interp1d(self.run_times, self.speed * 0.01)(times),
                        ],
                        axis=1,
                    ),
                }
            )
        for kind in ("responses", "perspectives", "modulations"):
            joined = np.concatenate([raw[number][kind] for number in training])
            for trial in raw:
                if kind == "responses":
                    trial[kind] = trial[kind] / joined.mean(0)
                else:
                    trial[kind] = (trial[kind] - joined.mean(0)) / joined.std(0)
        return raw
