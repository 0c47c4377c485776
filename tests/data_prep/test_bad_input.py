"""Each kind of bad input gives one line that names the culprit, and leaves nothing behind."""

import re
import shutil

import numpy as np
import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError, DataError

NEURONS = 5


def truncate(path, size=None):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 7 if size is None else size])


def put(values, index, value):
    values = values.copy()
    values[index] = value
    return values


def save_objects(path):
    with open(path, "wb") as stream:
        np.save(stream, np.array(["train"] * 12, dtype=object), allow_pickle=True)


SENSORIUM = {
    "truncated array": (
        lambda r: truncate(r.folder / "data/videos/2.npy"),
        r"data/videos/2\.npy: truncated: \d+ bytes of \d+",
    ),
    "truncated header": (
        lambda r: truncate(r.folder / "data/responses/4.npy", 30),
        r"data/responses/4\.npy: truncated",
    ),
    "empty file": (
        lambda r: truncate(r.folder / "data/behavior/7.npy", 0),
        r"data/behavior/7\.npy: truncated",
    ),
    "not an array": (
        lambda r: (r.folder / "data/behavior/7.npy").write_bytes(b"P" * 400),
        r"data/behavior/7\.npy: not a \.npy file",
    ),
    "bytes after the end": (
        lambda r: (r.folder / "data/videos/2.npy").open("ab").write(b"xx"),
        r"data/videos/2\.npy: has 2 bytes after the array's end",
    ),
    "missing column": (
        lambda r: shutil.rmtree(r.folder / "data/behavior"),
        r"dynamic29156-11-10-Video-8744: no column data/behavior",
    ),
    "missing file": (
        lambda r: (r.folder / "data/pupil_center/9.npy").unlink(),
        r"data/pupil_center/9\.npy: file is missing",
    ),
    "missing tiers": (
        lambda r: (r.folder / "meta/trials/tiers.npy").unlink(),
        r"meta/trials/tiers\.npy: file is missing",
    ),
    "missing unit ids": (
        lambda r: (r.folder / "meta/neurons/unit_ids.npy").unlink(),
        r"meta/neurons/unit_ids\.npy: file is missing",
    ),
    "pickled tiers": (
        lambda r: save_objects(r.folder / "meta/trials/tiers.npy"),
        r"tiers\.npy: holds Python objects.*convert it",
    ),
    "unknown tier": (
        lambda r: r.rewrite("meta/trials/tiers.npy", lambda v: put(v, 1, "holdout")),
        r"tiers\.npy: unknown tier 'holdout'",
    ),
    "NaN in responses": (
        lambda r: r.rewrite("data/responses/2.npy", lambda v: put(v, (3, 6), np.nan)),
        r"responses/2\.npy: NaN inside the trial, first at frame 6, neuron 3",
    ),
    "NaN neuron": (
        lambda r: r.rewrite("data/responses/2.npy", lambda v: put(v, 1, np.nan)),
        r"responses/2\.npy: NaN inside the trial, first at frame 0, neuron 1",
    ),
    "NaN in stimulus": (
        lambda r: r.rewrite("data/videos/2.npy", lambda v: put(v, (0, 0, 4), np.nan)),
        r"videos/2\.npy: NaN inside the trial, first at frame 4",
    ),
    "infinite treadmill": (
        lambda r: r.rewrite("data/behavior/2.npy", lambda v: put(v, (1, 4), np.inf)),
        r"behavior/2\.npy: infinite value at frame 4",
    ),
    "short responses": (
        lambda r: r.rewrite("data/responses/0.npy", lambda v: v[:, :9]),
        r"responses/0\.npy: unequal lengths: 9 frames here, 10 in the video",
    ),
    "long behaviour": (
        lambda r: r.rewrite("data/behavior/0.npy", lambda v: np.nan_to_num(v)[:, :13]),
        r"behavior/0\.npy: unequal lengths: 13 frames here, 10 in the video",
    ),
    "short pupil": (
        lambda r: r.rewrite("data/pupil_center/0.npy", lambda v: v[:, :5]),
        r"pupil_center/0\.npy: unequal lengths: 5 frames here, 10 in the video",
    ),
    "other grey levels": (
        lambda r: r.rewrite("data/videos/2.npy", lambda v: v - 128),
        r"videos/2\.npy: grey levels from -\d+ to \d+, not within 0 to 255",
    ),
    "video of another size": (
        lambda r: r.rewrite("data/videos/9.npy", lambda v: v.transpose(1, 0, 2)),
        r"videos/9\.npy: frames of 8 x 6 pixels, .* have 6 x 8; are the axes in order\?",
    ),
    "lost axis": (
        lambda r: r.rewrite("data/videos/9.npy", lambda v: v[0]),
        r"videos/9\.npy: has shape \[8, 15\], not 3 axes",
    ),
    "text as responses": (
        lambda r: r.rewrite("data/responses/9.npy", lambda v: v.astype(str)),
        r"responses/9\.npy: values are .*, not numbers",
    ),
    "lost neuron": (
        lambda r: r.rewrite("data/responses/4.npy", lambda v: v[1:]),
        r"responses/4\.npy: 4 neurons, the session has 5",
    ),
    "lost behaviour channel": (
        lambda r: r.rewrite("data/behavior/4.npy", lambda v: v[[0, 1, 1]]),
        r"behavior/4\.npy: 3 behaviour channels, the session has 2",
    ),
    "repeated unit id": (
        lambda r: r.rewrite("meta/neurons/unit_ids.npy", lambda v: put(v, 1, v[0])),
        r"unit id 3 occurs more than once",
    ),
    "short neuron table": (
        lambda r: r.rewrite("meta/neurons/area.npy", lambda v: v[:4]),
        r"area\.npy: has shape \[4\], not one row for 5 neurons",
    ),
    "silent neuron": (
        lambda r: [
            r.rewrite(f"data/responses/{n}.npy", lambda v: v * np.eye(5)[:, [2]])
            for n in (0, 2, 4, 7, 9, 11)
        ],
        r"neuron 0 has no response in training \(4 such of 5; .*silent_neurons=keep",
    ),
    "no training trials": (
        lambda r: r.rewrite("meta/trials/tiers.npy", lambda v: np.full(12, "oracle")),
        r"8744: no training trials",
    ),
    "no usable pupil": (
        lambda r: [
            r.rewrite(f"data/pupil_center/{n}.npy", lambda v: v * np.nan) for n in range(12)
        ],
        r"every training trial is excluded: pupil position missing",
    ),
    "no trials": (
        lambda r: [path.unlink() for path in (r.folder / "data").rglob("*.npy")],
        r"8744: no trials in data/behavior",
    ),
}

TWIN = {
    "missing column": (
        lambda r: shutil.rmtree(r.folder / "modulations"),
        r"8-5: no column modulations",
    ),
    "missing file": (
        lambda r: (r.folder / "samples/3.npy").unlink(),
        r"samples/3\.npy: file is missing",
    ),
    "missing evaluation column": (
        lambda r: shutil.rmtree(r.folder / "evaluation/units"),
        r"8-5: no column evaluation/units",
    ),
    "missing evaluation repeat": (
        lambda r: (r.folder / "evaluation/units/random_dots-1/2.npy").unlink(),
        r"evaluation/units/random_dots-1/2\.npy: file is missing",
    ),
    "wrong count of samples": (
        lambda r: r.rewrite("samples/3.npy", lambda v: v + 1),
        r"stimuli/3\.npy: unequal lengths: 9 frames here, 10 in .*samples/3\.npy",
    ),
    "short units": (
        lambda r: r.rewrite("units/3.npy", lambda v: v[:-1]),
        r"units/3\.npy: unequal lengths: 8 samples here, 9 frames in the video",
    ),
    "NaN in units": (
        lambda r: r.rewrite("units/3.npy", lambda v: put(v, (2, 4), np.nan)),
        r"units/3\.npy: NaN inside the trial, first at frame 2, neuron 4",
    ),
    "float stimulus": (
        lambda r: r.rewrite("stimuli/3.npy", lambda v: v.astype(float)),
        r"stimuli/3\.npy: float64 .*not uint8 \[time, height, width, 1\]",
    ),
    "number as training": (
        lambda r: r.rewrite("training/3.npy", lambda v: v.astype(int)),
        r"training/3\.npy: not one bool",
    ),
    "repeat of another video": (
        lambda r: r.rewrite("evaluation/stimuli/random_dots-1/2.npy", lambda v: 255 - v),
        r"random_dots-1/2\.npy: shows another stimulus than the first repeat",
    ),
    "unsafe video name": (
        lambda r: [
            (r.folder / f"evaluation/{kind}/random_dots-1").rename(
                r.folder / f"evaluation/{kind}/random dots-1"
            )
            for kind in ("stimuli", "units", "perspectives", "modulations")
        ],
        r"video 'random dots-1': names are letters",
    ),
}


def refused(source, to, message):
    with pytest.raises(DataError) as caught:
        prepare(str(source), str(to))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not to.exists() or [path for path in to.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("case", SENSORIUM)
def test_sensorium(sensorium, tmp_path, case):
    recording = sensorium()
    damage, message = SENSORIUM[case]
    damage(recording)
    refused(recording.folder.parent, tmp_path / "to", message)


@pytest.mark.parametrize("case", TWIN)
def test_digital_twin(twin, tmp_path, case):
    recording = twin()
    damage, message = TWIN[case]
    damage(recording)
    refused(recording.folder.parent, tmp_path / "to", message)


def test_sources_that_are_none(twin, tmp_path):
    to = tmp_path / "to"
    refused(tmp_path / "nowhere", to, r"nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", to, r"empty: no session folders in it")
    (tmp_path / "other" / "papers").mkdir(parents=True)
    refused(tmp_path / "other", to, r"other/papers: no session of a known layout")
    recording = twin()
    with pytest.raises(DataError, match=r"no session '9-9'; it has 8-5"):
        prepare(str(recording.folder.parent), str(to), PrepSettings(sessions=["9-9"]))
    recording.folder.rename(recording.folder.with_name("my session"))
    refused(recording.folder.parent, to, r"session 'my session': names are letters")


def test_settings_that_do_not_fit(twin, tmp_path):
    recording = twin()
    with pytest.raises(ConfigError, match=r"cannot enlarge 6 x 8 pixels to 60 x 80; change"):
        prepare(str(recording.folder), str(tmp_path / "to"), PrepSettings(height=60, width=80))
    with pytest.raises(ValueError, match="height and width go together"):
        PrepSettings(height=60)
    with pytest.raises(ValueError, match="trials_per_chard"):
        PrepSettings(trials_per_chard=60)
    settings = PrepSettings(layout="sensorium2023")
    with pytest.raises(DataError, match=r"8-5: no column data/videos"):
        prepare(str(recording.folder), str(tmp_path / "to"), settings)


def test_bad_input_leaves_an_older_version_in_place(twin, tmp_path):
    """The session is read whole before the older one is taken away."""
    from fmcortex.data.describe import verify

    recording, to = twin(), tmp_path / "to"
    prepare(str(recording.folder), str(to))
    truncate(recording.folder / "units/4.npy")
    with pytest.raises(DataError, match=r"units/4\.npy: truncated"):
        prepare(str(recording.folder), str(to))
    assert verify(str(to)) == []


def test_behaviour_that_goes_on_after_the_video(sensorium, tmp_path):
    """As in the benchmark: of mouse 29156 all behaviour has 324 samples, most videos 300 frames.

    By the tables of trials of anaflom/sensorium (CC0), and so of two other mice.
    """
    recording = sensorium()
    prepare(str(recording.folder), str(tmp_path / "padded"))
    for path in (recording.folder / "data/behavior").glob("*.npy"):
        values = np.load(path)
        np.save(path, np.where(np.isnan(values), 7.5, values))
    prepare(str(recording.folder), str(tmp_path / "full"))
    padded, full = (
        open_dataset(str(tmp_path / name)).session(recording.folder.name)
        for name in ("padded", "full")
    )
    for number in range(6):
        np.testing.assert_array_equal(
            full.trial(number).modulations, padded.trial(number).modulations
        )
