"""The ways in which a file is damaged in the matrix of docs/reliability.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

#: What is done to a file, given another valid file of its kind and an older version of itself.
Damage = Callable[[Path, Path, Path], None]


def flip(file: Path, other: Path, older: Path) -> None:
    """One bit of the byte in the middle is inverted, as on a failing disk."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file: Path, other: Path, older: Path) -> None:
    """The second half is missing, as after a full disk or a copy that broke off."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def delete(file: Path, other: Path, older: Path) -> None:
    """The file is gone."""
    file.unlink()


def swap(file: Path, other: Path, older: Path) -> None:
    """Another valid file of its kind lies in its place, as after a wrong copy."""
    assert file.read_bytes() != other.read_bytes()
    shutil.copyfile(other, file)


def edit(file: Path, other: Path, older: Path) -> None:
    """The last digit from 1 to 8 is one greater: an editor's doing, and still well-formed text.

    In a binary file the lowest bit of the last byte is inverted: its form stays, a value changes.
    """
    content = bytearray(file.read_bytes())
    if b"\0" in content or not content.isascii():
        content[-1] ^= 1
    else:
        place = max(content.rfind(bytes([digit])) for digit in b"12345678")
        assert place >= 0, file
        content[place] += 1
    file.write_bytes(content)


def replace_by_older(file: Path, other: Path, older: Path) -> None:
    """An earlier version of the same file is back, as from a backup."""
    assert file.read_bytes() != older.read_bytes()
    shutil.copyfile(older, file)


DAMAGES: dict[str, Damage] = {
    "flip": flip,
    "truncate": truncate,
    "delete": delete,
    "swap": swap,
    "edit": edit,
    "older": replace_by_older,
}
