"""What a preparation may touch: never a source, never what it did not write; and what it trusts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_prep import journal
from data_prep.fingerprint import fingerprint
from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import ConfigError, DataError
from fmcortex.overlap import overlap

SETTINGS = PrepSettings(trials_per_shard=2)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def other_digit(path: Path, key: str) -> None:
    """Another digit in the first number after a key of a JSON document."""
    text = path.read_text()
    at = next(i for i in range(text.index(f'"{key}"'), len(text)) if text[i] in "123456789")
    path.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])


def _as_is(top: Path) -> tuple[str, str]:
    return str(top / "source"), str(top)


def _at_sessions(top: Path) -> tuple[str, str]:
    (top / "source").rename(top / "sessions")
    return str(top / "sessions"), str(top)


def _linked_target(top: Path) -> tuple[str, str]:
    (top / "source").rename(top / "sessions")
    (top / "elsewhere").symlink_to(top)
    return str(top / "sessions"), str(top / "elsewhere")


def _linked_sessions(top: Path) -> tuple[str, str]:
    (top / "to").mkdir()
    (top / "to" / "sessions").symlink_to(top / "source")
    return str(top / "source"), str(top / "to")


def _session_is_a_link(top: Path) -> tuple[str, str]:
    (top / "to" / "sessions").mkdir(parents=True)
    (top / "source" / "8-5").rename(top / "to" / "sessions" / "8-5")
    (top / "source" / "8-5").symlink_to(top / "to" / "sessions" / "8-5")
    return str(top / "source"), str(top / "to")


def _column_is_a_link(top: Path) -> tuple[str, str]:
    (top / "to").mkdir()
    (top / "source" / "8-5" / "units").rename(top / "to" / "units")
    (top / "source" / "8-5" / "units").symlink_to(top / "to" / "units")
    return str(top / "source"), str(top / "to")


def _file_is_a_link(top: Path) -> tuple[str, str]:
    (top / "to" / "movies").mkdir(parents=True)
    file = top / "source" / "8-5" / "units" / "0.npy"
    file.rename(top / "to" / "movies" / "0.npy")
    file.symlink_to(top / "to" / "movies" / "0.npy")
    return str(top / "source"), str(top / "to")


OVERLAPS: dict[str, Callable[[Path], tuple[str, str]]] = {
    "the target holds the source": _as_is,
    "the source is the target's sessions": _at_sessions,
    "the same by a link": _linked_target,
    "the target's sessions are a link to the source": _linked_sessions,
    "a session is a link into the target": _session_is_a_link,
    "a column is a link into the target": _column_is_a_link,
    "a file is a link into the target": _file_is_a_link,
    "the source itself": lambda top: (str(top / "source"), str(top / "source")),
    "in the source": lambda top: (str(top / "source"), str(top / "source" / "to")),
    "in a session": lambda top: (str(top / "source"), str(top / "source" / "8-5" / "a" / "b")),
    "a URL": lambda top: (str(top / "source"), f"file://{top}/source/to/"),
    "another URL": lambda top: (f"local://{top}/source/", f"file://{top}//source/to"),
    "parents": lambda top: (str(top / "source"), f"{top}/source/8-5/../x"),
    "one session": lambda top: (str(top / "source" / "8-5"), str(top / "source" / "8-5" / "to")),
}


@pytest.mark.parametrize("bad", [False, True], ids=["whole", "malformed"])
@pytest.mark.parametrize("make", OVERLAPS.values(), ids=OVERLAPS)
def test_overlaps_of_source_and_target_are_refused(
    twin, tmp_path: Path, make: Callable[[Path], tuple[str, str]], bad: bool
) -> None:
    recording = twin()
    if bad:
        (recording.folder / "units" / "3.npy").write_text("x")
    source, to = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"overlaps with the source .* is never written to"):
        prepare(source, to, SETTINGS, overwrite=True)
    assert tree(tmp_path) == before


def test_overlaps_by_mounts(twin, tmp_path: Path) -> None:
    twin()
    other, deep = tmp_path / "other", tmp_path / "deep"
    other.mkdir(), deep.mkdir()
    mounts = [(tmp_path / "source", other), (tmp_path / "source" / "8-5" / "units", deep)]
    mounted: list[Path] = []
    try:
        for real, name in mounts:
            command = ["mount", "--bind", str(real), str(name)]
            if (
                shutil.which("mount") is None
                or subprocess.run(command, capture_output=True).returncode
            ):
                pytest.skip("needs to bind-mount")
            mounted.append(name)
        before = tree(tmp_path)
        for to in (other, other / "to", deep / "to"):
            with pytest.raises(ConfigError, match="overlaps with the source"):
                prepare(str(tmp_path / "source"), str(to), SETTINGS)
        assert tree(tmp_path) == before
    finally:
        for name in mounted:
            subprocess.run(["umount", str(name)], check=True)


@pytest.mark.parametrize(
    ("source", "to", "expected"),
    [
        ("memory://b/raw/x.nwb", "memory://b/raw/", True),
        ("memory://b/raw", "memory://b/raw/to", True),
        ("memory://b/raw/../to/x", "memory://b/to//", True),
        ("memory://b/raw", "memory://b/rawer", False),
        ("memory://b/raw", "/b/raw", False),
        ("/b/raw", "memory://b/raw", False),
    ],
)
def test_overlaps_of_urls(source: str, to: str, expected: bool) -> None:
    assert overlap(source, to) == expected


def test_places_side_by_side_are_no_overlap(twin, tmp_path: Path) -> None:
    folder = twin().folder
    (folder / "circle").symlink_to(folder)  # does not lead anywhere, for ever
    for to in ("to", "source-2", "source/../to"):
        assert not overlap(str(tmp_path / "source"), str(tmp_path / to))
    (folder / "circle").unlink()
    prepare(str(folder), str(tmp_path / "source.prepared"), SETTINGS)


def test_what_others_put_beside_it_stays(twin, tmp_path: Path) -> None:
    recording, to = twin(), tmp_path / "to"
    session = to / "sessions" / "8-5"
    prepare(str(recording.folder), str(to), SETTINGS)
    theirs = {
        to / "README.md": b"ours",
        session / "notes.txt": b"a",
        session / "train-00009.tar": b"b",
        session / "deep" / "x.npy": b"c",
        to / "movies" / "mine" / "x.tmp": b"d",
    }
    for path, content in theirs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for settings in (SETTINGS, PrepSettings(trials_per_shard=5)):
        prepare(str(recording.folder), str(to), settings, overwrite=True)
    assert not (session / "train-00001.tar").exists()  # of the settings before
    assert verify(str(to)) == []
    (recording.folder / "units" / "3.npy").write_text("x")
    for manifest in to.rglob("manifest.json"):
        journal.note(str(session), [])
        manifest.unlink()
    with pytest.raises(DataError):
        prepare(str(recording.folder), str(to), PrepSettings(trials_per_shard=5))
    assert {path: path.read_bytes() for path in theirs} == theirs
    left = set(tree(session)) - {"notes.txt", "train-00009.tar", "deep/x.npy"}
    assert left == set()  # of the session that cannot be made, nothing


def test_the_place_of_another_recording_is_not_taken(twin, tmp_path: Path) -> None:
    """A folder of recordings called `sessions`, and a target beside it by mistake."""
    recording, to = twin(), tmp_path / "to"
    shutil.copytree(recording.folder, to / "sessions" / "8-5")
    before = tree(to)
    with pytest.raises(ConfigError, match=r"sessions/8-5: holds .* did not write"):
        prepare(str(recording.folder), str(to), SETTINGS, overwrite=True)
    assert tree(to) == before
    other = tmp_path / "project"
    other.mkdir()
    (other / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(ConfigError, match=r"manifest.json: is not of a prepared dataset"):
        prepare(str(recording.folder), str(other), SETTINGS)
    assert tree(other) == {"manifest.json": b'{"name": "my web app"}'}


def test_another_recording_of_the_same_name(twin, tmp_path: Path) -> None:
    first = twin(seed=1).folder
    first.rename(tmp_path / "lab-a")
    (tmp_path / "a").mkdir()
    first = (tmp_path / "lab-a").rename(tmp_path / "a" / "8-5")
    second, to = twin(seed=2).folder, tmp_path / "to"
    prepare(str(first), str(to), SETTINGS)
    before = tree(to)
    with pytest.raises(ConfigError, match=r"another recording called 8-5, from another folder"):
        prepare(str(second), str(to), SETTINGS)
    assert tree(to) == before
    lines: list[str] = []
    prepare(str(second), str(to), SETTINGS, overwrite=True, progress=lines.append)
    assert "made again: its source has changed" in lines[0]
    prepare(str(second), str(tmp_path / "new"), SETTINGS)
    # The movies of the recording that was replaced stay until `fmcortex data gc`.
    assert tree(to / "sessions") == tree(tmp_path / "new" / "sessions")
    shutil.copytree(second, tmp_path / "moved" / "8-5")  # the same recording elsewhere
    lines.clear()
    prepare(str(tmp_path / "moved" / "8-5"), str(to), SETTINGS, progress=lines.append)
    assert lines == ["8-5: up to date"]


def _killed(to: Path, *, manifest: bool = False) -> Path:
    """The dataset as a kill shortly before the end leaves it; the session's folder."""
    session = to / "sessions" / "8-5"
    journal.note(str(session), [])
    (to / "manifest.json").unlink()
    if not manifest:
        (session / "manifest.json").unlink()
    return session


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("survey.json", lambda path: other_digit(path, "mean")),
        ("survey.json", lambda path: other_digit(path, "std")),
        ("train-00000.index.json", lambda path: other_digit(path, "crc32c")),
        ("train-00000.index.json", lambda path: other_digit(path, "offset")),
        ("train-00001.tar", flip),
        ("manifest.json", lambda path: other_digit(path, "perspective_mean")),
        ("../../movies/*/c/0/0/0", flip),
        ("../../movies/*/zarr.json", flip),
        ("../../movies/*/index.json", lambda path: other_digit(path, "crc32c")),
    ],
)
def test_what_an_interruption_left_is_checked(
    twin, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    recording, to = twin(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    before = tree(to)
    session = _killed(to, manifest=file == "manifest.json")
    damage(next(session.glob(file)) if "*" not in file else sorted(to.glob(file[6:]))[0])
    prepare(str(recording.folder), str(to), SETTINGS)
    assert tree(to) == before


def test_what_is_up_to_date_is_whole(twin, tmp_path: Path) -> None:
    """Every file of a dataset damaged in turn: prep makes the same bytes of it again."""
    recording, to = twin(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    before = tree(to)
    skipped: set[str] = set()
    for path in sorted(before):
        kind = "movies/index.json" if path.startswith("movies") else path.rpartition("/")[2]
        if kind in skipped:
            continue
        if path.startswith("movies") and not path.endswith("index.json"):
            kind = path.rpartition("/")[2]
            if kind in skipped:
                continue
        skipped.add(kind)
        lines: list[str] = []
        flip(to / path)
        prepare(str(recording.folder), str(to), SETTINGS, progress=lines.append)
        assert tree(to) == before, path
        if path != "manifest.json":
            assert "up to date" not in lines[0], path


def test_what_is_up_to_date_in_a_store(twin) -> None:
    """There, sizes and seals are looked at; all of it with `overwrite`, as verify says."""
    recording, fs = twin(), fsspec.filesystem("memory")
    to = "memory://prep-safety/to"
    try:
        prepare(str(recording.folder), to, SETTINGS)
        before = {path: fs.cat_file(path) for path in fs.find("/prep-safety")}
        shard = next(path for path in before if path.endswith("train-00000.tar"))
        survey = next(path for path in before if path.endswith("survey.json"))

        def now() -> dict[str, bytes]:
            return {path: fs.cat_file(path) for path in fs.find("/prep-safety")}

        for path, content, overwrite in (
            (shard, before[shard][:-1], False),
            (survey, before[survey].replace(b"1", b"2", 1), False),
            (shard, before[shard][:-1] + b"x", True),
        ):
            fs.pipe_file(path, content)
            prepare(str(recording.folder), to, SETTINGS, overwrite=overwrite)
            assert now() == before, path
    finally:
        fs.store.clear()


def test_what_links_lead_to_is_part_of_the_source(twin, tmp_path: Path) -> None:
    """A column on another disk, a single file there, and a link to a link."""
    recording, to = twin(), tmp_path / "to"
    disk = tmp_path / "disk"
    disk.mkdir()
    (recording.folder / "units").rename(disk / "units")
    (disk / "again").symlink_to(disk / "units")
    (recording.folder / "units").symlink_to(disk / "again")
    file = recording.folder / "stimuli" / "0.npy"
    file.rename(disk / "0.npy")
    file.symlink_to(disk / "0.npy")
    found = fingerprint(str(recording.folder)).files
    assert {"units/0.npy", "stimuli/0.npy"} <= set(found)
    prepare(str(recording.folder), str(to), SETTINGS)
    for path in (disk / "units" / "0.npy", disk / "0.npy"):
        before, times = tree(to), path.stat()
        values = np.load(path)
        np.save(path, values + 1)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # no clock tells of it
        prepare(str(recording.folder), str(to), SETTINGS)
        assert tree(to) != before
    assert verify(str(to)) == []
    (recording.folder / "more").symlink_to(tmp_path / "unplugged")
    with pytest.raises(DataError, match=r"more: is a link to .*unplugged, which is not there"):
        prepare(str(recording.folder), str(to), SETTINGS)


@pytest.mark.parametrize("name", ["to [1]", "a*", "what?", "50% #1", "a::b", "日本 é", "x.tmp"])
def test_targets_of_any_name(twin, tmp_path: Path, name: str) -> None:
    recording = twin()
    (tmp_path / "to 1").mkdir()
    (tmp_path / "ab").mkdir()
    to = str(tmp_path / name)
    prepare(str(recording.folder), to, SETTINGS)
    lines: list[str] = []
    prepare(str(recording.folder), to, SETTINGS, progress=lines.append)
    assert lines == ["8-5: up to date"]
    assert verify(to) == []
    assert open_dataset(to).session("8-5").trial(0).responses.shape[1] == 5
    assert os.listdir(tmp_path / "ab") == []


def test_a_target_of_any_name_on_s3(twin, s3: str) -> None:
    to = f"{s3}/mice [1]*/a?"
    prepare(str(twin().folder), to, SETTINGS)
    assert verify(to) == []
