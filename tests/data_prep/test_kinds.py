"""Sessions of different frame rate, size or normalisation: not in one dataset, nor in one run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.config import load_config
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError
from fmcortex.training.fit import plan_of

ONE, TWO = "mouse01-1-1", "mouse02-1-1"


def settings(**values: object) -> PrepSettings:
    return PrepSettings.model_validate(values)


def test_a_session_of_another_kind_is_refused_before_anything_is_written(
    recordings: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    prepare(str(recordings / ONE), str(to))
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    for other, message in (
        ({"response_normalisation": "none"}, rf"{ONE} and {TWO} are of different response norm"),
        ({"frame_rate": 24.0}, r"different frame rate \(30 Hz, 24 Hz\); prepare all of them alike"),
        ({"height": 9, "width": 16}, r"different size \(18 x 32 pixels, 9 x 16 pixels\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(str(recordings / TWO), str(to), settings(**other))
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_asked_for_they_are_mixed_and_trained_together_if_asked_for_again(
    recordings: Path, tmp_path: Path
) -> None:
    to = str(tmp_path / "to")
    prepare(str(recordings / ONE), to)
    prepare(str(recordings / TWO), to, settings(response_normalisation="none", mixed=True))
    prepare(str(recordings / ONE), to)  # it is there as it is asked for
    words = [f"data.url={to}", "data.frames=16", "training.burnin=4"]
    with pytest.raises(ConfigError, match=r"\(mean, none\); choose .* or set data\.mixed=true"):
        plan_of(load_config(None, words), open_dataset(to))
    assert plan_of(load_config(None, [*words, "data.mixed=true"]), open_dataset(to)).sessions
    alone = load_config(None, [*words, f"data.sessions=[{TWO}]"])
    assert plan_of(alone, open_dataset(to)).sessions == [TWO]


def test_videos_of_another_size_as_they_are(recordings: Path, tmp_path: Path) -> None:
    """Known only once a session was read: the first one counts."""
    source, small = tmp_path / "source", tmp_path / "small"
    shutil.copytree(recordings / ONE, source / ONE)
    prepare(str(source), str(small), settings(height=9, width=16))
    with pytest.raises(ConfigError, match=r"different size \(9 x 16 pixels, 18 x 32 pixels\)"):
        prepare(str(recordings / TWO), str(small))
    assert list(open_dataset(str(small)).sessions) == [ONE]
    assert not (small / "sessions" / TWO).exists()
