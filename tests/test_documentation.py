"""Everything that the documentation tells a user to type works, as far as can be told at once."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from documented import OWN, ROOT, Reader, blocks, commands, examples, header

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """In a folder with the project's configurations and what a reader brings along."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, content in OWN.items():
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_links_of_documents(document: Path, reader: Reader) -> None:
    reader.follow(document.read_text())
    assert not reader.problems


def test_examples_in_the_help(reader: Reader) -> None:
    """All of them, in the order of a user's way, are accepted as printed."""
    for name in ("recordings", "prepared"):  # the first commands make them
        (reader.folder / name).rmdir()
    found = dict(examples())
    first = ("simulate", "prep", "pretrain", "transfer", "individual", "evaluate")
    order = [f"fmcortex {name}" for name in first]
    reader.made.add("demo")  # configs/sweep.yaml goes with the demo
    for name in (*order, *sorted(set(found) - set(order))):
        text = found[name]
        assert text.startswith(name), name
        lines = list(commands(text))
        assert lines, name
        for words in lines:
            reader.type(words)
    assert not reader.problems


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "slurm" / "pretrain.sbatch"],
    ids=lambda path: path.name,
)
def test_commands_in_the_heads_of_files(path: Path, reader: Reader) -> None:
    text = header(path)
    reader.made.add("demo")
    for words in commands(text):
        reader.type(words)
    assert not reader.problems
    assert text or path.name == "demo.yaml"  # which the demo itself runs


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("```\nfmcortex prep recordings --two prepared\n```", "No such option"),
        ("```\nfmcortex pretend\n```", "No such command"),
        ("```\nfmcortex prep recordings\n```", "Missing option"),
        ("```\nfmcortex evaluate runs/none --data s3://b/d\n```", "there is no runs/none"),
        ("```\nfmcortex pretrain --config configs/full.yaml\n```", "full.yaml: cannot read"),
        ("```\nfmcortex pretrain --set training.lrr=1\n```", "unknown key training.lrr"),
        ("```\nfmcortex prep recordings --to x --set heigth=3\n```", "unknown key heigth"),
        ("```\nfmcortex evaluate s3://b/r --data s3://b/d --burnin -5\n```", "--burnin"),
        ("`fmcortex curves RUN --too x`", "No such option"),
        ("`fmcortex data look`", "No such command"),
        ("```\nfmcortex submit slurm pretrain --sett x=1\n```", "No such option"),
        ("```\nfmcortex submit k8s --set data.url=s3://b/d --output s3://b/r\n```", "tracking.uri"),
        ("```\nsbatch slurm/pretrain.sbatch --config configs/full.yaml\n```", "full.yaml"),
        ("```\nsbatch slurm/pretend.sbatch\n```", "no script"),
        ("```\nmake dmeo\n```", "no rule for dmeo"),
        ("`make demo OUTPT=x`", "no variable OUTPT"),
        ('`pip install "fmcortex[nwb]"`', "is not the checkout"),
        ('`pip install ".[nwbb]"`', "no extra nwbb"),
        ("[x](docs/none.md)", "a link to docs/none.md"),
        ('```json\n{"layout": "signals", "version": 1}\n```', "SessionFile"),
        ("```python\nfrom x import\n```", "Python"),
    ],
)
def test_a_wrong_line_is_found(planted: str, said: str, reader: Reader) -> None:
    reader.follow(f"Some text.\n\n{planted}\n")
    assert any(said in problem for problem in reader.problems), reader.problems


def test_messages_tell_of_no_package_that_is_on_no_index() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    seen = 0
    for package in ("fmcortex", "cluster", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "fmcortex[" not in text, path
            for name in re.findall(r"pip install -e '\.\[(\w+)\]'", text):
                assert name in extras, path
                seen += 1
    assert seen >= 4


SMALL = """
model: {preset: tiny, streams: 1, retina_height: 12, retina_width: 18}
data: {url: demo/prepared, sessions: [mouse01-1-1, mouse02-1-1], frames: 16, batch: 2}
training: {epochs: 4, steps_per_epoch: 2, warmup_epochs: 1, burnin: 4}
tracking: {validate_every: 0}
"""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_of_documents_runs(
    document: Path, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a small prepared dataset in the place of the demo's, and a small model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    for place in ("demo/prepared", "prepared"):
        (tmp_path / place).symlink_to(prepared)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(SMALL)
    for language, block in blocks(document.read_text()):
        if language == "python":
            found: dict[str, Any] = {}
            exec(compile(block, str(document), "exec"), found)
            if "responses" in found:
                assert found["responses"].shape[1] == 7  # of the first mouse's neurons


def test_what_the_readme_names_can_be_imported() -> None:
    for text in re.findall(r"`((?:fmcortex|data_prep)\.[\w.]+)", (ROOT / "README.md").read_text()):
        module, _, name = text.rpartition(".")
        assert hasattr(importlib.import_module(module), name), text
