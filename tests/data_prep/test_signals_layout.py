"""The signals layout: prepared and read back against interpolation done here, and bad input."""

import csv
import json
import re

import numpy as np
import pytest
import zarr
from scipy.interpolate import interp1d
from scipy.signal import firwin

from data_prep.job import prepare
from data_prep.readers.clock import Clock, Margin
from data_prep.readers.signals import SignalsReader
from data_prep.readers.signals_schema import SessionFile
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import ConfigError, DataError

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


@pytest.fixture
def make(tmp_path):
    return lambda **options: Session(tmp_path / "source" / NAME, **options)


def compare(found, expected):
    np.testing.assert_array_equal(found.stimulus, expected["stimulus"])
    for kind in ("responses", "perspectives", "modulations"):
        np.testing.assert_allclose(getattr(found, kind), expected[kind], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("form", "even", "delays"),
    [("npz", True, True), ("npy", False, True), ("zarr", True, False), ("zarr", False, True)],
)
def test_round_trip(make, tmp_path, form, even, delays):
    session = make(form=form, even=even, delays=delays)
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to)
    found = open_dataset(to).session(NAME)
    manifest = found.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("mouse07", "signals", NEURONS)
    assert manifest.modulations == ["treadmill_speed", "pupil_radius"]
    keys = [trial.key for trial in manifest.trials]
    assert keys == ["t0", "t2", "t6"]
    assert manifest.excluded == []
    expected = session.expected(keys)
    for number, key in enumerate(keys):
        compare(found.trial(number), expected[key])
    oracle = found.video("oracle")
    for repeat, key in enumerate(["t1", "t5"]):
        np.testing.assert_allclose(
            oracle.responses[repeat], expected[key]["responses"], rtol=1e-5, atol=2e-6
        )
    assert [video.name for video in found.videos("test", "drifting_gabor")] == ["gabor"]
    table = found.neurons()
    assert table["unit_id"].tolist() == [1, 4, 7, 10, 13, 16]
    assert table["area"].tolist() == ["V1", "V1", "LM", "AL", "RL", "V1"]
    assert verify(to) == []


@pytest.mark.parametrize("onset", [103.5, 103.72, 104.01])
def test_impulses_land_within_half_a_frame(make, tmp_path, onset):
    """What happens at one moment is found there in responses and behaviour, whatever the clock."""
    session = make()
    for name, (values, times) in session.signals.items():
        times = times[0] + np.arange(len(times)) / RATES[name]
        delays = session.delays if name == "responses" else np.zeros(values.shape[1])
        actual = times[:, None] + OFFSETS[name] + delays
        # As wide as a sampling interval, or a frame: the sharpest that can be seen.
        sharpness = min(RATES[name], 30.0)
        values = np.clip(1 - np.abs(actual - onset) * sharpness, 0, None)
        session.write_signal(name, values, times)
    session.starts["t0"] = 103.013
    session.rows[0][-1] = "103.013"
    session.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    found = open_dataset(str(tmp_path / "to")).session(NAME).trial(0)
    for values in (found.responses, found.modulations, found.perspectives):
        above = values - values.min(0)
        centre = (above * np.arange(FRAMES)[:, None]).sum(0) / above.sum(0)
        assert np.abs(centre - (onset - 103.013) * 30).max() < 0.5


@pytest.mark.parametrize("delay", [0.0, 0.08, -0.05])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_responses_are_right_to_half_a_frame(make, tmp_path, delay, offset):
    """A linear ramp in real time is a clock: interpolation is exact on it, so it must read out."""
    session = make()
    _, times = session.signals["responses"]
    session.table["delay_seconds"] = np.full(NEURONS, delay)
    session.json["signals"]["responses"]["offset_seconds"] = offset
    session.write_signal("responses", np.tile((times + offset + delay)[:, None], NEURONS), times)
    session.write()
    settings = PrepSettings(response_normalisation="none")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), settings)
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    for number, key in enumerate(["t0", "t2", "t6"]):
        read_out = found.trial(number).responses
        np.testing.assert_allclose(read_out, np.tile(session.frames[key][:, None], NEURONS), 1e-6)


def test_every_second_frame_is_kept_of_a_source_at_twice_the_rate(make, tmp_path):
    session = make(rate=60.0)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    trial = found.trial(0)
    np.testing.assert_array_equal(trial.stimulus, session.videos["clip0"][::2])
    assert len(trial.responses) == FRAMES // 2
    assert found.manifest.frame_rate == 30.0


def test_another_rate_is_refused(make, tmp_path):
    make(rate=25.0)
    with pytest.raises(ConfigError, match=r"clip0\.npy: trial t0: 25 frames a second, not 30"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))


def test_treadmill_is_filtered_before_it_is_resampled(make, tmp_path):
    session = make()
    values, times = session.signals["treadmill"]
    times = 99.5 + np.arange(len(times)) / 70.0
    session.write_signal("treadmill", values, times)
    settings = PrepSettings(treadmill_lowpass_hz=3.0)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), settings)
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    reach = int(np.ceil(3.3 / 3.0 / 2 * 70))
    weights = firwin(2 * reach + 1, 3.0, window="hamming", fs=70.0)
    smooth = np.convolve(values[:, 0], weights, mode="same")
    trials = [np.interp(session.frames[k], times - 0.2, smooth) for k in ("t0", "t2", "t6")]
    joined = np.concatenate(trials)
    for number, expected in enumerate(trials):
        expected = (expected - joined.mean()) / joined.std()
        speed = found.trial(number).modulations[:, 0]
        np.testing.assert_allclose(speed, expected, rtol=1e-4, atol=1e-4)


def test_gaps_are_counted_in_camera_frames(make, tmp_path):
    """15 frames of a camera at 20 Hz are 22 of the stimulus; one more leaves the trial out."""
    session = make()
    values, times = session.signals["pupil"]
    for key, missing in (("t0", 15), ("t2", 16), ("t5", 16)):
        first = int(np.searchsorted(times, session.starts[key] + 0.2))
        values[first : first + missing] = np.nan
    # Of t5 they lack altogether instead.
    present = ~((times > session.starts["t5"]) & np.isnan(values).any(1))
    session.write_signal("pupil", values[present], times[present])
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "pupil position missing for more than 15 frames"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t2", reason), ("t5", reason)]


def test_lost_scan_frames_leave_the_trial_out(make, tmp_path):
    session = make()
    values, times = session.signals["responses"]
    lost = int(np.searchsorted(times, session.starts["t2"] + 0.6))
    session.write_signal("responses", np.delete(values, lost, 0), np.delete(times, lost))
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "samples of the responses are missing"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t2", reason)]


@pytest.mark.parametrize("form", ["npz", "npy", "zarr"])
def test_only_the_part_of_a_trial_is_read(make, form):
    session = make(form=form)
    raw_reader = SignalsReader(session.folder)
    trial = raw_reader.read(raw_reader.trials()[0])
    assert len(trial.responses[0].values) < 20
    assert len(trial.perspectives[0].values) < 80
    stored = raw_reader._signals["responses"]._values
    assert isinstance(stored, np.memmap if form != "zarr" else zarr.Array)


def test_part_of_a_clock():
    clock = Clock(np.arange(100.0), "x", offset=0.5)
    assert clock.part(10.2, 12.7, Margin(samples=0)) == slice(10, 13)
    assert clock.part(10.2, 12.7, Margin(samples=2, seconds=3)) == slice(5, 18)
    assert clock.part(-50, -40, Margin()) == slice(0, 2)
    assert clock.part(500, 600, Margin()) == slice(98, 100)


def test_the_schema_is_documented():
    schema = SessionFile.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "clock" in schema["$defs"]["SignalEntry"]["properties"]["offset_seconds"]["description"]


def signal(session, name, change):
    session.write_signal(name, *change(*(array.copy() for array in session.signals[name])))


def put(array, index, value):
    array[index] = value
    return array


def compressed(session):
    values, times = session.signals["pupil"]
    np.savez_compressed(session.folder / "signals/pupil.npz", values=values, times=times)


def lost_chunk(session):
    (session.folder / "signals/pupil.npz").unlink()
    session.write_signal("pupil", *session.signals["pupil"], "zarr")
    (session.folder / "signals/pupil.zarr/values/c/1/0").unlink()


def edit(where, value):
    """A change of session.json: `value` at the dotted key `where`."""

    def change(session):
        place = session.json
        *path, last = where.split(".")
        for key in path:
            place = place[key]
        place[last] = value

    return change


def row(number, column, value):
    return lambda s: put(s.rows[number], column, value)


BAD = {
    "unknown key": (edit("frame_rat", 30), r"session\.json: frame_rat: unknown key"),
    "unknown key of a signal": (
        edit("signals.pupil.offset", 1),
        r"session\.json: signals\.pupil\.offset: unknown key",
    ),
    "another version": (edit("version", 2), r"session\.json: version: Input should be 1"),
    "another name": (edit("name", "m"), r"name is 'm', the folder's is 'mouse07-2-1'"),
    "channel of no signal": (
        edit("perspectives", ["gaze"]),
        r"perspectives: no signal has a channel 'gaze'",
    ),
    "channel of two signals": (
        edit("signals.treadmill.channels", ["pupil_x"]),
        r"channel 'pupil_x' is in the signals twice",
    ),
    "signal outside the folder": (
        lambda s: s.json["signals"].update({"../pupil": {"channels": ["a"]}}),
        r"session\.json: signal '\.\./pupil': names are letters",
    ),
    "times that run backwards": (
        lambda s: signal(s, "pupil", lambda v, t: (v, put(t, 30, t[28]))),
        r"pupil\.npz: times do not increase at sample 30: ",
    ),
    "a time twice": (
        lambda s: signal(s, "responses", lambda v, t: (v, put(t, 30, t[29]))),
        r"responses\.npz: times do not increase at sample 30",
    ),
    "NaN time": (
        lambda s: signal(s, "treadmill", lambda v, t: (v, put(t, 7, np.nan))),
        r"treadmill\.npz: time of sample 7 is nan",
    ),
    "unequal lengths": (
        lambda s: signal(s, "pupil", lambda v, t: (v[:-1], t)),
        r"pupil\.npz: unequal lengths: \d+ values, \d+ times; is time the first axis",
    ),
    "axes in another order": (
        lambda s: signal(s, "responses", lambda v, t: (v.T, t)),
        r"responses\.npz: unequal lengths: 6 values",
    ),
    "lost neuron": (
        lambda s: signal(s, "responses", lambda v, t: (v[:, 1:], t)),
        r"responses\.npz: 5 columns, but 6 neurons are in the table",
    ),
    "lost channel": (
        lambda s: signal(s, "pupil", lambda v, t: (v[:, 1:], t)),
        r"pupil\.npz: 2 columns, but 3 channels are listed",
    ),
    "all-NaN neuron": (
        lambda s: signal(s, "responses", lambda v, t: (put(v, (slice(None), 3), np.nan), t)),
        r"responses\.npz: NaN inside the trial, first at frame 0, neuron 3",
    ),
    "text as values": (
        lambda s: signal(s, "pupil", lambda v, t: (v.astype(str), t)),
        r"pupil\.npz: values are <U32, not numbers",
    ),
    "one sample": (
        lambda s: signal(s, "pupil", lambda v, t: (v[:1], t[:1])),
        r"pupil\.npz: 1 samples; two at least",
    ),
    "infinite value": (
        lambda s: signal(s, "pupil", lambda v, t: (np.full_like(v, np.inf), t)),
        r"pupil\.npz: infinite value",
    ),
    "compressed signal": (compressed, r"pupil\.npz: is compressed, .* numpy\.savez, or as zarr"),
    "truncated signal": (
        lambda s: (s.folder / "signals/pupil.npz").write_bytes(
            (s.folder / "signals/pupil.npz").read_bytes()[:-500]
        ),
        r"pupil\.npz: not a whole \.npz file",
    ),
    "missing signal": (
        lambda s: (s.folder / "signals/pupil.npz").unlink(),
        r"signals: signal pupil is missing; it is one of <name>/",
    ),
    "signal in two forms": (
        lambda s: s.write_signal("pupil", *s.signals["pupil"], "npy"),
        r"signals: signal pupil is there more than once",
    ),
    "lost chunk": (lost_chunk, r"pupil\.zarr: 1 chunks of values are missing, which would read as"),
    "unknown tier": (row(2, 1, "oracle"), r"trials\.csv: trial t2: unknown tier 'oracle'; known"),
    "unknown domain": (row(2, 2, "cats"), r"trials\.csv: trial t2: unknown domain 'cats'"),
    "video outside the folder": (
        row(2, 3, "../../x"),
        r"trials\.csv: trial t2: video '\.\./\.\./x': names are letters",
    ),
    "trial outside the folder": (
        row(2, 0, "../t2"),
        r"trials\.csv: trial '\.\./t2': names are letters",
    ),
    "trial twice": (row(2, 0, "t0"), r"trials\.csv: trial t0 occurs more than once"),
    "missing video": (row(2, 3, "clip9"), r"videos/clip9\.npy: file is missing \(trial t2\)"),
    "start that is no time": (row(2, 4, "noon"), r"trial t2: start is 'noon', not a time"),
    "start on another clock": (
        row(2, 4, "3.5"),
        r"responses\.npz: trial t2 needs responses from 3\.42 to 4\.8 s.*are they on one clock\?",
    ),
    "no trials": (lambda s: s.rows.clear(), r"trials\.csv: no trials"),
    "ragged table": (lambda s: s.rows[3].append("x"), r"trials\.csv: row 4 has 6 entries, not 5"),
    "repeated unit id": (
        lambda s: put(s.table["unit_id"], 1, 1),
        r"unit id 1 occurs more than once",
    ),
    "unit ids that are no integers": (
        lambda s: s.table.update(unit_id=np.arange(NEURONS) + 0.5),
        r"unit ids are float64, not integers",
    ),
    "no unit ids": (lambda s: s.table.pop("unit_id"), r"neurons\.csv: no column unit_id"),
    "no neurons": (
        lambda s: s.table.update(unit_id=np.array([], int)),
        r"neurons\.csv: no neurons",
    ),
    "delay in milliseconds": (
        lambda s: s.table.update(delay_seconds=s.delays * 1000),
        r"neurons\.csv: delay_seconds are not all numbers of seconds within 1",
    ),
    "float video": (
        lambda s: s.save("videos/clip1.npy", s.videos["clip1"] / 255),
        r"videos/clip1\.npy: float64, not uint8 \[time, height, width\]",
    ),
    "video without frames": (
        lambda s: s.save("videos/clip1.npy", s.videos["clip1"][:0]),
        r"videos/clip1\.npy: the video has no frames",
    ),
    "no start": (
        edit("frame_rate", None),
        r"trials\.csv: unknown column 'start'",
    ),
}


def refused(tmp_path, message):
    to = tmp_path / "to"
    with pytest.raises(DataError) as caught:
        prepare(str(tmp_path / "source"), str(to))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path for path in to.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("case", BAD)
def test_bad_input(make, tmp_path, case):
    damage, message = BAD[case]
    session = make()
    damage(session)
    session.write()
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], r"frames/t2\.npy: unequal lengths: 39 times, 40 frames"),
        (lambda t: put(t, 5, np.nan), r"frames/t2\.npy: time of frame 5 is not finite"),
        (lambda t: t[::-1], r"frames/t2\.npy: times do not increase at frame 1"),
        (lambda t: put(t, slice(20, None), t[20:] + 1), r"trial t2: frame 19 lasts .* leave"),
    ],
)
def test_bad_frame_times(make, tmp_path, change, message):
    session = make(even=False)
    session.save("frames/t2.npy", change(session.frames["t2"].copy()))
    refused(tmp_path, message)


def test_no_json(make, tmp_path):
    session = make()
    (session.folder / "session.json").write_text("{")
    refused(tmp_path, r"session\.json: not JSON")
