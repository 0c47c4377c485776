"""Numbers that cannot be right are refused, or said, in one line, whatever the layout."""

import csv
import gzip
import json
import os
from pathlib import Path

import h5py
import layouts
import numpy as np
import pytest
from layouts import FRAMES, LAYOUTS, NAME, TRAINING

from data_prep.checks import Showing, check_apart, check_rate
from data_prep.job import prepare
from data_prep.readers.protocol import Signal
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import DataError

WITH_CLOCKS = ("signals", "nwb")
FLOAT_VIDEOS = ("sensorium2022", "sensorium2023")


@pytest.fixture
def prep(tmp_path):
    """Prepare the recording below `source`; its session, and what was said of it."""

    def run(**settings):
        lines = []
        to = str(tmp_path / "to")
        prepare(str(tmp_path / "source"), to, PrepSettings(**settings), progress=lines.append)
        return open_dataset(to).session(NAME), lines[-1]

    return run


def refused(prep, message, **settings):
    with pytest.raises(DataError, match=message) as caught:
        prep(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grey_levels_from_0_to_1(layout, tmp_path, prep):
    def change(_, trial):
        levels = trial["stimulus"] / 255
        trial["stimulus"] = levels if layout in FLOAT_VIDEOS else np.rint(levels).astype("u1")

    layouts.write(layout, tmp_path / "source", change)
    refused(prep, r"m-1-1.*: no video has a grey level above 1 of 255; are they from 0 to 1\?")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_dark_video_is_no_reason(layout, tmp_path, prep):
    def change(number, trial):
        if number == 1:
            trial["stimulus"] = trial["stimulus"] // 128

    layouts.write(layout, tmp_path / "source", change)
    assert len(prep()[0].manifest.trials) == TRAINING


def in_milliseconds(layout, folder, names):
    if layout == "nwb":
        with h5py.File(folder / "scan.nwb", "a") as file:

            def scale(path, item):
                if path.endswith(("timestamps", "start_time", "stop_time")):
                    item[:] *= 1000

            file.visititems(scale)
        return
    for path in (folder / "signals").glob("*.npz"):
        if path.stem in names:
            values, times = np.load(path).values()
            np.savez(path, values=values, times=times * 1000)
    if "responses" in names:
        rows = list(csv.reader((folder / "trials.csv").open()))
        for row in rows[1:]:
            row[4] = str(float(row[4]) * 1000)
        csv.writer((folder / "trials.csv").open("w")).writerows(rows)


@pytest.mark.parametrize(
    ("layout", "names", "message"),
    [
        (
            "signals",
            ("responses", "pupil", "behaviour"),
            r"responses\.npz: a sample every 33\.33 s",
        ),
        (
            "signals",
            ("behaviour",),
            r"behaviour\.npz: a sample every 33\.33 s, where .* milliseconds\?",
        ),
        ("nwb", (), r"RoiResponseSeries1: a sample every 33\.33 s"),
    ],
)
def test_times_in_milliseconds(layout, names, message, tmp_path, prep):
    folder = layouts.write(layout, tmp_path / "source")
    in_milliseconds(layout, folder, names)
    with pytest.raises(Exception, match=message) as caught:
        prep()
    assert "\n" not in str(caught.value)


def test_slow_signals():
    def slow(interval, length):
        check_rate(Signal(np.zeros((3, 1)), "x", np.arange(3) * interval), length)

    for interval, length in ((0.25, 0.5), (0.9, 0.5), (1.9, 10.0), (0.16, None), (1.9, None)):
        slow(interval, length)
    for interval, length in ((1.1, 0.5), (2.1, 10.0), (2.1, None), (16.7, 10.0)):
        with pytest.raises(DataError, match="milliseconds"):
            slow(interval, length)
    # A hole in the recording, in which the trial lies, is for the rule for gaps.
    check_rate(Signal(np.zeros((4, 1)), "x", np.array([0, 0.2, 900, 900.2])), 10.0)


def centred(number, trial):
    values = np.random.default_rng(number).normal(size=(FRAMES, layouts.NEURONS))
    trial["responses"] = values - values.mean(axis=0) + 1e-9
    trial["responses"][0] = (1.0, -1.0, 1.0, -1.0)[number % 4] if number != 4 else 0.0  # images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_responses_around_zero(layout, tmp_path, prep):
    layouts.write(layout, tmp_path / "source", centred)
    message = r"neuron \d has responses around zero \(mean .*; \d such of 4\), as z-scored.*=std"
    refused(prep, message)
    refused(prep, message, silent_neurons="keep")
    session, _ = prep(response_normalisation="std")  # what it advises
    found = np.concatenate([session.trial(number).responses for number in range(TRAINING)])
    np.testing.assert_allclose(found.std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_activity_is_not_around_zero(layout, tmp_path, prep):
    """Of Sensorium's responses some are a hair under zero, too."""

    def change(number, trial):
        trial["responses"][:] = -2.7e-7
        if number == 1:
            trial["responses"][0] = 3.0

    layouts.write(layout, tmp_path / "source", change)
    assert len(prep()[0].manifest.trials) == TRAINING


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_that_does_not_vary_in_training(layout, tmp_path, prep):
    def change(number, trial):
        if number < TRAINING:
            trial["pupil"][:, 1] = 41.3
            trial["behaviour"][:, 1] = 0.1
        else:
            trial["behaviour"][:, 1] = 25.1

    layouts.write(layout, tmp_path / "source", change)
    session, line = prep()
    assert line.endswith("; pupil_y, treadmill_speed did not vary in training")
    at = session.manifest.modulations.index("treadmill_speed")
    [video] = session.videos("test")
    repeats = session.video(video.name).modulations
    np.testing.assert_allclose(repeats[:, :, at], 25.0, rtol=1e-5)
    np.testing.assert_allclose(session.trial(0).modulations[:, at], 0, atol=1e-6)
    np.testing.assert_allclose(session.trial(0).perspectives[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("what", "value"), [("responses", 1e39), ("responses", 1e300), ("pupil", 1e300)]
)
def test_values_beyond_float32(layout, what, value, tmp_path, prep):
    def change(number, trial):
        trial[what] = trial[what].astype(np.float64)
        if number == TRAINING:
            trial[what][0, 1] = value

    layouts.write(layout, tmp_path / "source", change)
    for normalisation in ("mean", "none"):
        message = r"a value of 1e\+\d+ at frame \d+, column 1: none of a recording is beyond 1e\+30"
        refused(prep, message, response_normalisation=normalisation)


def faint(factor):
    def change(_, trial):
        trial["responses"] = trial["responses"].astype(np.float64) * factor

    return change


def on_a_baseline(_, trial):
    trial["responses"] = 1e4 + trial["responses"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (faint(1e-9), {"response_normalisation": "none"}, r"rounds away; use response_dtype=flo"),
        (on_a_baseline, {}, r"around 1 as stored \(4 such of 4\), which float16 rounds away"),
    ],
)
def test_values_that_float16_rounds_away(layout, change, settings, message, tmp_path, prep):
    layouts.write(layout, tmp_path / "source", change)
    refused(prep, message, response_dtype="float16", **settings)
    session, _ = prep(**settings)
    assert session.trial(0).responses.std() > 0


def test_values_that_float32_rounds_away(tmp_path, prep):
    layouts.write("digital_twin", tmp_path / "source", faint(1e-42))
    refused(prep, "float32 rounds away; use .*=mean or std", response_normalisation="none")
    assert prep()[0].trial(0).responses.std() > 0.1


def test_values_that_scaling_makes_too_large(tmp_path, prep):
    """A neuron that hardly responds in training and much in a test."""

    def change(number, trial):
        trial["responses"] = trial["responses"] * (1e28 if number >= TRAINING else 1e-28)

    layouts.write("digital_twin", tmp_path / "source", change)
    refused(prep, r"trial natural_movie-0/\d: a response of \S+e\+56 after scaling is too la")


def test_behaviour_that_scaling_makes_too_large(tmp_path, prep):
    def change(number, trial):
        trial["behaviour"] = trial["behaviour"] * (1e27 if number >= TRAINING else 1e-28)

    layouts.write("digital_twin", tmp_path / "source", change)
    refused(
        prep, r"trial natural_movie-0/\d: behaviour of \S+e\+5\d after scaling is too large for fl"
    )


def overlap(layout, folder, first, second):
    """Let trial `second` begin when trial `first` does."""
    if layout == "nwb":
        with h5py.File(folder / "scan.nwb", "a") as file:
            for name in ("start_time", "stop_time"):
                file[f"intervals/Clip/{name}"][second] = file[f"intervals/Clip/{name}"][first]
        return
    rows = list(csv.reader((folder / "trials.csv").open()))
    rows[second + 1][4] = rows[first + 1][4]
    csv.writer((folder / "trials.csv").open("w")).writerows(rows)


@pytest.mark.parametrize("layout", WITH_CLOCKS)
@pytest.mark.parametrize("trials", [(0, 3), (TRAINING, TRAINING + 2)], ids=["videos", "repeats"])
def test_two_trials_at_one_time(layout, trials, tmp_path, prep):
    folder = layouts.write(layout, tmp_path / "source")
    overlap(layout, folder, *trials)
    refused(prep, r"trials \S+ and \S+ were both shown from \d+ to \d+\.\d+ s; are their times")


def test_trials_back_to_back_and_rounded_times_pass():
    ends = [("a", 0.0, 9.97), ("b", 10.0, 19.97), ("c", 19.7, 29.6), ("d", 30.0, 30.5)]
    check_apart([Showing(*trial) for trial in ends], "x")
    check_apart([Showing("a", 0, 0.48), Showing("b", 0.4, 0.88)], "x")
    for wrong in ([("a", 0.0, 10.0), ("b", 9.0, 19.0)], [("a", 0, 20), ("b", 2, 3)]):
        with pytest.raises(DataError, match="trials a and b were both shown"):
            check_apart([Showing(*trial) for trial in wrong], "x")


def test_trials_of_an_unused_tier_may_overlap(tmp_path, prep):
    folder = layouts.write("signals", tmp_path / "source")
    overlap("signals", folder, 0, 3)
    text = (folder / "trials.csv").read_text().replace("t3,train", "t3,none")
    (folder / "trials.csv").write_text(text)
    assert len(prep()[0].manifest.trials) == TRAINING - 1


RECORDED = os.environ.get("FMCORTEX_RECORDED")


@pytest.mark.skipif(not RECORDED, reason="FMCORTEX_RECORDED names no folder of recorded facts")
def test_no_real_recording_is_refused():
    """Clocks and timelines of the 333 sessions of the Enigma-Mouse dataset."""
    root = Path(str(RECORDED)) / "enigma_mouse"
    for row in csv.DictReader((root / "sessions.csv").open()):
        for rate in ("scan_hz", "response_hz", "eye_hz", "treadmill_hz"):
            times = np.arange(5) / float(row[rate])
            check_rate(Signal(np.zeros((5, 1)), row["experiment"], times), 0.5)
    timelines = sorted(root.glob("events_*.csv.gz"))
    assert timelines
    for path in timelines:
        with gzip.open(path, "rt") as stream:
            rows = [row for row in csv.DictReader(stream) if row["modality"] in ("video", "image")]
        shown = [Showing(r["trial_key"], float(r["start_s"]), float(r["end_s"])) for r in rows]
        check_apart(shown, path.name)


#: Recorded extremes of behaviour: pupil size and running speed of mice A, D and H of the 2023
#: benchmark (bryanlimy/ViV1T-closed-loop, MIT), and pupil positions of mouse D.
EXTREMES = {
    "behaviour": ([12.298226, 0.0], [92.1245, 47.09936]),
    "pupil": ([153.95299, 143.30911], [203.47545, 218.74791]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_extremes_pass(layout, tmp_path, prep):
    def change(number, trial):
        for name, ends in EXTREMES.items():
            trial[name][:] = ends[number % 2]

    layouts.write(layout, tmp_path / "source", change)
    _, line = prep()
    assert "did not vary" not in line


def test_a_survey_of_an_older_version_is_still_read(tmp_path, prep):
    from data_prep.survey import Survey

    layouts.write("digital_twin", tmp_path / "source")
    prep()
    document = json.loads((tmp_path / f"to/sessions/{NAME}/survey.json").read_bytes())
    assert len(document["responses"].pop("lowest")) == layouts.NEURONS
    assert Survey.parse(json.dumps(document).encode(), "x").responses.lowest is None
