"""A source is never written to, whatever it is called, however it is linked, wherever to."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_recordings import raw_session

from fmcortex.cli import cli
from fmcortex.errors import FmcortexError

ROOTS = st.sampled_from(
    ["rec", "rec [1]", "a*", "what?", "50% #1", "日本", "...x", "a::b", "-x", "{a,b}", "it's"]
) | st.text("ab[]*? #%é.-", min_size=1, max_size=6).filter(
    lambda name: name.strip(". ") and name == name.strip() and name[0] != "."
)
SESSIONS = st.sampled_from(["8-5", "m.1", "sessions", "movies", "a_b", "M-1-1"])
LINKS = st.sets(st.sampled_from(["root", "session", "column", "file"]), max_size=2)
#: Where to, from the root of the recordings {r}, a session {s}, the disk {d} and a link {l}.
TARGETS = st.sampled_from(
    [
        "{top}/to",
        "{top}/to [1]",
        "{r}",
        "{r}/..",
        "{r}/to",
        "{s}",
        "{s}/units",
        "{s}/a/b",
        "{d}",
        "{d}/to",
        "{l}",
        "{l}/to",
        "{l}/..",
        "file://{r}",
        "local://{r}/",
        "{s}/../to",
        "{r}/./",
        "file://{top}/to/",
        "{top}/to/../to",
        "{top}",
    ]
)
COMMANDS = st.lists(
    st.sampled_from(
        [
            ("prep", "{r}", "--to", "{to}"),
            ("prep", "{r}", "--to", "{to}", "--overwrite"),
            ("prep", "{s}", "--to", "{to}", "--set", "trials_per_shard=2", "--overwrite"),
            ("prep", "{l}", "--to", "{to}", "--set", "split=made"),
            ("deconvolve", "{r}"),
            ("deconvolve", "{r}", "--figures", "{to}", "--overwrite"),
            ("data", "quality", "{to}", "--to", "{r}"),
            ("data", "quality", "{to}", "--to", "{to}"),
            ("data", "verify", "{to}"),
            ("data", "peek", "{to}", "--figure", "{s}/units/0.npy"),
            ("data", "repair", "{to}", "{r}", "--yes"),
            ("data", "repair", "{r}", "{to}", "--yes"),
            ("data", "remove", "{to}", "{name}", "--yes"),
            ("data", "remove", "{r}", "{name}", "--yes"),
            ("data", "gc", "{to}", "--yes"),
            ("data", "gc", "{r}", "--yes"),
            ("decode", "{s}/units/0.npy", "--to", "{s}/units/0.npy"),
            ("report", "{r}", "--to", "{s}/units/0.npy"),
        ]
    ),
    max_size=2,
)


def twin_session(folder: Path, seed: int = 1) -> None:
    """A tiny session of the digital-twin layout."""
    generator = np.random.default_rng(seed)

    def save(path: str, values: object) -> None:
        file = folder / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(values))

    def put(prefix: str, key: str, stimulus: np.ndarray) -> None:
        frames = len(stimulus)
        save(f"{prefix}stimuli/{key}", stimulus)
        save(f"{prefix}units/{key}", generator.gamma(2, 1, (frames, 3)).astype("f4"))
        save(f"{prefix}perspectives/{key}", generator.normal(40, 3, (frames, 2)))
        save(f"{prefix}modulations/{key}", generator.normal(20, 5, (frames, 2)))

    def movie() -> np.ndarray:
        return generator.integers(0, 256, (7, 6, 8, 1)).astype("u1")

    for number in range(3):
        put("", str(number), movie())
        save(f"training/{number}", True)
        save(f"samples/{number}", 7)
    for video in ("natural_movie-1", "validation_natural_movie-0"):
        shown = movie()
        for repeat in range(2):
            put("evaluation/", f"{video}/{repeat}", shown)


def contents(top: Path) -> dict[str, bytes]:
    """Every file below a folder, by its real path."""
    return {
        os.path.join(folder, name): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(top)
        for name in names
        if os.path.isfile(os.path.join(folder, name))
    }


def layout(top: Path, root: str, session: str, links: set[str], bad: bool) -> dict[str, str]:
    """Make recordings; what stands for what in commands."""
    disk, folder = top / "disk", top / root
    disk.mkdir()
    twin_session(folder / session)
    if bad:
        (folder / session / "units" / "1.npy").write_bytes(b"not an array")
    moves = {"session": session, "column": f"{session}/units", "file": f"{session}/stimuli/0.npy"}
    for kind in ("file", "column", "session"):
        if kind in links:
            place = folder / moves[kind]
            shutil.move(place, disk / kind)
            place.symlink_to(disk / kind)
    if "root" in links:
        shutil.move(folder, disk / "root")
        folder.symlink_to(disk / "root")
    link = top / "link"
    link.symlink_to(folder)
    return {
        "top": str(top),
        "r": str(folder),
        "s": str(folder / session),
        "d": str(disk),
        "l": str(link),
        "name": session,
    }


def check(root: str, session: str, links: set[str], bad: bool, to: str, commands: Any) -> None:
    with tempfile.TemporaryDirectory() as made:
        top = Path(made).resolve()
        words = layout(top, root, session, links, bad)
        words["to"] = to.format(**words)
        sources = contents(top)
        folders = {str(Path(path).parent) for path in sources}
        for command in (("prep", "{r}", "--to", "{to}"), *commands):
            given = [word.format(**words) for word in command]
            out = CliRunner().invoke(cli, given)
            expected = (type(None), SystemExit, FmcortexError)
            assert isinstance(out.exception, expected), (given, out.exception)
            now = contents(top)
            assert {path: now.get(path) for path in sources} == sources, given
            new = {path for path in now if str(Path(path).parent) in folders} - set(sources)
            assert not new, (given, new)


SETTINGS = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
CASES = given(ROOTS, SESSIONS, LINKS, st.booleans(), TARGETS, COMMANDS)


@settings(SETTINGS, max_examples=12)
@CASES
def test_sources_are_untouched(
    root: str, session: str, links: set[str], bad: bool, to: str, commands: Any
) -> None:
    check(root, session, links, bad, to, commands)


@pytest.mark.slow
@settings(SETTINGS, max_examples=150)
@CASES
def test_sources_are_untouched_by_many(
    root: str, session: str, links: set[str], bad: bool, to: str, commands: Any
) -> None:
    check(root, session, links, bad, to, commands)


def test_deconvolution_beside_what_others_put_there(tmp_path: Path) -> None:
    """It adds a folder to a session, and replaces only what it made itself."""
    folder = raw_session(tmp_path).folder
    before = contents(tmp_path)
    parts = folder / "signals" / ".responses.parts"
    parts.mkdir()
    (parts / "mine.npy").write_bytes(b"x")
    out = CliRunner().invoke(cli, ["deconvolve", str(tmp_path)])
    assert "was not made by `fmcortex deconvolve`; move it away" in str(out.exception)
    assert (parts / "mine.npy").read_bytes() == b"x"
    shutil.rmtree(parts)
    assert CliRunner().invoke(cli, ["deconvolve", str(tmp_path)]).exit_code == 0
    notes = folder / "signals" / "responses" / "notes.txt"
    notes.write_text("theirs")
    again = ["deconvolve", str(tmp_path), "--overwrite", "--set", "decay_seconds=0.5"]
    out = CliRunner().invoke(cli, again)
    assert f"{notes}: was not made by `fmcortex deconvolve`" in str(out.exception)
    notes.unlink()
    assert CliRunner().invoke(cli, again).exit_code == 0
    now = contents(tmp_path)
    assert {path: now[path] for path in before} == before
    out = CliRunner().invoke(cli, [*again[:2], "--figures", str(folder / "figures")])
    assert "overlaps with the source" in str(out.exception)
