"""A tiny prepared dataset of one session, and a folder of cached ranges."""

from pathlib import Path

import pytest
from cached import CONTENT
from tiny_recording import write_tiny

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex import storage


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The folder of a dataset with session "s1": 6 training trials in 2 shards, one test video."""
    folder = write_tiny(tmp_path / "source")
    prepare(str(folder), str(tmp_path / "prepared"), PrepSettings(trials_per_shard=3))
    return tmp_path / "prepared"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The file that ranges are read of; a local one, so that all processes see it."""
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that were asked of the storage, in order."""
    seen: list[tuple[int, int]] = []
    read = storage.read_range

    def look(url: str, start: int, end: int) -> bytes:
        seen.append((start, end))
        return read(url, start, end)

    monkeypatch.setattr(storage, "read_range", look)
    return seen
