"""Each kind of bad NWB file gives one line that names the culprit."""

import json
import re

import numpy as np
import pytest
from nwb_scan import NAME, Scan

from data_prep.job import prepare
from fmcortex.errors import DataError


@pytest.fixture
def make(tmp_path):
    return lambda **options: Scan(tmp_path / "source" / NAME, **options)


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
    "fluorescence only": (
        lambda s: (s.folder / "nwb.json").write_text("{}"),
        r"processing/ophys/Fluorescence is raw fluorescence; run `fmcortex deconvolve .*scan-10`",
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
        r"eye_position/timestamps: is a link to /acquisition/PupilTracking/.*, which is not there",
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
    "infinite time": (
        put(f"{FLUORESCENCE}/RoiResponseSeries2/timestamps", 9, np.inf),
        r"RoiResponseSeries2: time of sample 9 is inf",
    ),
    "mostly no times": (
        put(f"{FLUORESCENCE}/RoiResponseSeries2/timestamps", slice(9, 150), np.nan),
        r"RoiResponseSeries2: 141 of 176 samples have no time \(NaN\); only a few",
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
        lambda s: (s.folder / "nwb.json").write_text(json.dumps({"responses": FLUORESCENCE})),
        r"its frames are in stimulus\.avi; decode that once.*`fmcortex decode .* stimulus_file",
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
    "responses without a name": (
        setting(responses=""),
        r"nwb\.json: responses: String should have at least 1 character",
    ),
    "tiers without a name": (
        setting(tier_column=""),
        r"nwb\.json: tier_column: String should have at least 1 character",
    ),
    "delay that is no number": (
        setting(field_delays_seconds={"RoiResponseSeries2": float("nan")}),
        r"nwb\.json: field_delays_seconds\.RoiResponseSeries2: Input should be a finite number",
    ),
    "name of two lines": (
        setting(treadmill="x\ny"),
        r"scan\.nwb: no 'x\\ny'; the file has acquisition",
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
        r"intervals/Clip: no column tier; it has condition_hash",
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
