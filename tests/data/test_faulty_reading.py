"""Training through a network that fails, as the environment sets how long it is put up with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule, fault_proxy

from data_prep.job import prepare
from fmcortex import storage
from fmcortex.config import load_config
from fmcortex.errors import DataError, StorageError
from fmcortex.training.fit import fit

SESSION = "mouse01-1-1"


@pytest.fixture
def local(recordings: Path, tmp_path: Path) -> Path:
    """A prepared dataset of one session."""
    source = shutil.copytree(recordings / SESSION, tmp_path / "source" / SESSION)
    prepare(str(source), str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def proxy(s3_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    import s3fs

    for name, value in {"FMCORTEX_STORAGE_DEADLINE": "0.5", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with fault_proxy(s3_server.host, s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def remote(local: Path, proxy: FaultProxy, s3: str) -> str:
    """The same dataset on the store."""
    for path in local.rglob("*"):
        if path.is_file():
            name = path.relative_to(local).as_posix()
            storage.write_bytes(storage.join(s3, "data", name), path.read_bytes())
    return storage.join(s3, "data")


#: The loss and the norm of the gradient of a step.
Step = tuple[float, float]
Train = Callable[[str], list[Step]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Four steps on the dataset at a URL."""
    words = f"output={tmp_path / 'run'} data.frames=16 data.batch=2"
    words += " model.preset=tiny model.retina_height=12 model.retina_width=18 training.burnin=4"
    words += " training.epochs=1 training.steps_per_epoch=4 training.warmup_epochs=0"

    def steps(url: str) -> list[Step]:
        result = fit(load_config(None, [*words.split(), f"data.url={url}"]))
        return [(report.losses[0], report.norms["all"]) for report in result.steps]

    return steps


def test_slow_cut_and_damaged_answers_change_no_step(
    local: Path, remote: str, proxy: FaultProxy, train: Train
) -> None:
    expected = train(str(local))
    proxy.breaks(
        # Of a movie: in a tar it could hit the padding, which changes nothing.
        Rule("flip", method="GET", path="/c/0/0/0"),
        Rule("trickle", method="GET", path=r"\.tar"),
        Rule("truncate", method="GET", path="manifest.json"),
        Rule("reset_body", method="GET", path="manifest.json", skip=1),
        Rule("slow_down", method="GET", path="index.json"),
        Rule("hang", method="GET", path=r"\.tar", skip=1),
        Rule("reset", method="HEAD"),
    )
    assert train(remote) == expected
    assert len(set(expected)) == 4
    assert set(proxy.counts.values()) == {1}
    assert len(proxy.counts) == 7


@pytest.mark.parametrize("fault", ["reset", "slow_down", "hang"])
def test_a_store_that_is_down_is_one_line(
    remote: str,
    proxy: FaultProxy,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setenv("FMCORTEX_STORAGE_ATTEMPTS", "2")
    proxy.breaks(Rule(fault, times=None))
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        train(remote)
    assert time.monotonic() - began < 20  # s3fs alone would wait for twice 15 s
    text = str(caught.value)
    assert text.startswith(f"{remote}/manifest.json: cannot read: ")
    assert text.endswith("(tried 2 times)")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["manifest.json", f"sessions/{SESSION}/manifest.json"])
def test_a_manifest_that_is_wrong_on_the_store_is_named(
    remote: str, train: Train, name: str
) -> None:
    url = storage.join(remote, name)
    content = storage.read_bytes(url)
    storage.write_bytes(url, content.replace(b"1", b"2", 1))
    with pytest.raises(DataError) as caught:
        train(remote)
    assert str(caught.value).startswith(f"{url}: ")
    assert "\n" not in str(caught.value)
    assert "checksum" in str(caught.value)
