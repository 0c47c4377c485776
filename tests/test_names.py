"""Names and paths that are read: one function decides, and every document asks it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers.deconvolved import Record
from data_prep.readers.find import find_sessions
from data_prep.readers.tables import read_columns
from data_prep.survey import Survey
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.manifest import DatasetManifest, Document, SessionManifest, ShardIndex
from fmcortex.data.manifest import SourceList as Sources
from fmcortex.errors import DataError
from fmcortex.names import check_key, check_name, check_session, is_inside, is_name

ROOT = Path(__file__).parent.parent
BAD = ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "-x", "_x", ".hidden", "a b", "a\nb", "é"]
BAD += ["a\n", "a\0b", "a%2fb", "a?b", "a*b", "a[b", "~", "x" * 129, "s3://b/x", "C:x"]


@pytest.mark.parametrize(
    "name", ["a", "0", "mouse01-1-1", "8-5", "A.b_c-d", "x" * 128, "no", "2_3"]
)
def test_names(name: str) -> None:
    assert is_name(name)
    check_name(name, "x: session")
    check_session(name, "x: session")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
    for check in (check_name, check_session, check_key):
        with pytest.raises(DataError, match=r"x: session '.*': names are letters") as caught:
            check(name, "x: session")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["shared", "mouse.optimizer", ".optimizer"])
def test_names_that_a_checkpoint_needs_are_no_sessions(name: str) -> None:
    with pytest.raises(DataError, match="session"):
        check_session(name, "x: session")


def test_paths_that_stay_inside() -> None:
    for path in ("a", "a/b", "a b/ü[1]?.npy", "..a/b..", "-/~", "a\\b"):
        assert is_inside(path)
    for path in ("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "a\0b"):
        assert not is_inside(path)


def put(document: Any, where: str, name: str) -> None:
    """Set the value at a dotted path, or rename the first key there, to `name`."""
    *path, last = where.split(".")
    for key in path:
        document = document[int(key)] if key.isdecimal() else document[key]
    if last == "*":
        document[name] = document.pop(next(iter(document)))
    else:
        document[last] = name


#: Where the documents of a prepared dataset hold names, by the document's file.
NAMES: dict[tuple[type[Document], str], tuple[str, ...]] = {
    (DatasetManifest, "manifest.json"): ("sessions.0.session",),
    (SessionManifest, "sessions/mouse01-1-1/manifest.json"): (
        "session",
        "shards.0.name",
        "shards.0.index",
        "videos.0.name",
        "movies.*",
        "neuron_table.*",
        "neuron_table.unit_id.path",
        "statistics.response_scale.path",
        "files.*",
        "trials.0.movie",
    ),
    (ShardIndex, "sessions/mouse01-1-1/train-00000.index.json"): ("shard", "trials.0.header.movie"),
    (Sources, "sessions/mouse01-1-1/sources.json"): ("files.*",),
    (Survey, "sessions/mouse01-1-1/survey.json"): ("trials.0.key", "trials.0.movie"),
}


@pytest.mark.parametrize(
    ("kind", "file", "where"),
    [(kind, file, where) for (kind, file), places in NAMES.items() for where in places],
)
def test_documents_refuse_names_that_lead_outside(
    prepared: str, kind: type[Document], file: str, where: str
) -> None:
    content = Path(prepared, file).read_bytes()
    kind.parse(content, file)
    for name in ("../../x", "/tmp/x", "a/../../x", "../\nx"):
        document = json.loads(content)
        put(document, where, name)
        with pytest.raises(DataError, match=f"^{file}: ") as caught:
            kind.parse(json.dumps(document).encode(), file)
        assert "\n" not in str(caught.value)


def test_record_of_deconvolution_names_fields() -> None:
    field = {"source": "x", "samples": 1, "columns": [0]}
    whole = {"tool_version": "1", "oasis_version": "1", "settings": {}, "sources": {}}
    for name in (".", "RoiResponseSeries1"):
        Record.model_validate({**whole, "fields": {name: field}})
    for name in ("..", "../x", "/x", ""):
        with pytest.raises(ValueError, match="not the name of a field"):
            Record.model_validate({**whole, "fields": {name: field}})


def test_session_in_the_datasets_manifest_is_never_looked_for_outside(
    prepared: str, tmp_path: Path
) -> None:
    """Sealed anew, so that only the name is wrong."""
    document = DatasetManifest.parse_sealed(Path(prepared, "manifest.json").read_bytes(), "x")
    first = document.sessions[0].model_copy(update={"session": "../../outside"})
    forged = document.model_copy(update={"sessions": [first]})
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").mkdir()
    storage.write_bytes(str(tmp_path / "data" / "manifest.json"), forged.sealed())
    with pytest.raises(DataError, match=r"manifest.json: sessions.0.session: '../../outside'"):
        open_dataset(str(tmp_path / "data"))


def test_session_folders_of_odd_names(tmp_path: Path) -> None:
    for name in ("shared", "m1.optimizer", "a b"):
        root = tmp_path / name.replace(" ", "-")
        (root / name / "data").mkdir(parents=True)
        with pytest.raises(DataError, match=f"session '{name}'"):
            find_sessions(str(root))


def test_members_of_an_archive_become_columns_and_never_files(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    np.savez(inside / "neurons.npz", **{"../../outside": np.arange(2), "unit_id": np.arange(2)})
    assert set(read_columns(inside / "neurons.npz")) == {"../../outside", "unit_id"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_no_archive_is_extracted_by_the_paths_in_it() -> None:
    """Neither tar nor zip; numpy and webdataset read members."""
    for package in ("fmcortex", "cluster", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                called = node.attr if isinstance(node, ast.Attribute) else ""
                assert called not in ("extract", "extractall", "unpack_archive"), path
