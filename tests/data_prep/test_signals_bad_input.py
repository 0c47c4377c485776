"""Each kind of bad input in the signals layout gives one line that names the culprit."""

import re

import numpy as np
import pytest
from signals_session import NAME, NEURONS, Session

from data_prep.job import prepare
from fmcortex.errors import DataError


@pytest.fixture
def make(tmp_path):
    return lambda **options: Session(tmp_path / "source" / NAME, **options)


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
    "no responses": (
        lambda s: s.json["signals"].pop("responses"),
        r"signals: `responses` is missing, or `fluorescence` instead",
    ),
    "fluorescence on another clock": (
        edit("signals.fluorescence", {"offset_seconds": 0.3}),
        r"signals\.fluorescence\.offset_seconds: is not that of the responses",
    ),
    "channels of fluorescence": (
        edit("signals.fluorescence", {"channels": ["a"]}),
        r"signals\.fluorescence: has no channels",
    ),
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
    "infinite time": (
        lambda s: signal(s, "treadmill", lambda v, t: (v, put(t, -1, np.inf))),
        r"treadmill\.npz: time of sample \d+ is inf",
    ),
    "mostly no times": (
        lambda s: signal(s, "treadmill", lambda v, t: (v, put(t, slice(9, None), np.nan))),
        r"treadmill\.npz: \d+ of \d+ samples have no time \(NaN\); only a few may be left out",
    ),
    "times that run backwards after some that lack": (
        lambda s: signal(s, "pupil", lambda v, t: (v, put(put(t, 30, t[28]), slice(0, 4), np.nan))),
        r"pupil\.npz: times do not increase at sample 30: ",
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
    "lost chunk": (lost_chunk, r"pupil\.zarr/values/c/1/0: is missing .* and would read as 0\.0"),
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
    "reserved column": (
        lambda s: s.table.update(imaging_delay=np.zeros(NEURONS)),
        r"mouse07-2-1: the neuron table's column imaging_delay is reserved",
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
