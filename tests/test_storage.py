"""Storage on any URL: writes are whole or not at all, errors name the place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from fmcortex import storage
from fmcortex.errors import StorageError


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL on a file system that is not local."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield "memory://bucket"
    fs.store.clear()


@pytest.fixture(params=["local", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    """A folder, as a path and as URLs."""
    return {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": memory}[request.param]


def test_write_and_read(place: str) -> None:
    url = storage.join(place, "deep", "er", "x.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two\x00")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"two\x00"
    assert storage.size(url) == 4
    assert storage.names(storage.join(place, "deep", "er")) == ["x.bin"]


def test_json(place: str) -> None:
    url = storage.join(place, "x.json")
    storage.write_json(url, {"b": [1, None], "a": "µ"})
    assert storage.read_json(url) == {"b": [1, None], "a": "µ"}
    assert storage.read_bytes(url).endswith(b"}\n")
    storage.write_bytes(url, b'{"a": 1')
    with pytest.raises(StorageError, match=r"x.json: not valid JSON: .*line 1"):
        storage.read_json(url)
    storage.write_bytes(url, b"\xff\xfe\x00\x80")
    with pytest.raises(StorageError, match=r"x.json: not valid JSON"):
        storage.read_json(url)


def test_remove(place: str) -> None:
    storage.write_bytes(storage.join(place, "folder/a/b"), b"x")
    storage.write_bytes(storage.join(place, "folder/c"), b"x")
    storage.remove(storage.join(place, "folder/c"))
    assert not storage.exists(storage.join(place, "folder/c"))
    assert storage.exists(storage.join(place, "folder/a/b"))
    storage.remove(storage.join(place, "folder"))
    assert not storage.exists(storage.join(place, "folder"))
    storage.remove(storage.join(place, "folder"))  # there is nothing: fine


def test_listing(place: str) -> None:
    for path, content in (("b/x", b"12"), ("b/c/y", b""), ("a", b"3")):
        storage.write_bytes(storage.join(place, "folder", path), content)
    assert storage.names(storage.join(place, "folder")) == ["a", "b"]
    assert storage.names(storage.join(place, "folder/b") + "/") == ["c", "x"]
    assert storage.file_sizes(storage.join(place, "folder")) == {"a": 1, "b/c/y": 0, "b/x": 2}
    assert storage.names(storage.join(place, "none")) == []
    assert storage.file_sizes(storage.join(place, "none")) == {}
    assert storage.names(storage.join(place, "folder/a")) == []  # a file


@pytest.mark.parametrize("read", [storage.read_bytes, storage.size])
def test_what_is_not_there(place: str, read: Callable[[str], object]) -> None:
    url = storage.join(place, "none")
    with pytest.raises(StorageError) as caught:
        read(url)
    assert str(caught.value) == f"{url}: cannot read: no such file or folder"


@pytest.mark.parametrize("at", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "x"
    storage.write_bytes(str(path), b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, at, full)
    with pytest.raises(StorageError, match="x: cannot write: No space left on device"):
        storage.write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_never_sees_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    storage.write_bytes(str(path), b"old")
    seen = []
    replace = os.replace

    def look(source: str, target: str) -> None:
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    storage.write_bytes(str(path), b"new")
    # The whole new content lay beside the old one, in the same folder, before it took its place.
    assert seen == [(b"old", b"new", tmp_path)]
    assert path.read_bytes() == b"new"


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="file/inside: cannot write: "):
        storage.write_bytes(str(tmp_path / "file" / "inside"), b"x")
    with pytest.raises(StorageError, match="cannot read: Is a directory"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="nosuch://x: cannot open this location"):
        storage.read_bytes("nosuch://x")


def test_reason_keeps_other_errors() -> None:
    with (
        pytest.raises(StorageError, match="u: cannot write: PermissionError"),
        storage.reason("u", "write"),
    ):
        raise PermissionError
    with pytest.raises(ZeroDivisionError), storage.reason("u", "write"):
        raise ZeroDivisionError


def test_a_lost_connection_is_one_line(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})

    def fail(*args: object, **options: object) -> None:
        raise lost("Could not connect\n  to the endpoint")

    fs = fsspec.filesystem("memory")
    for name in ("exists", "open", "pipe_file"):
        monkeypatch.setattr(fs, name, fail)
    why = "Could not connect to the endpoint"
    with pytest.raises(StorageError, match=f"{memory}/x: cannot read: {why}$"):
        storage.exists(f"{memory}/x")
    with pytest.raises(StorageError, match=f"{memory}/x: cannot read: {why}$"):
        storage.read_bytes(f"{memory}/x")
    with pytest.raises(StorageError, match=f"{memory}/x: cannot write: {why}$"):
        storage.write_bytes(f"{memory}/x", b"")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://b/d/", "a", "b"), "s3://b/d/a/b"),
        (("/data", "/a/", "b/"), "/data/a/b"),
        (("rel", "a"), "rel/a"),
        (("/", "a"), "/a"),
        (("memory://", "a"), "memory://a"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_absolute(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/x/") == str(tmp_path / "runs/x")
    assert storage.absolute(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert storage.absolute(f"{memory}/x/") == "memory://bucket/x"
    assert (storage.is_local("runs"), storage.is_local(memory)) == (True, False)


def test_sha256() -> None:
    assert storage.sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
