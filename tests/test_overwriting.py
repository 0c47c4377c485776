"""A page, a figure or scores replace only their like, and go not into what they are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fmcortex.cli import cli
from fmcortex.errors import ConfigError
from fmcortex.overlap import check_replaces


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("HTML page", b"\n<!DOCTYPE html>", b'{"seal": ""}'),
        ("list of scores", b'[{"session": "a"}]', b'{"seal": ""}'),
        ("image", b"\x89PNG\r\n", b"\x93NUMPY"),
        ("quality.json", b'{"url": "x"', b'{"seal": ""}'),
    ],
)
def test_only_its_like_is_replaced(tmp_path: Path, kind: str, good: bytes, bad: bytes) -> None:
    file = tmp_path / "sub" / "file"
    check_replaces(str(file), kind, [str(tmp_path / "source")])
    file.parent.mkdir()
    for content in (good, b""):
        file.write_bytes(content)
        check_replaces(str(file), kind)
    file.write_bytes(bad)
    with pytest.raises(ConfigError, match=f"is there and is no {kind}"):
        check_replaces(str(file), kind)
    (tmp_path / "link").symlink_to(file.parent)
    for source in (file.parent, tmp_path / "link", tmp_path):
        with pytest.raises(ConfigError, match="which is not written to"):
            check_replaces(str(file.with_name("new")), kind, [str(source)])
    with pytest.raises(ConfigError, match="which is not written to"):
        check_replaces("memory://b/data/x/y.html", kind, ["memory://b/data/"])


def test_commands_leave_a_dataset_alone(prepared: str, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    (tmp_path / "link").symlink_to(data)
    before = tree(data)
    manifest = str(data / "manifest.json")
    for words in (
        ["data", "quality", str(data), "--to", str(data)],
        ["data", "quality", str(tmp_path / "link"), "--to", str(data / "pages")],
        ["data", "peek", str(data), "--figure", manifest],
        ["data", "peek", str(data), "--figure", str(tmp_path / "link" / "trial.png")],
        ["report", str(data), "--to", manifest],
    ):
        out = CliRunner().invoke(cli, words)
        assert isinstance(out.exception, ConfigError), words
        assert tree(data) == before
