"""A split made by the job: films that are alike share a tier, in all sessions and all runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from data_prep.split_job import SPLIT, leaks
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.data.manifest import SessionManifest
from fmcortex.data.movies import movie_name
from fmcortex.errors import ConfigError, DataError

RATE, FRAMES = 30, 75
HEIGHT, WIDTH = 12, 16
#: Few films, so that each tier has some.
MADE = PrepSettings(split="made", validation_fraction=0.2, test_fraction=0.2, trials_per_shard=4)
SOURCE = MADE.model_copy(update={"split": "source"})

Film = int
#: What a session shows: films and how each was encoded.
Program = Sequence[tuple[Film, str]]

FIRST: Program = [(film, "plain") for film in range(8)] + [(0, "plain")]
SECOND: Program = [(0, "noisy"), (1, "noisy"), (2, "brighter"), (3, "cut"), (4, "plain")]
SECOND = [*SECOND, (5, "noisy"), (6, "cut"), (7, "brighter"), (8, "plain"), (9, "plain")]
THIRD: Program = [(0, "cut"), (1, "brighter"), (2, "noisy"), (3, "plain"), (8, "noisy")]
THIRD = [*THIRD, (9, "cut"), *((film, "plain") for film in range(10, 14))]


def film(number: Film, encoding: str) -> np.ndarray:
    """uint8 [T, H, W]: coarse pictures that change into each other, three a second."""
    generator = np.random.default_rng(number)
    pictures = generator.uniform(60, 180, (12, HEIGHT // 2, WIDTH // 2))
    at = np.arange(FRAMES + 10) / 10
    low, part = at.astype(int), (at % 1)[:, None, None]
    coarse = pictures[low] * (1 - part) + pictures[low + 1] * part
    movie = coarse.repeat(2, axis=1).repeat(2, axis=2)
    if encoding == "noisy":
        movie = movie + np.random.default_rng(99).normal(0, 2, movie.shape)
    elif encoding == "brighter":
        movie = movie * 1.1 + 20
    start = 7 if encoding == "cut" else 0
    return np.rint(movie[start : start + FRAMES]).astype(np.uint8)


def record(folder: Path, program: Program, held_out: Sequence[int] = ()) -> None:
    """A session in the digital twin layout; trials `held_out` are a test video each."""
    generator = np.random.default_rng(len(folder.name) + len(program))
    for number, shown in enumerate(program):
        stimulus = film(*shown)
        inside, key = ("evaluation", f"natural_movie-{number}/0"), f"{number}"
        columns = {
            "stimuli": stimulus[..., None],
            "units": generator.gamma(2.0, 1.5, (len(stimulus), 3)).astype("f4"),
            "perspectives": generator.normal(40, 3, (len(stimulus), 2)),
            "modulations": generator.normal(20, 5, (len(stimulus), 2)),
        }
        if number not in held_out:
            columns |= {"training": np.array(True), "samples": np.array(len(stimulus))}
        for column, values in columns.items():
            path = folder / column / f"{key}.npy"
            if number in held_out:
                path = folder / inside[0] / column / f"{inside[1]}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two sessions that share films, in other encodings."""
    record(tmp_path / "source" / "m1", FIRST)
    record(tmp_path / "source" / "m2", SECOND)
    return tmp_path / "source"


PROGRAMS = {"m1": FIRST, "m2": SECOND, "m3": THIRD}


def shown(manifest: SessionManifest) -> dict[str, str]:
    """The tier of each movie of a session."""
    found = {trial.movie: "train" for trial in manifest.trials}
    assert not {video.movie for video in manifest.videos} & set(found)
    return found | {video.movie: video.tier for video in manifest.videos}


def tiers_of_films(to: Path, sessions: Sequence[str]) -> dict[Film, set[str]]:
    """The tiers in which each film is, in any session and any encoding."""
    dataset = open_dataset(str(to))
    assert dataset.sessions == sorted(sessions)
    found: dict[Film, set[str]] = {}
    for session in sessions:
        tiers = shown(dataset.session(session).manifest)
        names = {movie_name(film(*one)): one[0] for one in PROGRAMS[session]}
        assert set(tiers) == set(names)  # all films, and no others
        for movie, number in names.items():
            found.setdefault(number, set()).add(tiers[movie])
    return found


def stored(to: Path) -> dict[str, str]:
    """The tiers that `split.json` keeps, by movie."""
    movies = json.loads((to / SPLIT).read_text())["movies"]
    return {movie: entry["tier"] for movie, entry in movies.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_film_is_in_one_tier_whatever_its_encoding(source: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    prepare(str(source), str(to), MADE)
    found = tiers_of_films(to, ["m1", "m2"])
    assert all(len(tiers) == 1 for tiers in found.values()), found
    assert set.union(*found.values()) == {"train", "validation", "test"}
    assert found[0] == {"test"}  # the film that is repeated, whose reliability is known
    session = open_dataset(str(to)).session("m1")
    [video] = [v for v in session.manifest.videos if v.repeats == 2]
    assert video.movie == movie_name(film(0, "plain"))
    assert leaks(str(to)) == []
    assert verify(str(to)) == []


def test_a_repeated_run_does_nothing(source: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    manifest = prepare(str(source), str(to), MADE)
    times = {path: path.stat().st_mtime_ns for path in to.rglob("*") if path.is_file()}
    lines: list[str] = []
    assert prepare(str(source), str(to), MADE, progress=lines.append) == manifest
    assert lines == ["m1: up to date", "m2: up to date"]
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*") if path.is_file()} == times


@pytest.mark.parametrize("alone", [False, True])
def test_a_session_added_later_moves_nothing(source: Path, tmp_path: Path, alone: bool) -> None:
    to = tmp_path / "to"
    prepare(str(source), str(to), MADE)
    before = stored(to)
    folder = tmp_path / "later" / "m3" if alone else source / "m3"
    record(folder, THIRD)
    lines: list[str] = []
    prepare(str(folder.parent), str(to), MADE, progress=lines.append)
    assert lines[:-1] == ([] if alone else ["m1: up to date", "m2: up to date"])
    assert lines[-1].startswith("m3: 3 neurons")
    after = stored(to)
    assert len(after) == len(before) + 9  # film 3 as it was is there already
    assert {movie: after[movie] for movie in before} == before
    found = tiers_of_films(to, ["m1", "m2", "m3"])
    assert all(len(tiers) == 1 for tiers in found.values()), found
    assert leaks(str(to)) == []


def test_sessions_at_the_target_with_tiers_of_their_source(tmp_path: Path) -> None:
    record(tmp_path / "first" / "m1", FIRST, held_out=[1, 2])
    record(tmp_path / "second" / "m2", SECOND)
    to = tmp_path / "to"
    prepare(str(tmp_path / "first"), str(to), SOURCE)
    prepare(str(tmp_path / "second"), str(to), MADE)
    found = tiers_of_films(to, ["m1", "m2"])
    assert [found[number] for number in (1, 2)] == [{"test"}, {"test"}]
    assert [found[number] for number in (0, 3, 4, 5, 6, 7)] == [{"train"}] * 6
    assert leaks(str(to)) == []


def test_other_settings_of_the_split_are_refused_unless_overwritten(
    source: Path, tmp_path: Path
) -> None:
    to, new = tmp_path / "to", tmp_path / "new"
    prepare(str(source), str(to), MADE)
    before = tree(to)
    other = MADE.model_copy(update={"split_seed": 3, "test_fraction": 0.3})
    with pytest.raises(ConfigError, match="another test_fraction, split_seed; choose") as caught:
        prepare(str(source), str(to), other)
    assert "\n" not in str(caught.value)
    # One of its sessions alone cannot have another split than the rest.
    with pytest.raises(ConfigError, match="overwrite all of its sessions"):
        prepare(str(source / "m1"), str(to), other, overwrite=True)
    assert tree(to) == before
    prepare(str(source), str(to), other, overwrite=True)
    prepare(str(source), str(new), other)
    assert stored(to) != {movie: entry for movie, entry in stored(new).items() if False}
    assert tree(to) == tree(new)
    assert leaks(str(to)) == []


def test_a_damaged_split_is_named(source: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    prepare(str(source), str(to), MADE)
    text = (to / SPLIT).read_text()
    (to / SPLIT).write_text(text.replace('"train"', '"test"', 1))
    with pytest.raises(DataError, match=r"to/split\.json: differs from its own checksum"):
        prepare(str(source), str(to), MADE)


def test_leaks_of_the_source_are_told_with_their_movies_and_sessions(tmp_path: Path) -> None:
    record(tmp_path / "source" / "m1", [(0, "plain"), (1, "plain"), (2, "plain"), (3, "plain")])
    program: Program = [(0, "noisy"), (1, "cut"), (2, "plain"), (4, "plain"), (3, "brighter")]
    record(tmp_path / "source" / "m2", program, held_out=[0, 1, 2])
    to = tmp_path / "to"
    prepare(str(tmp_path / "source"), str(to), SOURCE)
    found = {(leak.trained, leak.held_out): leak for leak in leaks(str(to))}
    expected = [(movie_name(film(n, "plain")), movie_name(film(*program[n]))) for n in range(3)]
    assert set(found) == set(expected)
    for leak in found.values():
        assert (leak.trained_in, leak.held_out_in) == (("m1",), (("m2", "test"),))
    assert expected[2][0] == expected[2][1]
    assert found[expected[2]].share == 1
    assert all(leak.share > 0.6 for leak in found.values())


def test_a_session_that_joins_films_of_two_tiers(source: Path, tmp_path: Path) -> None:
    """What is at the target stays, so that such a leak cannot be mended, but it is told."""
    to = tmp_path / "to"
    prepare(str(source), str(to), MADE)
    found = tiers_of_films(to, ["m1", "m2"])
    trained = next(number for number in range(1, 8) if found[number] == {"train"})
    record(tmp_path / "later" / "m3", [(20, "plain"), (21, "plain")])
    both = np.concatenate([film(0, "plain"), film(trained, "plain")])
    for column, values in {"stimuli": both[..., None], "samples": np.array(len(both))}.items():
        np.save(tmp_path / "later" / "m3" / column / "1.npy", values)
    for column in ("units", "perspectives", "modulations"):
        path = tmp_path / "later" / "m3" / column / "1.npy"
        np.save(path, np.load(path).repeat(2, axis=0))
    before = stored(to)
    prepare(str(tmp_path / "later"), str(to), MADE)
    after = stored(to)
    assert after == {**before, **{movie: after[movie] for movie in set(after) - set(before)}}
    assert after[movie_name(both)] == "test"  # of the two tiers, the one that must stay unseen
    assert {leak.held_out for leak in leaks(str(to))} == {movie_name(both)}
    assert movie_name(film(trained, "plain")) in {leak.trained for leak in leaks(str(to))}


@pytest.mark.slow
def test_ray_workers_make_the_same_split(source: Path, tmp_path: Path) -> None:
    prepare(str(source), str(tmp_path / "here"), MADE)
    prepare(str(source), str(tmp_path / "ray"), MADE, workers=2)
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")
    record(source / "m3", THIRD)
    tracked: list[str] = []
    track: Callable[[int, int, str], None] = lambda done, total, what: tracked.append(what)
    prepare(str(source), str(tmp_path / "ray"), MADE, workers=2, track=track)
    prepare(str(source), str(tmp_path / "here"), MADE)
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")
    assert "m3: looking at the movies" in tracked
