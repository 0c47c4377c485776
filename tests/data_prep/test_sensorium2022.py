"""Static images as clips: prepared and read back against a reference, and bad input."""

import re
import shutil

import numpy as np
import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import DataError

NAME = "static21067-10-18-GrayImageNet"
NEURONS = 5
TIERS = ["train", "test", "train", "validation", "none", "test", "train", "validation"]
IMAGES = [40, 7, 41, 42, 43, 7, 44, 45]
TRAINING = [0, 2, 6]


class Session:
    def __init__(self, folder):
        self.folder = folder
        generator = np.random.default_rng(2)
        shown = {number: generator.integers(0, 256, (1, 6, 8)) for number in IMAGES}
        self.trials = [
            {
                "images": shown[number].astype(np.float32),
                "responses": generator.gamma(2.0, 1.5, NEURONS),
                "behavior": generator.normal(20, 5, 3),
                "pupil_center": generator.normal(40, 3, 2),
            }
            for number in IMAGES
        ]
        for number, trial in enumerate(self.trials):
            for column, values in trial.items():
                self.save(f"data/{column}/{number}", values)
        self.save("meta/trials/tiers", np.array(TIERS))
        self.save("meta/trials/frame_image_id", np.array(IMAGES))
        self.save("meta/neurons/unit_ids", np.arange(NEURONS) + 10)
        self.save("meta/neurons/cell_motor_coordinates", generator.normal(0, 100, (NEURONS, 3)))

    def save(self, path, values):
        file = self.folder / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, values)


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path / "source" / NAME)


@pytest.mark.parametrize("named", [True, False])
def test_round_trip(session, tmp_path, named):
    if not named:
        (session.folder / "meta/trials/frame_image_id.npy").unlink()
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to, PrepSettings(image_frames=9))
    found = open_dataset(to).session(NAME)
    manifest = found.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("21067", "sensorium2022", 5)
    assert [trial.key for trial in manifest.trials] == ["0", "2", "6"]
    names = {"responses": "responses", "behavior": "modulations", "pupil_center": "perspectives"}
    expected = {}
    for column, name in names.items():
        values = np.stack([trial[column] for trial in session.trials])
        training = values[TRAINING]
        centre, scale = (
            (0, training.mean(0))
            if name == "responses"
            else (
                training.mean(0),
                training.std(0),
            )
        )
        expected[name] = (values - centre) / scale
    for number, index in enumerate(TRAINING):
        trial = found.trial(number)
        image = session.trials[index]["images"]
        np.testing.assert_array_equal(trial.stimulus, np.repeat(image, 9, axis=0))
        for name, values in expected.items():
            np.testing.assert_allclose(
                getattr(trial, name), np.tile(values[index], (9, 1)), rtol=1e-5, atol=1e-6
            )
    [test] = found.videos("test", "natural_image")
    assert test.name == "image-7" if named else test.name.startswith("sha256-")
    repeats = found.video(test.name).responses
    np.testing.assert_allclose(repeats[:, 4], expected["responses"][[1, 5]], rtol=1e-5)
    assert len(found.videos("validation")) == 2
    assert verify(to) == []


def test_withheld_responses_are_excluded(session, tmp_path):
    session.save("data/responses/1", np.zeros(NEURONS))
    (session.folder / "data/responses/5.npy").unlink()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    excluded = open_dataset(str(tmp_path / "to")).session(NAME).manifest.excluded
    reason = "responses are withheld"
    assert [(item.trial, item.reason) for item in excluded] == [("1", reason), ("5", reason)]


def nan_neuron(session):
    session.save("data/responses/2", np.array([1, 2, np.nan, 4, 5]))


BAD = {
    "missing column": (
        lambda s: shutil.rmtree(s.folder / "data/behavior"),
        r"GrayImageNet: no column data/behavior",
    ),
    "missing file": (
        lambda s: (s.folder / "data/behavior/6.npy").unlink(),
        r"behavior/6\.npy: file is missing",
    ),
    "missing tiers": (
        lambda s: (s.folder / "meta/trials/tiers.npy").unlink(),
        r"tiers\.npy: file is missing",
    ),
    "unknown tier": (
        lambda s: s.save("meta/trials/tiers", np.array(["holdout"] * 8)),
        r"tiers\.npy: unknown tier 'holdout'",
    ),
    "tiers that are numbers": (
        lambda s: s.save("meta/trials/tiers", np.arange(8)),
        r"tiers\.npy: int64 \[8\], not one text a trial",
    ),
    "fewer image ids": (
        lambda s: s.save("meta/trials/frame_image_id", np.arange(7)),
        r"frame_image_id\.npy: has shape \[7\], not one entry a trial",
    ),
    "other image in a repeat": (
        lambda s: s.save("data/images/5", np.zeros((1, 6, 8))),
        r"images/5\.npy: shows another stimulus than the first repeat of video image-7",
    ),
    "lost neuron": (
        lambda s: s.save("data/responses/2", np.ones(4)),
        r"responses/2\.npy: 4 values, not 5",
    ),
    "lost behaviour": (
        lambda s: s.save("data/behavior/2", np.ones(2)),
        r"behavior/2\.npy: 2 values, not 3",
    ),
    "NaN neuron": (
        nan_neuron,
        r"responses/2\.npy: NaN inside the trial, first at frame 0, neuron 2",
    ),
    "NaN in an image": (
        lambda s: s.save("data/images/2", np.full((1, 6, 8), np.nan)),
        r"images/2\.npy: NaN in the image",
    ),
    "other grey levels": (
        lambda s: s.save("data/images/2", np.full((1, 6, 8), -3.0)),
        r"images/2\.npy: grey levels from -3 to -3, not within 0 to 255",
    ),
    "image in colour": (
        lambda s: s.save("data/images/2", np.zeros((3, 6, 8))),
        r"images/2\.npy: has shape \[3, 6, 8\], not \[1, height, width\]",
    ),
    "image of another size": (
        lambda s: s.save("data/images/2", np.zeros((1, 8, 6))),
        r"images/2\.npy: frames of 8 x 6 pixels",
    ),
    "response over time": (
        lambda s: s.save("data/responses/2", np.ones((5, 3))),
        r"responses/2\.npy: has shape \[5, 3\], not 1 axes",
    ),
    "repeated unit id": (
        lambda s: s.save("meta/neurons/unit_ids", np.array([1, 2, 2, 3, 4])),
        r"unit id 2 occurs more than once",
    ),
    "truncated image": (
        lambda s: (s.folder / "data/images/2.npy").write_bytes(
            (s.folder / "data/images/2.npy").read_bytes()[:-9]
        ),
        r"images/2\.npy: truncated",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(session, tmp_path, case):
    damage, message = BAD[case]
    damage(session)
    to = tmp_path / "to"
    with pytest.raises(DataError) as caught:
        prepare(str(tmp_path / "source"), str(to))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path for path in to.rglob("*") if path.is_file()] == []
