"""What operating systems leave beside recordings is no part of them; unknown folders are named."""

import shutil

import layouts
import numpy as np
import pytest
from click.testing import CliRunner

from data_prep.fingerprint import fingerprint
from data_prep.job import prepare
from fmcortex.cli import cli
from fmcortex.errors import DataError


def litter(folder):
    """Leave beside every file what a Mac, its archives and Windows do."""
    for path in [folder, *sorted(folder.rglob("*"))]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
        if path.is_dir():
            for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
                (path / name).write_bytes(b"\0\0\0\1Bud1")
            double = path / "__MACOSX" / folder.name
            double.mkdir(parents=True)
            (double / "._0.npy").write_bytes(b"\0\5\26\7")


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_recording_that_came_over_other_systems_is_the_same(layout, tmp_path):
    folder = layouts.write(layout, tmp_path / "source")
    before = fingerprint(str(folder))
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    litter(folder)
    (tmp_path / "source" / "__MACOSX" / folder.name).mkdir(parents=True)
    assert fingerprint(str(folder)) == before
    again = []
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), progress=again.append)
    assert again == ["m-1-1: up to date"]
    lines = []
    prepare(str(tmp_path / "source"), str(tmp_path / "new"), progress=lines.append)
    assert lines[0].startswith("m-1-1: 4 neurons, 5 training trials")


def test_deconvolve_passes_them_over(tmp_path):
    from raw_recordings import raw_scan, raw_session, run

    scan, session = raw_scan(tmp_path / "source"), raw_session(tmp_path / "source")
    for recording in (scan, session):
        litter(recording.folder)
    assert [line.partition(":")[0] for line in run(scan)] == [
        session.folder.name,
        scan.folder.name,
    ]


def test_unknown_folders_are_named_before_anything_is_done(tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    layouts.write("digital_twin", source)
    for name in ("papers", "z-figures"):
        (source / name).mkdir()
        (source / name / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"source/papers and z-figures: no .*--skip-unknown"):
        prepare(str(source), str(to))
    assert not to.exists()
    said = CliRunner().invoke(cli, ["prep", str(source), "--to", str(to), "--skip-unknown"])
    assert said.exit_code == 0, said.output
    assert "papers: skipped: no session of a known layout" in said.output
    assert "1 sessions, 4 neurons" in said.output
    # One that was asked for by its name is not passed over.
    from data_prep.settings import PrepSettings

    with pytest.raises(DataError, match=r"source/papers: no session of a known layout"):
        prepare(str(source), str(to), PrepSettings(sessions=["papers"]), skip_unknown=True)
    shutil.rmtree(source / layouts.NAME)
    with pytest.raises(DataError, match=r"source/papers: no session of a known layout"):
        prepare(str(source), str(tmp_path / "none"), skip_unknown=True)


def test_deconvolve_names_unknown_folders_too(tmp_path):
    from raw_recordings import raw_session

    session = raw_session(tmp_path / "source")
    (session.folder.with_name("papers")).mkdir()
    source = str(tmp_path / "source")
    said = CliRunner().invoke(cli, ["deconvolve", source])
    assert said.exit_code == 1
    assert "papers: no session of a known layout" in str(said.exception)
    assert not (session.folder / "signals/responses").exists()
    said = CliRunner().invoke(cli, ["deconvolve", source, "--skip-unknown"])
    assert said.exit_code == 0, said.output
    assert (session.folder / "signals/responses/values.npy").exists()


def test_a_name_is_not_left_out_for_what_it_contains(tmp_path):
    folder = layouts.write("sensorium2023", tmp_path / "source")
    np.save(folder / "meta/neurons/thumbs.npy", np.arange(layouts.NEURONS))
    assert "meta/neurons/thumbs.npy" in fingerprint(str(folder)).files
