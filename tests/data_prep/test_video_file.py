"""Video files decoded to arrays: every frame once, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from click.testing import CliRunner

from data_prep.resampling import reduce_area
from data_prep.simulator.movies import natural_movie
from data_prep.simulator.video_files import load_video
from data_prep.video_file import decode_video, grey_frames, video_info
from fmcortex.cli import cli
from fmcortex.errors import ConfigError, DataError, StorageError


@pytest.fixture(scope="module")
def movie() -> np.ndarray:
    return natural_movie(40, 48, 64, 25.0, np.random.default_rng(5))


@pytest.fixture(scope="module")
def file(movie: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The movie as a video file, without loss."""
    path = tmp_path_factory.mktemp("video") / "a movie.avi"
    written = {"codec": "ffv1", "plugin": "FFMPEG", "pixelformat": "gray"}
    imageio.imwrite(path, movie, fps=25, macro_block_size=1, **written)
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_frame_as_it_was(file: Path, movie: np.ndarray, tmp_path: Path) -> None:
    seen: list[int] = []
    assert decode_video(str(file), str(tmp_path / "x.npy"), None, seen.append) == movie.shape
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), movie)
    assert np.load(tmp_path / "x.npy", mmap_mode="r").dtype == np.uint8
    assert seen == list(range(1, 41))
    assert (video_info(str(file)).frame_rate, video_info(str(file)).seconds) == (25, 1.6)
    assert left(tmp_path) == ["x.npy"]


def test_smaller(file: Path, movie: np.ndarray, tmp_path: Path) -> None:
    assert decode_video(str(file), str(tmp_path / "x.npy"), (18, 32)) == (40, 18, 32)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), reduce_area(movie, 18, 32))


def test_frames_that_come_unevenly_are_neither_repeated_nor_dropped(
    file: Path, movie: np.ndarray, tmp_path: Path
) -> None:
    uneven = tmp_path / "uneven.mkv"
    times = "setpts='if(lt(N,10),N,N*3+2*mod(N,3))/25/TB'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(file)]
    command += ["-vf", times, "-fps_mode", "passthrough", "-c:v", "ffv1", str(uneven)]
    subprocess.run(command, check=True)
    decode_video(str(uneven), str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), movie)
    # The simulator shows them when they are due: the last one at 39 * 3 / 25 s.
    shown = load_video(str(uneven), 48, 64, 25.0)
    assert abs(len(shown) - 118) <= 4
    for time, number in ((5, 5), (60, 20), (90, 30)):
        around = movie[number - 1 : number + 2]
        assert any((shown[time] == frame).all() for frame in around)


def test_a_turned_picture(file: Path, movie: np.ndarray, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90"]
    command += ["-i", str(file), "-c", "copy", "-f", "mov", str(turned)]
    subprocess.run(command, check=True)
    assert decode_video(str(turned), str(tmp_path / "x.npy")) == (40, 64, 48)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.rot90(movie, 1, (1, 2)))


def test_colours_become_luma(tmp_path: Path) -> None:
    colours = np.zeros((3, 16, 16, 3), np.uint8)
    for number in range(3):
        colours[number, ..., number] = 200
    path = tmp_path / "rgb.mkv"
    imageio.imwrite(path, colours, fps=10, codec="png", plugin="FFMPEG", pixelformat="rgb24")
    found = [frame.mean() for frame in grey_frames(str(path))]
    np.testing.assert_allclose(found, [200 * 0.299, 200 * 0.587, 200 * 0.114], atol=0.01)


def test_the_simulator_cuts_from_video_files(file: Path, movie: np.ndarray) -> None:
    video = load_video(str(file), 48, 64, 50.0)  # at twice its rate: each frame twice
    assert len(video) == 80
    assert {tuple(np.flatnonzero((movie == frame).all(axis=(1, 2)))) for frame in video} == {
        (number,) for number in range(40)
    }


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.avi").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.avi: cannot be read as a video: ") as caught:
        decode_video(str(tmp_path / "x.avi"), str(tmp_path / "x.npy"))
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["x.avi"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_one_is_not_taken_for_a_shorter_one(
    file: Path, tmp_path: Path, damage: str
) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        del content[middle:]
    else:
        content[middle : middle + 200] = bytes(200)
    (tmp_path / "x.avi").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.avi: is damaged after frame \d+: ") as caught:
        decode_video(str(tmp_path / "x.avi"), str(tmp_path / "x.npy"))
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["x.avi"]


def test_what_cannot_be(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no\.avi: no such video file"):
        decode_video(str(tmp_path / "no.avi"), str(tmp_path / "x.npy"))
    with pytest.raises(DataError, match=r"x\.avi: must end in \.npy"):
        decode_video(str(file), str(tmp_path / "x.avi"))
    with pytest.raises(StorageError, match=r"no/x\.npy: cannot write: No such file or directory"):
        decode_video(str(file), str(tmp_path / "no" / "x.npy"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[video\]'"):
        decode_video(str(file), str(tmp_path / "x.npy"))
    assert left(tmp_path) == []


def test_an_interrupted_one_leaves_what_was_there(file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"before")

    def stop(done: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_video(str(file), str(tmp_path / "x.npy"), None, stop, True)
    assert left(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == b"before"


def test_the_command(file: Path, tmp_path: Path) -> None:
    to = str(tmp_path / "x.npy")
    run = CliRunner().invoke(cli, ["decode", str(file), "--to", to, "--height", "18"])
    assert run.exit_code == 2
    assert "--height and --width go together" in run.output
    run = CliRunner().invoke(
        cli, ["decode", str(file), "--to", to, "--height", "18", "--width", "32"]
    )
    assert run.exit_code == 0, run.output
    assert run.output.splitlines()[-1] == f"{to}: 40 frames of 18 x 32 pixels"
    assert np.load(to).shape == (40, 18, 32)


def test_an_array_that_is_there_stays(tmp_path: Path) -> None:
    there = tmp_path / "clip.npy"
    there.write_bytes(b"a recording")
    link = tmp_path / "stimulus.npy"
    link.symlink_to(there)
    for video, message in ((tmp_path / "x.avi", "is there already"), (link, "is the video itself")):
        video.touch()
        with pytest.raises(ConfigError, match=message):
            decode_video(str(video), str(there), overwrite=video == link)
    assert there.read_bytes() == b"a recording"
