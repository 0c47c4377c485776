"""A dataset in use: damaged parts made again, sessions and unused movies taken out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from data_prep.upkeep import movies_going, remove_movies, remove_sessions
from fmcortex import storage
from fmcortex.cli import cli
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import ConfigError, DataError, Locked
from fmcortex.lock import Lock

SETTINGS = PrepSettings(trials_per_shard=2, response_dtype="float16")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["data", *words])


@pytest.fixture
def dataset(twin, tmp_path: Path) -> Path:
    """Two sessions, of which the second shows movies of the first as well."""
    first = twin("8-5", seed=1).folder
    second = twin("8-6", seed=2).folder
    for number in (0, 1):
        shutil.copy(first / "stimuli" / f"{number}.npy", second / "stimuli" / f"{number}.npy")
    to = tmp_path / "to"
    prepare(str(tmp_path / "source"), str(to), SETTINGS)
    return to


def damages(to: Path) -> Iterator[Path]:
    session = to / "sessions" / "8-6"
    yield session / "train-00000.tar"
    yield session / "train-00000.index.json"
    yield session / "survey.json"
    yield session / "manifest.json"
    yield session / "neurons.zarr" / "unit_id" / "c" / "0"
    movie = next(iter(open_dataset(str(to)).session("8-5").manifest.trials)).movie
    yield to / "movies" / movie / "c" / "0" / "0" / "0"
    yield to / "movies" / movie / "index.json"


def test_repair(dataset: Path, tmp_path: Path) -> None:
    """What verify finds is made again, with the settings of before, to the same bytes."""
    before, source = tree(dataset), str(tmp_path / "source")
    sources = tree(tmp_path / "source")
    for path in list(damages(dataset)):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    broken = tree(dataset)
    out = run("verify", str(dataset))
    assert f"`fmcortex data repair {dataset} RECORDINGS`" in str(out.exception)
    for words in (["--dry-run"], []):
        out = run("repair", str(dataset), source, *words)
        assert out.exit_code == (0 if words else 2)
        assert "8-6: " in out.output
        assert "manifest.json: missing or damaged" in out.output
        assert tree(dataset) == broken
    assert "give --yes" in out.output
    out = run("repair", str(dataset), source, "--yes")
    assert out.exit_code == 0, out.exception
    assert f"{dataset}: whole" in out.output
    assert tree(dataset) == before
    assert tree(tmp_path / "source") == sources
    assert "all sessions are whole" in run("repair", str(dataset), source).output


def test_repair_of_one_kind_at_a_time(dataset: Path, tmp_path: Path) -> None:
    before = tree(dataset)
    for path in list(damages(dataset))[:3]:
        path.unlink()
        assert run("repair", str(dataset), str(tmp_path / "source"), "--yes").exit_code == 0
        assert tree(dataset) == before, path


def test_repair_does_not_take_another_recording(dataset: Path, twin, tmp_path: Path) -> None:
    (dataset / "sessions" / "8-6" / "manifest.json").write_bytes(b"")
    broken = tree(dataset)
    (tmp_path / "source").rename(tmp_path / "lab-a")
    folder = twin("8-6", seed=7).folder
    (tmp_path / "lab-b").mkdir()
    folder.rename(tmp_path / "lab-b" / "8-6")
    out = run("repair", str(dataset), str(tmp_path / "lab-b"), "--yes")
    assert isinstance(out.exception, ConfigError)
    assert "another recording called 8-6" in str(out.exception)
    assert tree(dataset) == broken


def test_remove_and_gc(dataset: Path, tmp_path: Path) -> None:
    before, url = tree(dataset), str(dataset)
    notes = dataset / "sessions" / "8-6" / "notes.txt"
    notes.write_text("theirs")
    for words in (["--dry-run"], []):
        out = run("remove", url, "8-6", *words)
        assert out.exit_code == (0 if words else 2)
        assert "session 8-6: " in out.output
        assert set(tree(dataset)) == {*before, "sessions/8-6/notes.txt"}
    assert run("remove", url, "8-6", "--yes").exit_code == 0
    assert open_dataset(url).sessions == ["8-5"]
    assert verify(url) == []
    assert os.listdir(dataset / "sessions" / "8-6") == ["notes.txt"]
    notes.unlink()
    going = movies_going(url)
    assert 0 < len(going) < len(os.listdir(dataset / "movies"))
    out = run("gc", url, "--dry-run")
    assert all(f"movie {movie.name}: 3 files" in out.output for movie in going)
    assert len(os.listdir(dataset / "movies")) > len(going)
    (dataset / "movies" / going[0].name / "theirs").write_text("x")
    assert run("gc", url, "--yes").exit_code == 0
    assert movies_going(url) == []
    assert os.listdir(dataset / "movies" / going[0].name) == ["theirs"]
    assert verify(url) == []
    # It is as if the session had never been there.
    (dataset / "movies" / going[0].name / "theirs").unlink()
    (dataset / "movies" / going[0].name).rmdir()
    prepare(str(tmp_path / "source" / "8-5"), str(tmp_path / "alone"), SETTINGS)
    assert tree(dataset) == tree(tmp_path / "alone")
    prepare(str(tmp_path / "source"), url, SETTINGS)
    assert tree(dataset) == before


def test_remove_that_was_interrupted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, left, real = str(dataset), [0], storage.remove

    class Killed(Exception):
        pass

    def dying(place: str) -> None:
        if "8-6" in place and left[0] == 0:
            raise Killed
        left[0] -= "8-6" in place
        real(place)

    for removals in (0, 1, 5):
        monkeypatch.setattr(storage, "remove", dying)
        left[0] = removals
        with pytest.raises(Killed):
            remove_sessions(url, ["8-6"])
        monkeypatch.undo()
        assert open_dataset(url).session("8-5").verify() == []
        remove_sessions(url, ["8-6"])
        assert not (dataset / "sessions" / "8-6").exists()
        assert open_dataset(url).sessions == ["8-5"]
        prepare(str(tmp_path / "source"), url, SETTINGS)
        assert verify(url) == []


def test_what_cannot_be_removed(dataset: Path) -> None:
    url, before = str(dataset), tree(dataset)
    for names, message in (
        (["nobody"], "no session 'nobody'; it has 8-5, 8-6"),
        (["../source"], "names are letters"),
        (["8-5", "8-6"], "these are all of its sessions"),
    ):
        out = run("remove", url, *names, "--yes")
        assert isinstance(out.exception, (DataError, ConfigError))
        assert message in str(out.exception)
    with Lock(url, "prep"):
        for change in (lambda: remove_sessions(url, ["8-6"]), lambda: remove_movies(url)):
            with pytest.raises(Locked):
                change()
    (dataset / "sessions" / "8-5" / "manifest.json").write_text("{}")
    for words in (("remove", url, "8-6", "--yes"), ("gc", url, "--yes")):
        out = run(*words)
        assert "8-5: its manifest is damaged" in str(out.exception)
    (dataset / "sessions" / "8-5" / "manifest.json").write_bytes(
        before["sessions/8-5/manifest.json"]
    )
    assert tree(dataset) == before


@pytest.mark.slow
def test_remove_and_gc_on_s3(twin, tmp_path: Path, s3: str) -> None:
    twin("8-5", seed=1), twin("8-6", seed=2)
    to = f"{s3}/mice [1]"
    prepare(str(tmp_path / "source"), to, SETTINGS)
    storage.write_bytes(f"{to}/sessions/8-6/notes.txt", b"theirs")
    remove_sessions(to, ["8-6"])
    assert storage.names(f"{to}/sessions/8-6") == ["notes.txt"]
    assert remove_movies(to) != []
    assert movies_going(to) == []
    assert verify(to) == []
