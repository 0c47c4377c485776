"""Tiers made by the job: the same footage never on both sides, in whichever session, ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep import split_job
from data_prep.job import prepare
from data_prep.retiered import ASTRIDE
from data_prep.settings import PrepSettings
from data_prep.simulator.movies import natural_movie
from data_prep.split_job import SPLIT, leaks
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import ConfigError, DataError

MADE = PrepSettings(split="made", test_fraction=0.25, validation_fraction=0.2)
COUNT, NEURONS = 8, 3


@pytest.fixture(scope="module")
def movies() -> list[np.ndarray]:
    generator = np.random.default_rng(4)
    return [natural_movie(90, 18, 32, 30.0, generator) for _ in range(COUNT)]


def noisy(movie: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 4, movie.shape)
    return np.clip(movie + noise, 0, 255).astype(np.uint8)


def brighter(movie: np.ndarray) -> np.ndarray:
    return np.clip(movie * 0.8 + 40, 0, 255).astype(np.uint8)


def write(folder: Path, movies: list[np.ndarray], held_out: int = 0) -> None:
    """A session in the digital-twin layout; the last movies are of its validation tier."""
    generator = np.random.default_rng(7)
    for number, movie in enumerate(movies):
        for column, values in {
            "training": np.array(number < len(movies) - held_out),
            "samples": np.array(len(movie)),
            "stimuli": movie[..., None],
            "perspectives": generator.normal(size=(len(movie), 2)),
            "modulations": generator.normal(size=(len(movie), 2)),
            "units": generator.gamma(2, 1, (len(movie), NEURONS)).astype("f4"),
        }.items():
            (folder / column).mkdir(parents=True, exist_ok=True)
            np.save(folder / column / f"{number}.npy", values)


def tiers(url: str, session: str) -> dict[str, str]:
    """The tier of each trial, by its number: the movie's in `movies`."""
    manifest = open_dataset(url).session(session).manifest
    found = {trial.key: "train" for trial in manifest.trials}
    return found | {t.key: video.tier for video in manifest.videos for t in video.shown}


def test_the_same_footage_is_in_one_tier_in_all_sessions(movies, tmp_path: Path) -> None:
    source, to = tmp_path / "source", str(tmp_path / "to")
    write(source / "a-1-1", movies)
    write(source / "b-1-1", [noisy(movie, n) for n, movie in enumerate(movies)])
    prepare(str(source), to, MADE)
    first = tiers(to, "a-1-1")
    assert sorted(first) == [str(number) for number in range(COUNT)]
    assert tiers(to, "b-1-1") == first
    assert set(first.values()) == {"train", "validation", "test"}
    assert open_dataset(to).manifest.movies == 2 * COUNT
    assert leaks(to) == []
    lines: list[str] = []
    prepare(str(source), to, MADE, progress=lines.append)
    assert lines == ["a-1-1: up to date", "b-1-1: up to date"]
    # Sessions that come later go by the tiers of their footage, and leave those there alone.
    write(tmp_path / "later" / "c-1-1", [brighter(movie) for movie in movies])
    prepare(str(tmp_path / "later"), to, MADE)
    assert tiers(to, "c-1-1") == tiers(to, "a-1-1") == first
    assert leaks(to) == []
    assert verify(to) == []


def test_a_session_whose_movies_cannot_be_looked_at_is_not_prepared(
    movies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep the tiers of its source, whatever the footage of the others."""
    source, to = tmp_path / "source", str(tmp_path / "to")
    write(source / "a-1-1", movies)
    write(source / "b-1-1", movies, held_out=2)

    def out_of_sight(folder: str, *rest: object) -> list[split_job.Shown]:
        if folder.endswith("b-1-1"):
            raise DataError(f"{folder}: cannot be looked at")
        return look(folder, *rest)

    look = split_job.look_at_movies
    monkeypatch.setattr(split_job, "look_at_movies", out_of_sight)
    lines: list[str] = []
    with pytest.raises(DataError, match="b-1-1: cannot be looked at"):
        prepare(str(source), to, MADE, progress=lines.append)
    assert [line for line in lines if line.startswith("b-1-1: failed")]
    assert not (tmp_path / "to" / "sessions" / "b-1-1").exists()
    monkeypatch.undo()
    prepare(str(source), to, MADE)
    assert tiers(to, "b-1-1") == tiers(to, "a-1-1")


def test_another_split_is_refused_or_made_of_all(movies, tmp_path: Path) -> None:
    source, to = tmp_path / "source", str(tmp_path / "to")
    write(source / "a-1-1", movies)
    write(source / "b-1-1", movies)
    prepare(str(source), to, MADE)
    before = tiers(to, "a-1-1")
    other = MADE.model_copy(update={"split_seed": 3})
    with pytest.raises(ConfigError, match=r"split was made with another split_seed; choose"):
        prepare(str(source), to, other)
    only = other.model_copy(update={"sessions": ["a-1-1"]})
    with pytest.raises(ConfigError, match="overwrite all of its sessions"):
        prepare(str(source), to, only, overwrite=True)
    assert tiers(to, "a-1-1") == before
    prepare(str(source), to, other, overwrite=True)
    assert tiers(to, "a-1-1") == tiers(to, "b-1-1") != before
    assert leaks(to) == []


def test_a_movie_that_joins_both_sides_is_left_out(movies, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    write(tmp_path / "source" / "a-1-1", movies)
    prepare(str(tmp_path / "source"), to, MADE)
    first = tiers(to, "a-1-1")
    trained, held_out = (
        next(movies[int(key)] for key, tier in first.items() if (tier == "train") == train)
        for train in (True, False)
    )
    # Cut together of both; of the one that is held out and something new; as the first again.
    generator = np.random.default_rng(8)
    new = natural_movie(90, 18, 32, 30.0, generator)
    cut = [np.concatenate([trained, held_out]), np.concatenate([held_out, new]), trained]
    write(tmp_path / "later" / "b-1-1", cut)
    for _ in range(2):
        lines: list[str] = []
        prepare(str(tmp_path / "later"), to, MADE, progress=lines.append)
        [left_out] = open_dataset(to).session("b-1-1").manifest.excluded
        assert (left_out.trial, left_out.reason) == ("0", ASTRIDE)
        found = tiers(to, "b-1-1")
        assert sorted(found) == ["1", "2"]
        assert (found["1"] != "train", found["2"]) == (True, "train")
        assert leaks(to) == []
        assert tiers(to, "a-1-1") == first
    assert lines == ["b-1-1: up to date"]
    assert verify(to) == []
    # Together they are one group.
    write(tmp_path / "source" / "b-1-1", cut)
    prepare(str(tmp_path / "source"), str(tmp_path / "all"), MADE)
    assert open_dataset(str(tmp_path / "all")).session("b-1-1").manifest.excluded == []
    assert leaks(str(tmp_path / "all")) == []


def test_a_damaged_split_is_made_again_of_the_sessions(movies, tmp_path: Path) -> None:
    write(tmp_path / "source" / "a-1-1", movies)
    to = tmp_path / "to"
    prepare(str(tmp_path / "source"), str(to), MADE)
    text = (to / SPLIT).read_text()
    (to / SPLIT).write_text(text.replace('"train"', '"test"', 1))
    told: list[str] = []
    track = lambda done, total, what: told.append(what)  # noqa: E731
    prepare(str(tmp_path / "source"), str(to), MADE, track=track)
    assert "split.json is damaged: taking the tiers from the sessions" in told
    assert (to / SPLIT).read_text() == text


def test_leaks_of_given_tiers_are_reported(movies, tmp_path: Path) -> None:
    source, to = tmp_path / "source", str(tmp_path / "to")
    write(source / "a-1-1", movies[:6], held_out=2)
    write(source / "b-1-1", [*movies[6:], brighter(movies[4]), movies[5]])
    prepare(str(source), to)
    found = leaks(to)
    assert [leak.trained_in for leak in found] == [("b-1-1",)] * 2
    assert [leak.held_out_in for leak in found] == [(("a-1-1", "validation"),)] * 2
    same = [leak.trained == leak.held_out for leak in found]
    assert sorted(same) == [False, True]
    assert {leak.share for leak, one in zip(found, same, strict=True) if one} == {1.0}
