"""The simulator's files: layouts, tiers, repeats, determinism, and what failures leave behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep.job import prepare
from data_prep.simulator import session as session_module
from data_prep.simulator.session import Session
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.data.manifest import DOMAINS
from fmcortex.errors import ConfigError, DataError

SMALL = {
    "mice": 2,
    "neurons": 6,
    "minutes": 0.2,
    "trial_seconds": 2.0,
    "test_repeats": 3,
    "validation_repeats": 2,
    "short_trials": 0.5,
    "height": 18,
    "width": 32,
}


def small(**changes: object) -> SimulationSettings:
    return SimulationSettings(**{**SMALL, **changes})


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "settings.json"
    }


@pytest.fixture(scope="module")
def sensorium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sensorium")
    return simulate(small(), out)[0]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("twin")
    return simulate(small(layout="digital_twin"), out)[0]


def test_session_names_and_progress(tmp_path: Path) -> None:
    lines: list[str] = []
    paths = simulate(small(minutes=0.05, domains=()), tmp_path, lines.append)
    assert [path.name for path in paths] == ["mouse01-1-1", "mouse02-1-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mouse01-1-1", "mouse02-1-1"]
    assert len(lines) == 2
    assert "mouse02-1-1" in lines[1]


def test_sensorium_layout(sensorium: Path) -> None:
    tiers = np.load(sensorium / "meta/trials/tiers.npy")
    domains = np.load(sensorium / "meta/trials/stimulus_type.npy")
    names = np.load(sensorium / "meta/trials/video_ids.npy")
    assert tiers.dtype.kind == domains.dtype.kind == names.dtype.kind == "U"
    lengths = set()
    for trial in range(len(tiers)):
        video = np.load(sensorium / f"data/videos/{trial}.npy")
        responses = np.load(sensorium / f"data/responses/{trial}.npy")
        behaviour = np.load(sensorium / f"data/behavior/{trial}.npy")
        centre = np.load(sensorium / f"data/pupil_center/{trial}.npy")
        assert video.dtype == responses.dtype == behaviour.dtype == np.float32
        assert video.shape == (18, 32, 60)
        assert responses.shape == (6, 60)
        assert behaviour.shape == centre.shape == (2, 60)
        frames = int(np.isfinite(responses[0]).sum())
        lengths.add(frames)
        for array in (video, responses, behaviour, centre):
            assert np.isnan(array[..., frames:]).all()
        assert np.isfinite(video[..., :frames]).all()
        assert np.isfinite(responses[:, :frames]).all()
        assert (responses[:, :frames] >= 0).all()
        assert np.isfinite(behaviour[1, :frames]).all()
    assert max(lengths) == 60
    assert min(lengths) < 60, "some trials end early"


def test_sensorium_tiers_and_repeats(sensorium: Path) -> None:
    tiers = np.load(sensorium / "meta/trials/tiers.npy")
    domains = np.load(sensorium / "meta/trials/stimulus_type.npy")
    names = np.load(sensorium / "meta/trials/video_ids.npy")
    assert set(tiers) == {
        "train", "oracle", "live_test_main", "final_test_main", "live_test_bonus"
    }  # fmt: skip
    assert set(domains) == set(DOMAINS)
    videos: dict[str, np.ndarray] = {}
    for trial, name in enumerate(names):
        video = np.load(sensorium / f"data/videos/{trial}.npy")
        if name in videos:
            assert np.array_equal(video, videos[name], equal_nan=True)
        videos[name] = video
    for name in videos:
        (tier,) = set(tiers[names == name])
        repeats = int((names == name).sum())
        assert repeats == {"train": 1, "oracle": 2}.get(tier, 3)
    seconds = np.concatenate([videos[name] for name in set(names[tiers == "train"])], axis=-1)
    frames = {frame.tobytes() for frame in np.moveaxis(seconds, -1, 0) if np.isfinite(frame).all()}
    for name in set(names[tiers != "train"]):
        for frame in np.moveaxis(videos[name], -1, 0)[:30]:
            assert frame.tobytes() not in frames, f"{name} occurs in training"


def test_sensorium_neurons_and_statistics(sensorium: Path) -> None:
    meta = sensorium / "meta"
    ids = np.load(meta / "neurons/unit_ids.npy")
    assert ids.dtype.kind == "i"
    assert len(set(ids)) == 6
    assert np.load(meta / "neurons/cell_motor_coordinates.npy").shape == (6, 3)
    assert np.load(meta / "neurons/area.npy").dtype.kind == "U"
    tiers = np.load(meta / "trials/tiers.npy")
    train = np.flatnonzero(tiers == "train")
    for kind, shape in [("videos", ()), ("responses", (6,)), ("behavior", (2,))]:
        values = [np.load(sensorium / f"data/{kind}/{trial}.npy") for trial in train]
        joined = np.concatenate(values, axis=-1).astype(np.float64)
        axes = None if kind == "videos" else 1
        for name in ("mean", "std", "min", "max", "median"):
            written = np.load(meta / f"statistics/{kind}/all/{name}.npy")
            assert written.shape == shape
            expected = getattr(np, f"nan{name}")(joined, axis=axes)
            np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-4)
    assert np.load(meta / "statistics/pupil_center/all/std.npy").shape == (2,)


def test_digital_twin_layout(twin: Path) -> None:
    count = len(list((twin / "training").iterdir()))
    total, frames = np.zeros(6), 0
    for trial in range(count):
        training = np.load(twin / f"training/{trial}.npy")
        assert training.dtype == bool
        assert training.shape == ()
        samples = int(np.load(twin / f"samples/{trial}.npy"))
        stimulus = np.load(twin / f"stimuli/{trial}.npy")
        assert stimulus.dtype == np.uint8
        assert stimulus.shape == (samples, 18, 32, 1)
        assert np.load(twin / f"perspectives/{trial}.npy").shape == (samples, 2)
        assert np.load(twin / f"modulations/{trial}.npy").shape == (samples, 2)
        units = np.load(twin / f"units/{trial}.npy")
        assert units.dtype == np.float32
        assert units.shape == (samples, 6)
        total += units.sum(0)
        frames += samples
    mean = total / frames
    np.testing.assert_allclose(mean[mean > 0], 1, rtol=1e-4)
    kinds = sorted(path.name for path in (twin / "evaluation").iterdir())
    assert kinds == ["modulations", "perspectives", "stimuli", "units"]
    videos = sorted(path.name for path in (twin / "evaluation/units").iterdir())
    assert videos == sorted(
        [f"{domain}-0" for domain in DOMAINS]
        + ["natural_movie-1", "validation_natural_movie-0", "validation_natural_movie-1"]
    )
    for video in videos:
        repeats = 2 if video.startswith("validation_") else 3
        for kind in kinds:
            names = sorted(path.name for path in (twin / "evaluation" / kind / video).iterdir())
            assert names == [f"{repeat}.npy" for repeat in range(repeats)]
    assert np.load(twin / "neurons/coordinates.npy").shape == (6, 3)


def test_truth(sensorium: Path) -> None:
    truth = sensorium / "truth"
    neurons = np.load(truth / "neurons.npz", allow_pickle=False)
    assert np.array_equal(neurons["unit_id"], np.load(sensorium / "meta/neurons/unit_ids.npy"))
    assert neurons["monitor_pixel"].shape == (6, 2)
    settings = json.loads((truth / "settings.json").read_text())
    assert settings["neurons"] == 6
    assert settings["session"] == 0
    trials = json.loads((truth / "recording.json").read_text())["trials"]
    names = np.load(sensorium / "meta/trials/video_ids.npy")
    assert [trial["video"] for trial in trials] == names.tolist()
    events = json.loads((truth / "stimuli/drifting_gabor-0.json").read_text())["events"]
    assert {"direction", "spatial_frequency", "x", "y", "start", "stop"} <= set(events[0])
    rates = np.load(truth / "expected_rates/natural_movie-0.npy")
    assert rates.shape[1] == 6
    assert (rates > 0).all()
    eye = json.loads((truth / "eye.json").read_text())
    trial = int(np.flatnonzero(np.load(sensorium / "meta/trials/tiers.npy") != "train")[0])
    gaze = np.load(truth / f"gaze/{trial}.npy")
    pupil = np.load(sensorium / f"data/pupil_center/{trial}.npy")[:, : len(gaze)].T
    seen = (pupil - eye["centre"]) @ np.transpose(eye["gain"])
    assert np.abs(seen - gaze).mean() < 0.5


def test_a_session_does_not_depend_on_the_others(sensorium: Path, tmp_path: Path) -> None:
    (alone,) = simulate(small(mice=9), tmp_path, sessions=[0])
    assert digests(alone) == digests(sensorium)


def test_workers_write_the_same_and_mice_differ(sensorium: Path, tmp_path: Path) -> None:
    first, second = simulate(small(), tmp_path, workers=2)
    assert digests(first) == digests(sensorium)
    names = [np.load(path / "meta/trials/video_ids.npy") for path in (first, second)]
    trial = [int(np.flatnonzero(name == "natural_movie-0")[0]) for name in names]
    shown = [
        np.load(path / f"data/videos/{index}.npy")
        for path, index in zip((first, second), trial, strict=True)
    ]
    assert np.array_equal(*shown, equal_nan=True), "mice share the test movies"
    train = [{name for name in each if name.startswith("train")} for each in names]
    assert not train[0] & train[1]
    rates = [np.load(path / "truth/neurons.npz")["rate"] for path in (first, second)]
    assert not np.allclose(*rates)


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mouse02-1-1").mkdir()
    with pytest.raises(DataError, match="mouse02-1-1: exists already"):
        simulate(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mouse02-1-1"]


def test_a_failed_run_leaves_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    render = session_module.render

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 3:
            assert not (tmp_path / "mouse01-1-1").exists()
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(session_module, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        simulate(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_session(tmp_path: Path) -> None:
    script = (
        "from data_prep.simulator.settings import SimulationSettings as S\n"
        "from data_prep.simulator.simulate import simulate\n"
        f"simulate(S(minutes=60, neurons=5), {str(tmp_path)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".*/data/videos/3.npy")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".mouse01-1-1.")
    (path,) = simulate(small(minutes=0.05, domains=()), tmp_path, sessions=[0])
    assert (path / "meta/trials/tiers.npy").exists()


def test_refuses_remote_folders_and_negative_sessions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory://x"):
        simulate(small(), "memory://x")
    with pytest.raises(ConfigError, match="negative"):
        simulate(small(), tmp_path, sessions=[-1])
    with pytest.raises(ConfigError, match="no mouse 9 of"):
        simulate(small(), tmp_path, sessions=[0, 9])


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": ("natural_movie",)},
        {"domains": ("pink_noise", "pink_noise")},
        {"imaging_rate": (8.0, 6.0)},
        {"neuron": 3},
        {"mice": 0},
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        small(**changes)


def test_video_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = 10
    # The clip a frame was cut from can be told by its brightness.
    levels = np.repeat(np.arange(clips) * 20 + 20, 60)
    noise = rng.integers(-5, 6, (60 * clips, 36, 64))
    movie = (levels[:, None, None] + noise).astype(np.uint8)
    np.save(tmp_path / "a movie.npy", movie)
    settings = small(videos=(str(tmp_path / "a movie.npy"),), domains=(), minutes=0.5)
    (path, other) = simulate(settings, tmp_path / "out")
    shown = {}
    for session in (path, other):
        tiers = np.load(session / "meta/trials/tiers.npy")
        names = np.load(session / "meta/trials/video_ids.npy")
        for trial, (tier, name) in enumerate(zip(tiers, names, strict=True)):
            video = np.load(session / f"data/videos/{trial}.npy")
            level = int(np.rint(np.nanmean(video) / 20) * 20)
            shown.setdefault(tier == "train", set()).add(level)
            assert shown.get(name, level) == level
    assert len(shown[False]) == 4
    assert len(shown[True]) == 6
    assert not shown[True] & shown[False]


def test_video_files_that_do_not_work(tmp_path: Path) -> None:
    for name, array, message in [
        ("float.npy", np.zeros((90, 8, 8)), "must be uint8"),
        ("short.npy", np.zeros((30, 8, 8), np.uint8), "a trial is 2.0 s"),
        ("few.npy", np.zeros((240, 8, 8), np.uint8), "hold 4 clips"),
    ]:
        np.save(tmp_path / name, array)
        with pytest.raises(DataError, match=message):
            simulate(small(videos=(str(tmp_path / name),)), tmp_path / "out")
    with pytest.raises(DataError, match="no such video file"):
        simulate(small(videos=(str(tmp_path / "missing.mp4"),)), tmp_path / "out")


def test_video_files_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "movie.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install -e '\.\[video\]'"):
        simulate(small(videos=(str(tmp_path / "movie.mp4"),)), tmp_path / "out")


def test_signals_layout_gives_the_responses_of_the_frames(tmp_path: Path) -> None:
    """Read with its clocks and interpolated on the fly, it is what the other layouts hold."""
    settings = small(layout="signals", mice=1, blink_rate=0)
    [folder] = simulate(settings, tmp_path / "source")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    session = open_dataset(str(tmp_path / "to")).session(folder.name)
    assert session.imaging_delay is not None
    truth = Session(settings, 0)
    recorded = {f"trial-{number:04d}": trial for number, trial in enumerate(truth.record())}
    scale, statistics = session.response_scale(), session.manifest.statistics
    for number, entry in enumerate(session.manifest.trials):
        found, expected = session.trial(number), recorded[entry.key]
        np.testing.assert_array_equal(found.stimulus, expected.video)
        np.testing.assert_allclose(
            found.responses * scale, expected.responses, rtol=1e-4, atol=1e-4
        )
        speed = found.modulations[:, 1] * statistics.modulation_std[1]
        speed += statistics.modulation_mean[1]
        # The encoder samples at 60 Hz: twice a frame, at the frames and between.
        np.testing.assert_allclose(speed, expected.treadmill, rtol=1e-3, atol=1e-2)
    assert verify(str(tmp_path / "to")) == []
