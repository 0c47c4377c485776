"""One cell of the matrix: damage a file in a small world, run a command, and judge what it did."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from damage import DAMAGES
from matrix_rows import COMMANDS
from world import Said, make_world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
Cell = tuple[str, str, str]
#: Every command, artifact and damage.
CELLS: list[Cell] = [
    (command, artifact, damage)
    for command, entry in COMMANDS.items()
    for artifact in entry.reads
    for damage in DAMAGES
]


class World:
    """The world, and how the commands end in it while nothing is damaged."""

    def __init__(self, folder: Path) -> None:
        self.root, self._pristine = folder / "world", folder / "pristine"
        make_world(self.root)
        shutil.copytree(self.root, self._pristine, symlinks=True)
        self._whole: dict[str, tuple[Said, object]] = {}

    def restore(self) -> Path:
        """Put everything back as it was made."""
        shutil.rmtree(self.root)
        shutil.copytree(self._pristine, self.root, symlinks=True)
        return self.root

    def whole(self, command: str) -> tuple[Said, object]:
        """How a command ends, and its result, while nothing is damaged."""
        if command not in self._whole:
            self._whole[command] = COMMANDS[command].run(self.restore())
            said = self._whole[command][0]
            assert said.status == 0, said.text
        return self._whole[command]


def _bare(line: str) -> str:
    """A line without what changes from run to run: ids, times and speeds."""
    return re.sub(r"[0-9a-f]{12,}|\d+\.\d+|\d+ s\b", "#", line)


def _names(file: Path) -> set[str]:
    """What a message may call a file by: its name, its session's, its movie's, its checkpoint's."""
    folders = {"world", "prepared", "recordings", "run", "halted", "c", "0", "sessions", "movies"}
    return {part.name for part in (file, *file.parents[:5])} - folders


def outcome(world: World, command: str, artifact: str, damage: str) -> str:
    """What the command did: `error`, `said`, `repaired`, `unused`.

    Or, at fault, `SILENT`: another result without a word; `VAGUE`: no error that names the file;
    `TRACEBACK`.
    """
    before, result = world.whole(command)
    root = world.restore()
    there = COMMANDS[command].reads[artifact]
    file = there.find(root)
    other, older = there.other(root), there.older(root)
    content = file.read_bytes()
    DAMAGES[damage](file, other, older)
    harmed = file.read_bytes() if file.exists() else None
    assert harmed != content
    said, now = COMMANDS[command].run(root)
    if "Traceback" in said.text:
        return "TRACEBACK"
    usual = {_bare(line) for line in before.lines}
    # How often progress is shown depends on the machine.
    progress = re.compile(r"^\w+: \w+ \d+/\d+")
    heard = [line for line in said.lines if _bare(line) not in usual and not progress.search(line)]
    if said.status:
        named = any(name in line for line in heard for name in _names(file))
        return "error" if named and "\nerror: " in f"\n{said.text}" else "VAGUE"
    if now != result:
        return "said" if heard else "SILENT"
    if file.exists() and file.read_bytes() == content:
        return "repaired"
    return "said" if heard else "unused"


def documented() -> dict[tuple[str, str, str], str]:
    """The cells of the table in docs/reliability.md."""
    cells, damages = {}, list(DAMAGES)
    for line in PAGE.read_text().splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")]
        if line.startswith("| `") and len(columns) == 2 + len(damages):
            for damage, cell in zip(damages, columns[2:], strict=True):
                cells[columns[0].strip("`"), columns[1], damage] = cell
    return cells
