"""Both layouts, prepared and read back, against a reference computed here from the raw arrays."""

import tarfile
import warnings

import numpy as np
import pytest
import webdataset
import zarr

from data_prep.job import prepare
from data_prep.readers.protocol import animal_of
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import describe, verify
from fmcortex.data.movies import movie_name
from fmcortex.data.shards import decode_sample


def reference(recording, training):
    """Normalise every trial by the training trials, all at once."""

    def joined(name):
        return np.concatenate([recording.trials[key][name] for key in training])

    scale = joined("responses").mean(0)
    result = {}
    for key, trial in recording.trials.items():
        result[key] = {
            "stimulus": trial["stimulus"],
            "responses": (trial["responses"] / scale).astype("f4"),
        }
        for name in ("perspectives", "modulations"):
            mean, std = joined(name).mean(0), joined(name).std(0)
            result[key][name] = ((trial[name] - mean) / std).astype("f4")
    return result


def compare(found, expected):
    np.testing.assert_array_equal(found.stimulus, expected["stimulus"])
    assert found.stimulus.dtype == np.uint8
    for name in ("responses", "perspectives", "modulations"):
        values = getattr(found, name)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


def stacked(expected, keys):
    result = {"stimulus": expected[keys[0]]["stimulus"]}
    for name in ("responses", "perspectives", "modulations"):
        result[name] = np.stack([expected[key][name] for key in keys])
    return result


@pytest.mark.parametrize("named", [False, True])
def test_sensorium(sensorium, tmp_path, named):
    recording = sensorium(modulations=3, video_ids=named, types=named)
    to = str(tmp_path / "to")
    prepare(str(recording.folder.parent), to, PrepSettings(trials_per_shard=4))
    dataset = open_dataset(to)
    assert dataset.sessions == [recording.folder.name]
    session = dataset.session(recording.folder.name)
    manifest = session.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("29156", "sensorium2023", 5)
    assert manifest.modulations == ["pupil_radius", "treadmill_speed", "pupil_radius_change"]
    training = [trial.key for trial in manifest.trials]
    assert training == ["0", "2", "4", "7", "9", "11"]
    assert [trial.shard for trial in manifest.trials] == [0, 0, 0, 0, 1, 1]
    expected = reference(recording, training)
    for number, key in enumerate(training):
        compare(session.trial(number), expected[key])
    [oracle] = session.videos("validation")
    compare(session.video(oracle.name), stacked(expected, ["1", "6"]))
    bonus_domain = "drifting_gabor" if named else "unknown"
    [bonus] = session.videos("test", bonus_domain)
    compare(session.video(bonus.name), stacked(expected, ["3", "8"]))
    [single] = session.videos("test", "natural_movie")
    compare(session.video(single.name), stacked(expected, ["10"]))
    assert len(session.videos("test")) == 2
    if named:
        assert (oracle.name, bonus.name, single.name) == ("900", "901", "10")
    neurons = session.neurons()
    assert neurons["unit_id"].tolist() == [3, 10, 17, 24, 31]
    assert neurons["area"].tolist() == ["V1", "V1", "LM", "AL", "RL"]
    assert set(neurons) == {"unit_id", "area", "x", "y", "z"}
    coordinates = np.load(recording.folder / "meta/neurons/cell_motor_coordinates.npy")
    np.testing.assert_array_equal(neurons["y"], coordinates[:, 1])
    assert verify(to) == []


@pytest.mark.parametrize(
    ("session", "animal"),
    [
        ("dynamic29156-11-10-Video-8744", "29156"),
        ("mouse01-2-1", "mouse01"),
        ("8-5", "8-5"),
        ("a_b", "a_b"),
    ],
)
def test_animal_of(session, animal):
    assert animal_of(session) == animal


def test_digital_twin(twin, tmp_path):
    recording = twin()
    to = str(tmp_path / "to")
    # The folder of one session is a source too.
    prepare(str(recording.folder), to)
    session = open_dataset(to).session("8-5")
    training = [trial.key for trial in session.manifest.trials]
    assert training == ["0", "1", "3", "4"]
    expected = reference(recording, training)
    for number, key in enumerate(training):
        compare(session.trial(number), expected[key])
    single = next(v for v in session.videos("validation") if v.repeats == 1)
    compare(session.video(single.name), stacked(expected, ["2"]))
    for name, tier, domain in (
        ("random_dots-1", "test", "random_dots"),
        ("validation_natural_movie-0", "validation", "natural_movie"),
    ):
        assert name in [video.name for video in session.videos(tier, domain)]
        found = session.video(name)
        compare(found, stacked(expected, [f"{name}/{repeat}" for repeat in range(3)]))
        assert np.isnan(found.responses[1, :, 4]).all()
    assert session.neurons()["unit_id"].tolist() == [100, 101, 102, 103, 104]
    assert verify(to) == []


@pytest.mark.parametrize("frame", [0, 5, 8])
@pytest.mark.parametrize("layout", ["sensorium2023", "digital_twin"])
def test_impulses_stay_on_their_frame(request, tmp_path, layout, frame):
    """One bright frame, and a jump of one neuron, of the pupil and of the treadmill at it."""
    twin = layout == "digital_twin"
    recording = request.getfixturevalue("twin" if twin else "sensorium")()
    columns = ("stimuli", "units", "perspectives", "modulations")
    if not twin:
        columns = ("data/videos", "data/responses", "data/pupil_center", "data/behavior")
    frames = len(recording.trials["0"]["stimulus"])

    def impulse(index):
        def change(values):
            # A view with time first; what is padding stays so.
            view = values if twin else np.moveaxis(values, -1, 0)
            view[:frames] = 1
            view[(frame, *index)] = 200
            return values

        return change

    for column, index in zip(columns, [(), (2,), (1,), (1,)], strict=True):
        recording.rewrite(f"{column}/0.npy", impulse(index))
    prepare(str(recording.folder), str(tmp_path / "to"))
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    assert session.manifest.trials[0].key == "0"

    other = 1 if frame == 0 else 0
    whole = session.trial(0)
    names = {"stimulus": None, "responses": 2, "perspectives": 1, "modulations": 1}
    for start in range(frames):
        for count in range(1, frames - start + 1):
            found = session.window(0, start, count) if count < frames else whole
            expected = [frame - start] if start <= frame < start + count else []
            for name, channel in names.items():
                same = getattr(found, name) == getattr(whole, name)[other]
                moved = ~same.reshape(count, -1)
                assert np.flatnonzero(moved.any(axis=1)).tolist() == expected, (name, start)
                if channel is not None:
                    assert not np.delete(moved, channel, axis=1).any(), name
    assert whole.stimulus[frame].min() == 200


def test_normalisation_and_size(sensorium, tmp_path):
    recording = sensorium()
    settings = PrepSettings(response_normalisation="std", height=3, width=4)
    prepare(str(recording.folder), str(tmp_path / "to"), settings)
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    trials = [session.trial(number) for number in range(6)]
    responses = np.concatenate([trial.responses for trial in trials])
    np.testing.assert_allclose(responses.std(0), 1, rtol=1e-5)
    raw = recording.trials["0"]["stimulus"].reshape(10, 3, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(trials[0].stimulus, raw, atol=0.5)
    raw = np.concatenate([recording.trials[t.key]["responses"] for t in session.manifest.trials])
    np.testing.assert_allclose(session.response_scale(), raw.std(0), rtol=1e-12)


def test_gaps_are_filled_or_the_trial_is_excluded_and_counted(sensorium, tmp_path):
    recording = sensorium()

    def blink(start, stop):
        def change(values):
            values[:, start:stop] = np.nan
            return values

        return change

    recording.rewrite("data/pupil_center/0.npy", blink(3, 5))
    recording.rewrite("data/pupil_center/2.npy", blink(8, 15))  # up to the end of the trial
    recording.rewrite("data/behavior/4.npy", blink(2, 9))
    recording.rewrite("data/behavior/6.npy", blink(0, 15))
    to = str(tmp_path / "to")
    prepare(str(recording.folder), to, PrepSettings(max_pupil_gap_frames=4))
    session = open_dataset(to).session(recording.folder.name)
    assert [trial.key for trial in session.manifest.trials] == ["0", "2", "7", "9", "11"]
    excluded = [(item.trial, item.tier, item.reason) for item in session.manifest.excluded]
    reason = "behaviour missing for more than 4 frames"
    assert excluded == [("4", "train", reason), ("6", "validation", reason)]
    filled = session.trial(0).perspectives
    np.testing.assert_allclose(filled[3], filled[2] * 2 / 3 + filled[5] / 3, rtol=1e-4)
    held = session.trial(1).perspectives
    np.testing.assert_array_equal(held[8:], np.repeat(held[7:8], len(held) - 8, axis=0))
    assert session.videos("validation")[0].repeats == 1
    assert describe(to)["session_details"][0]["excluded"] == {reason: 2}


def test_withheld_responses_are_excluded(sensorium, tmp_path):
    recording = sensorium()
    recording.rewrite("data/responses/3.npy", np.zeros_like)
    (recording.folder / "data/responses/10.npy").unlink()
    prepare(str(recording.folder), str(tmp_path / "to"))
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    assert [(e.trial, e.reason) for e in session.manifest.excluded] == [
        ("3", "responses are withheld"),
        ("10", "responses are withheld"),
    ]
    assert [video.repeats for video in session.videos("test")] == [1]


def test_twin_training_trial_with_missing_neuron_is_excluded(twin, tmp_path):
    recording = twin()

    def lose(values):
        values[:, 1] = np.nan
        return values

    recording.rewrite("units/0.npy", lose)
    prepare(str(recording.folder), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session("8-5").manifest
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("0", "neurons are missing")]


def test_silent_neuron_can_be_kept(sensorium, tmp_path):
    recording = sensorium()
    for number in range(12):
        recording.rewrite(f"data/responses/{number}.npy", lambda v: v * [[1], [1], [0], [1], [1]])
    settings = PrepSettings(silent_neurons="keep")
    prepare(str(recording.folder), str(tmp_path / "to"), settings)
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    assert not session.trial(0).responses[:, 2].any()
    assert session.response_scale()[2] == 1


def test_webdataset_reads_our_shards(sensorium, tmp_path):
    recording = sensorium()
    prepare(str(recording.folder), str(tmp_path / "to"), PrepSettings(trials_per_shard=3))
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    found = []
    for shard in session.manifest.shards:
        tar = f"{session.url}/{shard.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = list(webdataset.WebDataset(tar, shardshuffle=False))
        assert len(samples) == shard.trials
        found += [decode_sample(sample, session.imaging_delay, tar) for sample in samples]
        with tarfile.open(tar) as opened:
            assert {(m.mtime, m.uid, m.uname) for m in opened} == {(0, 0, "fmcortex")}
    keys = [header.key for header, _ in found]
    assert keys == ["0", "2", "4", "7", "9", "11", "1", "6", "3", "8", "10"]
    for number, (header, arrays) in enumerate(found[:6]):
        trial = session.trial(number)
        for name in ("responses", "perspectives", "modulations"):
            np.testing.assert_array_equal(getattr(arrays, name), getattr(trial, name))
        assert header.movie == movie_name(trial.stimulus)
        movie = zarr.open_array(f"{tmp_path}/to/movies/{header.movie}", mode="r")
        np.testing.assert_array_equal(movie[...], trial.stimulus)


def test_a_shard_closes_at_its_size(sensorium, tmp_path):
    recording = sensorium()
    prepare(str(recording.folder), str(tmp_path / "to"), PrepSettings(shard_bytes=900))
    session = open_dataset(str(tmp_path / "to")).session(recording.folder.name)
    shards = [(shard.name, shard.trials) for shard in session.manifest.shards]
    assert shards[:3] == [(f"train-0000{number}.tar", 2) for number in range(3)]
    assert shards[3:] == [
        ("validation-00000.tar", 2),
        ("test-00000.tar", 2),
        ("test-00001.tar", 1),
    ]
