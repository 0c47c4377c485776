"""The commands that look into a prepared dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fmcortex.cli import cli
from fmcortex.data.dataset import open_dataset
from fmcortex.data.manifest import Excluded
from fmcortex.data.peek import find_trial
from fmcortex.errors import DataError


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["data", *words])


def test_ls(prepared: str, tmp_path: Path) -> None:
    out = run("ls", prepared)
    assert out.exit_code == 0
    for word in ("mouse01-1-1", "mouse03-1-1", "train-00000.tar", "test-00000.tar"):
        assert word in out.output
    parent = str(Path(prepared).parent)
    assert run("ls", parent).output.split() == [prepared]
    assert "no prepared dataset here" in str(run("ls", str(tmp_path)).exception)


def test_info(prepared: str) -> None:
    out = run("info", prepared)
    assert "mouse02-1-1" in out.output
    assert "distinct movies" in out.output
    assert json.loads(run("info", prepared, "--json").output)["sessions"] == 3


def test_peek(prepared: str, tmp_path: Path) -> None:
    """The trial that is shown is the one of that name, of whatever tier."""
    figure = tmp_path / "trial.png"
    session = open_dataset(prepared).session("mouse02-1-1")
    manifest = session.manifest
    last = manifest.trials[-1].key
    words = ("peek", prepared, "--session", "mouse02-1-1", "--trial", last, "--figure", str(figure))
    out = run(*words)
    assert out.exit_code == 0, out.exception
    for word in (f"mouse02-1-1, trial {last} (train)", "stimulus", "responses", "x 12"):
        assert word in out.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    repeat = manifest.videos[0].shown[1]
    out = run("peek", prepared, "--session", "mouse02-1-1", "--trial", repeat.key)
    assert f"trial {repeat.key} ({manifest.videos[0].tier}): {repeat.domain}" in out.output
    arrays = session.video(manifest.videos[0].name)
    assert f"{arrays.responses[1].max():.3f}" in out.output
    for words, message in (
        (("--trial", "999"), "no trial 999; the .* called such as"),
        (("--trial", "-1"), "no trial -1"),
        (("--session", "nobody"), "no session 'nobody'"),
    ):
        with pytest.raises(DataError, match=message):
            raise run("peek", prepared, *words).exception  # type: ignore[misc]


def test_a_trial_is_found_by_its_name_and_not_by_its_place(
    prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_dataset(prepared).session("mouse02-1-1")
    trials = [t for t in session.manifest.trials if t.key not in ("1", "2")]
    monkeypatch.setattr(session, "manifest", session.manifest.model_copy(update={"trials": trials}))
    assert trials[3].key != "3"
    assert find_trial(session, "3")[0].key == "3"
    assert find_trial(session, None) == (trials[0], "train")


def test_peek_at_a_trial_that_was_left_out(prepared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_dataset(prepared).session("mouse02-1-1")
    left_out = Excluded(trial="77", tier="train", reason="pupil lacks")
    changed = session.manifest.model_copy(update={"excluded": [left_out]})
    monkeypatch.setattr(session, "manifest", changed)
    with pytest.raises(DataError, match="trial 77 was left out: pupil lacks"):
        find_trial(session, "77")


def test_verify_names_what_is_damaged(prepared: str, tmp_path: Path) -> None:
    assert "whole" in run("verify", prepared).output
    copy = Path(shutil.copytree(prepared, tmp_path / "data"))
    shard = copy / "sessions" / "mouse01-1-1" / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[-700] ^= 1
    shard.write_bytes(content)
    out = run("verify", str(copy))
    assert out.exit_code != 0
    assert f"{shard}: file differs from its SHA-256" in out.output
    assert "1 problem(s)" in str(out.exception)


def test_leaks_are_told_with_their_sessions(prepared: str) -> None:
    out = run("leaks", prepared)
    assert out.exit_code == 0
    assert "no leaks" in out.output
    assert json.loads(run("leaks", prepared, "--json").output) == []


def test_plan(tmp_path: Path) -> None:
    table = tmp_path / "sessions.csv"
    table.write_text("session,neurons,minutes,scan_hz\na-1,7000,60,6\nb-2,8000,90,6.3\n")
    out = run("plan", str(table), "--cores", "4")
    assert "2 sessions" in out.output
    assert "15000" in out.output
    assert len(json.loads(run("plan", str(table), "--json").output)) == 2


def test_quality(prepared: str, tmp_path: Path) -> None:
    to = tmp_path / "quality"
    out = run("quality", prepared, "--to", str(to), "--session", "mouse02-1-1")
    assert out.exit_code == 0, out.exception
    assert f"wrote {to}/index.html" in out.output
    assert sorted(path.name for path in to.glob("*.html")) == ["index.html", "mouse02-1-1.html"]
    assert "mouse02-1-1" in (to / "quality.json").read_text()
    out = run("quality", prepared, "--to", str(to), "--session", "nobody")
    assert isinstance(out.exception, DataError)
    assert "no session 'nobody'" in str(out.exception)


def test_what_has_no_dataset_is_told_in_one_line(tmp_path: Path) -> None:
    for words in (["ls"], ["info"], ["verify"], ["peek"], ["leaks"], ["quality", "--to", "x"]):
        out = run(*words, str(tmp_path))
        assert isinstance(out.exception, DataError), words
        assert str(tmp_path) in str(out.exception)
        assert "\n" not in str(out.exception)
