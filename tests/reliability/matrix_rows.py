"""The rows of the matrix: which command meets which damaged file, and what its result is.

A result is what a user goes on with: scores, weights, files. Where a damaged file leaves the result
as it was, no harm is done. A changed result without a word is what the matrix rules out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from world import HALF, NEWEST, OLDER, SESSIONS, Said, run

ONE, TWO = SESSIONS
Find = Callable[[Path], Path]


@dataclass(frozen=True)
class Artifact:
    """A file to damage, and another valid one of its kind.

    Attributes:
        find: the file, from the world's folder.
        other: another file of the same kind.
    """

    find: Find
    other: Find

    def older(self, root: Path) -> Path:
        """The same file of the earlier version of the world, or the one that took its place."""
        return self.find(root / OLDER)


def _files(path: str, other: str) -> Artifact:
    """Files at the same paths in every version of the world."""
    return Artifact(lambda root: root / path, lambda root: root / other)


def _movie(root: Path, trained: bool) -> Path:
    """The folder of a movie that the first session trains on, or is tested on."""
    session = json.loads((root / "prepared" / "sessions" / ONE / "manifest.json").read_text())
    tested = [video["movie"] for video in session["videos"] if video["tier"] == "test"]
    movie = session["trials"][0]["movie"] if trained else tested[0]
    return root / "prepared" / "movies" / movie


def _movies(path: str, trained: bool) -> Artifact:
    return Artifact(
        lambda root: _movie(root, trained) / path, lambda root: _movie(root, not trained) / path
    )


def _shards(tier: str, ending: str) -> Artifact:
    return _files(
        f"prepared/sessions/{ONE}/{tier}-00000{ending}",
        f"prepared/sessions/{TWO}/{tier}-00000{ending}",
    )


def _sessions(path: str) -> Artifact:
    return _files(f"prepared/sessions/{ONE}/{path}", f"prepared/sessions/{TWO}/{path}")


def _source(path: str, other: str) -> Artifact:
    return _files(f"recordings/{ONE}/{path}", f"recordings/{ONE}/{other}")


SOURCES = {
    "source: responses": _source("units/0.npy", "units/1.npy"),
    "source: video": _source("stimuli/0.npy", "stimuli/1.npy"),
}


def _dataset(tier: str) -> dict[str, Artifact]:
    """The files of the prepared dataset, of the tier that a command reads."""
    trained = tier == "train"
    return {
        "shard": _shards(tier, ".tar"),
        "shard index": _shards(tier, ".index.json"),
        "movie": _movies("c/0/0/0", trained),
        "movie index": _movies("index.json", trained),
        "session manifest": _sessions("manifest.json"),
        "dataset manifest": _files("prepared/manifest.json", f"{OLDER}/prepared/manifest.json"),
        "survey": _sessions("survey.json"),
    }


def _checkpoint() -> dict[str, Artifact]:
    newest, before = f"run/checkpoints/{NEWEST}", f"run/checkpoints/{HALF}"
    shared = "shared.safetensors"
    return {
        "checkpoint: shared": _files(f"{newest}/{shared}", f"{before}/{shared}"),
        "checkpoint: session": _files(
            f"{newest}/sessions/{ONE}.safetensors", f"{newest}/sessions/{TWO}.safetensors"
        ),
        "checkpoint: manifest": _files(f"{newest}/manifest.json", f"{before}/manifest.json"),
    }


def _registered(root: Path, name: str) -> Path:
    """A file of the registered model in MLflow's artifact store."""
    return sorted((root / "run").rglob(f"artifacts/**/{name}"))[0]


def _registry(name: str, other: str) -> Artifact:
    return Artifact(lambda root: _registered(root, name), lambda root: _registered(root, other))


REGISTRY = {
    "registry: shared": _registry("shared.safetensors", f"{ONE}.safetensors"),
    "registry: session": _registry(f"{ONE}.safetensors", f"{TWO}.safetensors"),
}


def tree_hash(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """SHA-256 of every file in a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


@dataclass(frozen=True)
class Command:
    """A command, what it reads, and its result.

    Attributes:
        arguments: of fmcortex, run in the world's folder.
        reads: the artifacts that the matrix damages for it.
        result: what the user goes on with, to compare; of the world after the command.
    """

    arguments: tuple[str, ...]
    reads: dict[str, Artifact]
    result: Callable[[Path, Said], object]

    def run(self, root: Path) -> tuple[Said, object]:
        """Run it; how it ended, and its result if it ended well."""
        said = run(root, *self.arguments)
        return said, self.result(root, said) if said.status == 0 else None


def _prepared_files(root: Path, said: Said) -> object:
    return tree_hash(root / "prepared")


def _scores(root: Path, said: Said) -> object:
    return json.loads((root / "new.json").read_text())


def _weights(folder: str, step: str) -> Callable[[Path, Said], object]:
    return lambda root, said: tree_hash(root / folder / "checkpoints" / step, "**/*.safetensors")


def _new_version(root: Path, said: Said) -> object:
    """The weights of all versions in the registry, whatever the folders are called."""
    return sorted(tree_hash(root / "run", "**/artifacts/**/*.safetensors").values())


def _text(root: Path, said: Said) -> object:
    """What it printed, but for its progress."""
    return [line for line in said.lines if not re.search(r"\d \w+/s\b", line)]


RUN = _checkpoint()

COMMANDS: dict[str, Command] = {
    "prep, again": Command(
        ("prep", "recordings", "--to", "prepared"), SOURCES | _dataset("train"), _prepared_files
    ),
    "data verify": Command(("data", "verify", "prepared"), _dataset("train"), _text),
    "data info": Command(("data", "info", "prepared"), _dataset("train"), _text),
    "data peek": Command(("data", "peek", "prepared"), _dataset("train"), _text),
    "data quality": Command(
        ("data", "quality", "prepared", "--to", "quality"), _dataset("test"), _text
    ),
    "individual": Command(
        ("individual", "--config", "run.yaml", "--session", ONE, "--output", "new"),
        _dataset("train"),
        _weights("new", NEWEST),
    ),
    "transfer": Command(
        ("transfer", "--config", "run.yaml", "--from", "run", "--session", ONE, "--output", "new"),
        _dataset("train") | RUN,
        _weights("new", NEWEST),
    ),
    "evaluate": Command(
        ("evaluate", "run", "--data", "prepared", "--session", ONE, "--to", "new.json"),
        _dataset("test") | RUN,
        _scores,
    ),
    "evaluate models:/": Command(
        (
            "evaluate",
            "models:/cortex@best",
            *("--tracking-uri", "sqlite:///run/mlflow.db"),
            *("--data", "prepared", "--session", ONE, "--to", "new.json"),
        ),
        REGISTRY,
        _scores,
    ),
    "register": Command(("register", "run", "--name", "other"), RUN, _new_version),
}
