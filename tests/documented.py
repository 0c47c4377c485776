"""What documentation tells a user to type, and whether it would work."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from data_prep.deconvolution import DeconvolutionSettings
from data_prep.readers.nwb_schema import NwbSession
from data_prep.readers.signals_schema import SessionFile
from data_prep.settings import PrepSettings
from data_prep.simulator.settings import SimulationSettings
from fmcortex.cli import cli
from fmcortex.commands.base import read_config
from fmcortex.config import validated, with_overrides
from fmcortex.errors import FmcortexError
from fmcortex.scaling.sweep import load_sweep

ROOT = Path(__file__).parents[1]

#: Files and folders that a reader brings along, with what stands for them here.
OWN = {
    "recordings": None,
    "prepared": None,
    "stimulus.avi": "",
    "run.yaml": "training: {epochs: 20}\n",
    "sweep.yaml": "base: run.yaml\nmice: [1, 2]\n",
    "sessions.csv": "session,neurons,minutes,scan_hz\nm-1,7000,60,6.3\n",
}
#: Settings of the commands whose --set is not a run's.
KINDS: dict[str, type] = {
    "simulate": SimulationSettings,
    "prep": PrepSettings,
    "deconvolve": DeconvolutionSettings,
    "data plan": PrepSettings,
}
#: Parameters that name something to read, and something to write.
READ = ("source", "checkpoint", "url", "runs", "path", "file", "table", "video", "dataset")
WRITTEN = ("to", "output", "figures", "figure")
#: Other programs, whose commands are not looked into.
OTHERS = ("kubectl", "source", "git", "cd", "export", "apt")


@dataclass
class Reader:
    """Someone who follows a document from its top to its end.

    Attributes:
        folder: the working folder, which has the project's configs/ and what is in OWN.
        made: what the commands so far have written.
        problems: what would not have worked.
    """

    folder: Path
    made: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def follow(self, text: str) -> None:
        """Type what a document in Markdown says."""
        for language, block in blocks(text):
            if language == "":
                for words in commands(block):
                    self.type(words)
            elif language == "json":
                self._json(block)
            elif language == "python":
                self._python(block)
            else:
                self.problems.append(f"a block of {language}: nothing looks into it")
        for span in re.findall(r"`((?:fmcortex|make|pip install) [^`]+)`", text):
            self.type(shlex.split(span), mention=True)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            if not ((ROOT / target).exists() or (ROOT / "docs" / target).exists()):
                self.problems.append(f"a link to {target}, which is not there")
        if "fmcortex[" in re.sub(r"/tmp/fmcortex\[", "", text):
            self.problems.append("fmcortex[...] is on no package index")

    def type(self, words: list[str], mention: bool = False) -> None:
        """Type one command; of a mere mention parameters may be missing."""
        words = [word for word in words if word != "..."]
        line = shlex.join(words)
        try:
            match words:
                case ["fmcortex", *rest]:
                    stand_ins = {"N": "1", "TABLE.csv": "sessions.csv"}
                    self._fmcortex([stand_ins.get(word, word) for word in rest], mention)
                case ["make", *targets]:
                    self._make(targets)
                case ["pip", "install", *rest] | ["RUN", "pip", "install", *rest]:
                    self._pip(rest)
                case ["sbatch", *rest]:
                    self._sbatch(rest)
                case [program, *_] if program in OTHERS or program.isupper():
                    pass
                case _:
                    raise ValueError("what is this?")
        except (click.ClickException, FmcortexError, ValueError, KeyError) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else error
            self.problems.append(f"{line}: {said}")

    def _fmcortex(self, words: list[str], mention: bool) -> None:
        found = click.Context(cli, info_name="fmcortex")
        path = []
        if words in (["--help"], ["--version"]):
            return
        while isinstance(found.command, click.Group):
            name, command, words = found.command.resolve_command(found, words)
            assert command is not None
            path.append(str(name))
            if mention and not words:
                return
            try:
                group = isinstance(command, click.Group)
                found = (
                    click.Context(command, parent=found, info_name=name)
                    if group
                    else command.make_context(name, list(words), parent=found)
                )
            except click.MissingParameter:
                if mention:
                    return
                raise
        self._settings(" ".join(path), found.params, words)
        for key, value in found.params.items():
            for one in value if isinstance(value, tuple) else (value,):
                if key in READ and isinstance(one, str):
                    self._read(one)
        for key, value in found.params.items():
            if value and (key in WRITTEN or (path == ["simulate"] and key == "folder")):
                self.made.add(str(value).rstrip("/"))

    def _settings(self, command: str, given: dict[str, Any], words: list[str]) -> None:
        overrides = given.get("overrides", ())
        if command.startswith("submit "):
            out = CliRunner().invoke(cli, [*command.split(), "--dry-run", *words])
            if out.exit_code:
                raise ValueError(str(out.exception) if out.exit_code == 1 else out.output)
        elif command in KINDS:
            values = {k: v for k, v in given.items() if k in KINDS[command].model_fields}  # type: ignore[attr-defined]
            if command == "data plan":
                values = {"height": 144, "width": 256}
            validated(KINDS[command], with_overrides(values, overrides, KINDS[command]), command)
        elif command == "sweep":
            load_sweep(given["file"], overrides)
        elif "overrides" in given:
            path = given["path"]
            config = read_config(
                None if path and path.isupper() else path, given.get("output"), overrides
            )
            if config.data.url and any(text.startswith("data.url=") for text in overrides):
                self._read(config.data.url)

    def _read(self, name: str) -> None:
        """Something to read: there, made before, or elsewhere."""
        name = name.rstrip("/")
        if "://" in name or name.startswith(("models:/", "/shared/", "/mnt/")):
            return
        if re.fullmatch(r"[A-Z]+(\.csv)?", name):  # FOLDER, RUN, TABLE.csv
            return
        if (self.folder / name).exists() or any(
            one == name
            or one.startswith(f"{name}/")
            or name.startswith(f"{one}/")
            or fnmatch(one, name)
            for one in self.made
        ):
            return
        raise ValueError(f"there is no {name}")

    def _make(self, targets: list[str]) -> None:
        text = (ROOT / "Makefile").read_text()
        rules = re.findall(r"^([a-z-]+):", text, re.MULTILINE)
        for target in targets:
            name, set_, _ = target.partition("=")
            if set_ and f"$({name}" not in text:
                raise ValueError(f"no variable {name}")
            if not set_ and target not in rules:
                raise ValueError(f"no rule for {target}")
            if target == "demo":
                self.made.add("demo")

    def _pip(self, words: list[str]) -> None:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for word in words:
            extras = re.fullmatch(r"(?:\.|/tmp/fmcortex)\[(.+)\]", word)
            if extras:
                for name in extras[1].split(","):
                    if name not in known["optional-dependencies"]:
                        raise ValueError(f"there is no extra {name}")
            elif not word.startswith("-") and word not in (".", "hdf5plugin"):
                raise ValueError(f"{word} is not the checkout")

    def _sbatch(self, words: list[str]) -> None:
        rest = list(words)
        while rest and rest[0].startswith("-"):
            rest.pop(0)
        if not rest or not (ROOT / rest[0]).exists():
            raise ValueError(f"no script {rest[:1]}")
        command = rest[1:] if rest[1:] and not rest[1].startswith("-") else ["pretrain", *rest[1:]]
        self._fmcortex(command, mention=False)

    def _json(self, block: str) -> None:
        kind = SessionFile if '"layout"' in block else NwbSession
        try:
            validated(kind, json.loads(block), kind.__name__)
        except (ValueError, FmcortexError) as error:
            self.problems.append(f"JSON: {error}")

    def _python(self, block: str) -> None:
        try:
            ast.parse(block)
        except SyntaxError as error:
            self.problems.append(f"Python: {error}")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a document, each with its language."""
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        yield found[2], found[3]


def commands(block: str) -> Iterator[list[str]]:
    """The commands in a block; a block that begins with none, such as a tree of files, has none."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    heads = ("fmcortex", "make", "pip", "sbatch", "FROM", *OTHERS)
    if not lines or lines[0].removeprefix("$ ").split()[0] not in heads:
        return
    for line in lines:
        yield shlex.split(line.removeprefix("$ "), comments=True)


def examples() -> Iterator[tuple[str, str]]:
    """Every command, with the example in its help."""

    def below(group: click.Group, path: str) -> Iterator[tuple[str, str]]:
        for name, one in group.commands.items():
            if isinstance(one, click.Group):
                yield from below(one, f"{path} {name}")
            else:
                yield f"{path} {name}", one.epilog or ""

    return below(cli, "fmcortex")


def header(path: Path) -> str:
    """The commands in the comments at the top of a configuration or script."""
    lines = [
        line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    found = re.findall(r"^ +((?:fmcortex|sbatch) .+)$", text, re.MULTILINE)
    return "\n".join(found)
