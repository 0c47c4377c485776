"""NWB files written by pynwb, prepared and read back against interpolation done here."""

import datetime
import json
import re

import fsspec
import numpy as np
import pytest
from scipy.interpolate import interp1d

from data_prep.job import prepare
from data_prep.readers import nwb_file
from data_prep.readers.nwb import NwbReader
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import DataError

pynwb = pytest.importorskip("pynwb")
h5py = pytest.importorskip("h5py")

NAME = "sub-17797_ses-4-scan-10"
VIDEO = "Video: stimulus_17797_4_10_v4"
HEIGHT, WIDTH, CLIP = 6, 8, 60
ROIS = (5, 4)
#: Conditions in the order of the trials; A is shown four times and so is of the test tier.
CLIPS = ["A=", "b", "A=", "c", "A=", "d", "A="]


class Scan:
    """A scan of 30 s with two fields, and the arrays that it was made from."""

    def __init__(self, folder, delay=0.0, external=True, rate=False):
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
        self.json = {}
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


@pytest.fixture
def make(tmp_path):
    return lambda **options: Scan(tmp_path / "source" / NAME, **options)


KINDS = ("responses", "perspectives", "modulations")


@pytest.mark.parametrize(
    "options",
    [{}, {"delay": 0.07}, {"external": False}, {"rate": True}],
    ids=["release", "delays", "frames inside", "starting time"],
)
def test_round_trip(make, tmp_path, options):
    scan = make(**options)
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to)
    session = open_dataset(to).session(NAME)
    manifest = session.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("17797", "nwb", 8)
    assert manifest.modulations == ["pupil_radius", "treadmill_speed"]
    assert manifest.excluded == []
    assert [trial.key for trial in manifest.trials] == ["Clip-2", "Clip-4", "Clip-6"]
    expected = scan.expected([1, 3, 5])
    for number, index in enumerate([1, 3, 5]):
        found = session.trial(number)
        # stop_time is the onset of the last flip, at 60 Hz; its frame at 30 Hz began before.
        np.testing.assert_array_equal(found.stimulus, expected[index]["stimulus"])
        for kind in KINDS:
            np.testing.assert_allclose(
                getattr(found, kind), expected[index][kind], rtol=1e-5, atol=2e-6
            )
    [video] = session.videos("test", "natural_movie")
    assert video.name.startswith("sha256-")
    assert video.repeats == 4
    repeats = session.video(video.name)
    np.testing.assert_array_equal(repeats.stimulus, scan.clips["A="])
    for repeat, index in enumerate([0, 2, 4, 6]):
        np.testing.assert_allclose(
            repeats.responses[repeat], expected[index]["responses"], rtol=1e-5, atol=2e-6
        )
    table = session.neurons()
    fields = [1] * 4 + [2] * 4
    assert table["field"].tolist() == fields
    assert table["roi_id"].tolist() == [1, 2, 4, 5, 1, 2, 3, 4]
    assert table["unit_id"].tolist() == [
        field * 1_000_000 + roi for field, roi in zip(fields, table["roi_id"], strict=True)
    ]
    np.testing.assert_allclose(table["z"], np.array(fields) * 100.0)
    assert set(table["mask_type"]) == {"soma"}
    assert "cave_ids" not in table
    assert verify(to) == []


def test_impulse_lands_within_half_a_frame(make, tmp_path):
    scan = make(delay=0.07, rate=True)
    onset = scan.trials[1][1] + 0.512
    for traces, delay in zip(scan.traces, scan.delays, strict=True):
        sharp = np.clip(1 - np.abs(scan.scan_times + delay - onset) * 6.3, 0, None)
        traces[:] = sharp[:, None]
    scan.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    responses = open_dataset(str(tmp_path / "to")).session(NAME).trial(0).responses
    times = scan.flips[scan.trials[1][0] :][:CLIP:2]
    centre = (responses * times[:, None]).sum(0) / responses.sum(0)
    assert np.abs(centre - onset).max() < 0.5 / 30


def test_all_masks_and_tiers_of_a_column(make, tmp_path):
    scan = make()
    tiers = ["test", "train", "test", "train", "none", "validation", "test"]

    def add(file):
        file["intervals/Clip/tier"] = np.array(tiers, h5py.string_dtype())

    scan.change(add)
    settings = {**scan.json, "mask_types": None, "tier_column": "tier"}
    (scan.folder / "nwb.json").write_text(json.dumps(settings))
    reader = NwbReader(scan.folder)
    assert reader.info.neurons == 9
    assert [ref.tier for ref in reader.trials()] == [tier for tier in tiers if tier != "none"]


def test_from_a_url_only_parts_are_read(make, tmp_path, monkeypatch):
    scan = make()
    scan.traces = [np.random.default_rng(n).gamma(2.0, 1.0, (176, 4000)) for n in (1, 2)]
    scan.scan_times = scan.scan_times[:176]
    scan.mask_types = (["soma"] * 4000,) * 2
    scan.write()
    url = "memory://nwb-test/scan.nwb"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, scan.path.read_bytes())
    scan.path.unlink()
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "url": url}))
    read = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def open(self):
            return self

        def readinto(self, buffer):
            read.append(len(buffer))
            return self.file.readinto(buffer)

        def read(self, size=-1):
            data = self.file.read(size)
            read.append(len(data))
            return data

        def seek(self, *to):
            return self.file.seek(*to)

        def tell(self):
            return self.file.tell()

    monkeypatch.setattr(nwb_file.fsspec, "open", lambda *a: Counting(fs.open(path, "rb")))
    reader = NwbReader(scan.folder)
    trial = reader.read(reader.trials()[0])
    assert trial.responses[0].values.shape[1] == 4000
    assert len(trial.responses[0].values) < 15
    assert sum(read) < 0.25 * fs.size(path)
    fs.rm(path)


def put(path, index, value):
    def edit(file):
        values = file[path][:]
        values[index] = value
        file[path][:] = values

    return lambda scan: scan.change(edit)


def remove(path):
    def edit(file):
        del file[path]

    return lambda scan: scan.change(edit)


def setting(**values):
    return lambda scan: (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, **values}))


def rewritten(path, change):
    def edit(file):
        values = change(file[path][:])
        attributes = dict(file[path].attrs)
        del file[path]
        file[path] = values
        file[path].attrs.update(attributes)

    return lambda scan: scan.change(edit)


FLUORESCENCE = "processing/ophys/Fluorescence"
BAD = {
    "not HDF5": (lambda s: s.path.write_bytes(b"x" * 4096), r"scan\.nwb: cannot open as HDF5"),
    "truncated": (
        lambda s: s.path.write_bytes(s.path.read_bytes()[:20000]),
        r"scan\.nwb: cannot open as HDF5",
    ),
    "no file": (lambda s: s.path.unlink(), r"scan-10: 0 \.nwb files; a session is a folder of one"),
    "two files": (
        lambda s: (s.folder / "b.nwb").write_bytes(b""),
        r"scan-10: 2 \.nwb files; a session is a folder of one",
    ),
    "no responses": (
        remove(FLUORESCENCE),
        r"scan\.nwb: no processing/ophys/Fluorescence; /processing/ophys has ImageSegmentation;",
    ),
    "no treadmill": (
        remove("acquisition/treadmill_velocity"),
        r"no acquisition/treadmill_velocity; /acquisition has EyeTracking, .*nwb\.json",
    ),
    "no pupil": (
        remove("acquisition/PupilTracking/pupil_major_radius/data"),
        r"pupil_major_radius: no time series: it has no data",
    ),
    "link to nothing": (
        remove("acquisition/PupilTracking"),
        r"eye_position: neither timestamps nor starting_time and rate",
    ),
    "no segmentation": (
        remove("processing/ophys/ImageSegmentation/PlaneSegmentation2/id"),
        r"RoiResponseSeries2: rois refer to no segmentation with ids",
    ),
    "no timestamps": (
        remove(f"{FLUORESCENCE}/RoiResponseSeries1/timestamps"),
        r"RoiResponseSeries1: neither timestamps nor starting_time and rate",
    ),
    "times that run backwards": (
        put("acquisition/treadmill_velocity/timestamps", 9, 0.0),
        r"treadmill_velocity: times do not increase at sample 9",
    ),
    "NaN time": (
        put(f"{FLUORESCENCE}/RoiResponseSeries2/timestamps", 9, np.nan),
        r"RoiResponseSeries2: time of sample 9 is nan",
    ),
    "axes in another order": (
        rewritten(f"{FLUORESCENCE}/RoiResponseSeries1/data", np.transpose),
        r"RoiResponseSeries1: unequal lengths: 5 rows of data, 176 times; is time the first axis",
    ),
    "lost ROI": (
        rewritten(f"{FLUORESCENCE}/RoiResponseSeries1/data", lambda v: v[:, 1:]),
        r"RoiResponseSeries1: 4 columns of data, 5 rois",
    ),
    "ROI of no row": (
        put(f"{FLUORESCENCE}/RoiResponseSeries1/rois", 0, 5),
        r"RoiResponseSeries1: rois name rows beyond the 5 of their segmentation",
    ),
    "all-NaN neuron": (
        put(f"{FLUORESCENCE}/RoiResponseSeries1/data", (slice(None), 1), np.nan),
        r"RoiResponseSeries1: NaN inside the trial, first at frame 0, neuron 1",
    ),
    "repeated ROI id": (
        put("processing/ophys/ImageSegmentation/PlaneSegmentation1/id", 1, 1),
        r"unit id 1000001 occurs more than once",
    ),
    "pupil of one axis": (
        rewritten("acquisition/EyeTracking/eye_position/data", lambda v: v[:, 0]),
        r"eye_position: 1 columns, not 2",
    ),
    "no trials": (
        remove("intervals/Clip"),
        r"scan\.nwb: intervals has no tables, but none of Clip",
    ),
    "trial that ends before it starts": (
        put("intervals/Clip/stop_time", 2, 0.0),
        r"intervals/Clip: row 2: from .* to 0\.0 s is no interval",
    ),
    "trial outside the stimulus": (
        lambda s: [
            put("intervals/Clip/start_time", 2, 90.0)(s),
            put("intervals/Clip/stop_time", 2, 91.0)(s),
        ],
        r"intervals/Clip: row 2: from 90 to 91 s no frames were shown; those are from",
    ),
    "repeated trial id": (put("intervals/Clip/id", 2, 1), r"intervals/Clip: an id occurs more"),
    "other frames in a repeat": (
        put("intervals/Clip/condition_hash", 1, b"A="),
        r"stimulus\.npy: shows another stimulus than the first repeat",
    ),
    "video outside": (
        lambda s: (s.folder / "nwb.json").write_text("{}"),
        r"its frames are in stimulus\.avi; decode that once to uint8 .* as stimulus_file",
    ),
    "fewer frames than times": (
        lambda s: np.save(s.folder / "stimulus.npy", s.frames[:-1]),
        r"stimulus\.npy: unequal lengths: 1499 frames, 1500 times",
    ),
    "frames in colour": (
        lambda s: np.save(s.folder / "stimulus.npy", s.frames[..., None]),
        r"stimulus\.npy: uint8 \[1500, 6, 8, 1\], not uint8 \[frame, height, width\]",
    ),
    "frames outside the folder": (
        setting(stimulus_file="../stimulus.npy"),
        r"nwb\.json: stimulus_file: not the name of a \.npy file in the session's folder",
    ),
    "unknown setting": (setting(response="x"), r"nwb\.json: response: unknown key"),
    "unknown domain": (setting(intervals={"Clip": "cats"}), r"nwb\.json: unknown domain 'cats'"),
    "delay of no field": (
        setting(field_delays_seconds={"Field9": 0.1}),
        r"field_delays_seconds: no series Field9 in the file",
    ),
    "no such mask type": (setting(mask_types=["axon"]), r"no ROIs of the mask types axon"),
    "no such tier column": (
        setting(tier_column="tier"),
        r"no intervals/Clip/tier; /intervals/Clip",
    ),
    "signal on another clock": (
        setting(offsets_seconds={"responses": 500.0}),
        r"RoiResponseSeries1: trial Clip-1 needs responses from 2\.99.*are they on one clock\?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(make, tmp_path, case):
    damage, message = BAD[case]
    damage(make())
    to = tmp_path / "to"
    with pytest.raises(DataError) as caught:
        prepare(str(tmp_path / "source"), str(to))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path for path in to.rglob("*") if path.is_file()] == []


def test_gaps_of_the_treadmill_leave_a_trial_out(make, tmp_path):
    scan = make()
    first = int(np.searchsorted(scan.run_times, scan.trials[3][1] + 0.3))
    scan.speed[first : first + 16] = np.nan
    scan.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), PrepSettings())
    excluded = open_dataset(str(tmp_path / "to")).session(NAME).manifest.excluded
    reason = "behaviour missing for more than 15 frames"
    assert [(item.trial, item.reason) for item in excluded] == [("Clip-4", reason)]
