"""Run every cell and write what happened into the table of docs/reliability.md.

python tests/reliability/write_matrix.py [COMMAND ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from damage import DAMAGES
from matrix import CELLS, PAGE, World, documented, outcome
from matrix_rows import COMMANDS


def main() -> None:
    """Run the cells of the named commands, or of all, and rewrite the table."""
    chosen = sys.argv[1:] or list(COMMANDS)
    cells = documented()
    if unknown := set(chosen) - set(COMMANDS):
        sys.exit(f"no such row: {', '.join(unknown)} (there are: {', '.join(COMMANDS)})")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for cell in CELLS:
            if cell[0] in chosen:
                cells[cell] = outcome(world, *cell)
                print(*cell, cells[cell], sep=" | ", flush=True)
    lines = PAGE.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("| command |"))
    rows = [
        f"| `{command}` | {artifact} | "
        + " | ".join(cells.get((command, artifact, damage), "?") for damage in DAMAGES)
        + " |"
        for command, entry in COMMANDS.items()
        for artifact in entry.reads
    ]
    PAGE.write_text("\n".join([*lines[: at + 2], *rows]) + "\n")


if __name__ == "__main__":
    main()
