"""A path is literal: whatever a name holds, storage touches what has that name and nothing else."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmcortex import storage
from fmcortex.cli import cli
from fmcortex.errors import ConfigError, StorageError
from fmcortex.training.checkpoint import MANIFEST

#: What shells, URLs and fsspec take for something else, and some of what nobody does.
ALPHABET = "[]?*{}!#%:;&+=@,~'\"()$^| -_.äß日本" + "abz019"
NAMES = st.text(ALPHABET, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and name == name.strip()
)
#: Neighbours that patterns made of the names below would fit.
NEIGHBOURS = ("lr0", "lr1", "a", "ab", "abc", "x?y", "%41", "b c")
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of an S3 server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        name = f"literal-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def check_name_is_literal(root: str, name: str) -> None:
    """Write, list, read and remove a folder of that name among neighbours."""
    neighbours = [other for other in NEIGHBOURS if other != name]
    for other in neighbours:
        storage.write_bytes(storage.join(root, other, "file"), other.encode())
    folder = storage.join(root, name)
    assert not storage.exists(folder)
    files = {"file": b"own", f"deep/{name}/x": b"deep", name: b"again"}
    for path, content in files.items():
        storage.write_bytes(storage.join(folder, path), content)
    assert storage.names(root) == sorted([name, *neighbours])
    assert storage.names(folder) == sorted({"file", "deep", name})
    assert storage.file_sizes(folder) == {path: len(c) for path, c in files.items()}
    assert storage.read_bytes(storage.join(folder, name)) == b"again"
    assert storage.read_range(storage.join(folder, "deep", name, "x"), 1, 3) == b"ee"
    assert storage.size(storage.join(folder, "file")) == 3
    storage.remove(storage.join(folder, name))
    assert not storage.exists(storage.join(folder, name))
    assert storage.exists(storage.join(folder, "file"))
    storage.remove(folder)
    assert not storage.exists(folder)
    assert storage.file_sizes(folder) == {}
    storage.remove(folder)
    for other in neighbours:
        assert storage.read_bytes(storage.join(root, other, "file")) == other.encode()


@FEW
@given(NAMES)
@example("lr[01]")
@example("a*")
@example("?")
@example("a::b")
@example("x?versionId")
@example("#1")
@example("50%")
@example("{a,b}")
def test_names_on_the_local_disk(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_name_is_literal(folder, name)
        check_name_is_literal(f"file://{folder}/u", name)


@settings(FEW, max_examples=8)
@given(NAMES)
@example("lr[01]")
@example("a*")
@example("?")
@example("a::b")
@example("#1")
@example("50%")
def test_names_on_s3(bucket: str, name: str) -> None:
    check_name_is_literal(f"{bucket}/{uuid.uuid4().hex}", name)


@FEW
@given(NAMES)
@example("lr[01]")
def test_names_in_memory(name: str) -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    check_name_is_literal("memory://literal", name)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_pruning_a_run_whose_name_is_a_pattern(kind: str, bucket: str, tmp_path: Path) -> None:
    from fmcortex.training.checkpoint import list_checkpoints, prune, step_folder

    root = str(tmp_path) if kind == "local" else f"{bucket}/runs"
    runs = [storage.join(root, f"sweep-lr{end}") for end in ("[01]", "0", "1")]
    for run in runs:
        for step in (10, 20):
            storage.write_bytes(storage.join(step_folder(run, step), MANIFEST), b"{}")
    prune(runs[0], 1)
    assert list_checkpoints(runs[0]) == [step_folder(runs[0], 20)]
    for run in runs[1:]:
        assert len(list_checkpoints(run)) == 2


def test_a_version_in_a_url_is_not_written_to(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/model", b"x")
    for change in (lambda url: storage.write_bytes(url, b"y"), storage.remove):
        with pytest.raises(StorageError, match="names a version"):
            change(f"{bucket}/model?versionId=abc")
    assert storage.read_bytes(f"{bucket}/model") == b"x"


def test_local_names_that_look_like_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file:x", "data:y", "a::b", "10:20"):
        storage.write_bytes(name, name.encode())
        assert (tmp_path / name).read_bytes() == name.encode()
    storage.write_bytes("./a/../b", b"z")
    assert sorted(os.listdir(tmp_path)) == sorted(["file:x", "data:y", "a::b", "10:20", "a", "b"])


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    storage.remove(str(tmp_path / "link"))
    storage.remove(str(tmp_path / "broken"))
    assert sorted(os.listdir(tmp_path)) == ["real"]
    assert (tmp_path / "real" / "file").read_bytes() == b"x"


@pytest.mark.parametrize("empty", ["", "file://", "local://", "s3://", "memory://"])
def test_an_empty_location_is_refused(empty: str) -> None:
    for ask in (storage.exists, storage.absolute, storage.names, storage.remove, storage.is_local):
        with pytest.raises(StorageError, match=r"is empty|no bucket or folder"):
            ask(empty)
    with pytest.raises(StorageError, match="NUL"):
        storage.exists("a\0b")


def _string_options() -> Iterator[tuple[list[str], str]]:
    """Every command with each of its options and arguments that take text."""
    import click

    def walk(group: click.Group, words: list[str]) -> Iterator[tuple[list[str], click.Command]]:
        for name, found in group.commands.items():
            if isinstance(found, click.Group):
                yield from walk(found, [*words, name])
            else:
                yield [*words, name], found

    for words, found in walk(cli, []):
        for parameter in found.params:
            if isinstance(parameter, click.Option):
                if parameter.is_flag or not isinstance(
                    parameter.type, (click.types.StringParamType, click.Path)
                ):
                    continue
                yield words, parameter.opts[0]
            elif isinstance(parameter, click.Argument):
                yield words, ""


@pytest.mark.parametrize("value", ["", "memory://x"])
@pytest.mark.parametrize(
    ("words", "option"), [pytest.param(w, o, id=" ".join([*w, o])) for w, o in _string_options()]
)
def test_no_command_takes_an_empty_or_passing_place(
    words: list[str], option: str, value: str
) -> None:
    import click

    found: click.Command = cli
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    given: list[str] = []
    for parameter in found.params:
        needed = isinstance(parameter, click.Argument) or (
            parameter.required and option not in parameter.opts
        )
        if needed:
            name = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            own = isinstance(parameter, click.Argument) and not option
            given += [*name, value if own else __file__]
    if option:
        given += [option, value]
    out = CliRunner().invoke(cli, [*words, *given])
    assert out.exit_code != 0
    assert isinstance(out.exception, (ConfigError, SystemExit)), out.exception
    said = str(out.exception)
    if isinstance(out.exception, SystemExit):  # refused by the type of the option
        assert "Invalid value" in out.output
    else:
        assert "is empty" in said or "is gone when the command ends" in said
