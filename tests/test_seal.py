"""The seal of a document: any byte that differs is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmcortex.data.manifest import DatasetManifest
from fmcortex.errors import DataError
from fmcortex.seal import put_seal, seal_holds

BARE = b'{\n "seal": "",\n "version": 2,\n "lr": 0.5\n}\n'


def test_sealed_document_is_whole_and_every_change_shows() -> None:
    sealed = put_seal(BARE)
    assert seal_holds(sealed) is True
    assert len(sealed) == len(BARE) + 64
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        assert not seal_holds(bytes(changed)), at
    assert not seal_holds(sealed[:-1])
    assert not seal_holds(sealed + b"\n")


def test_documents_without_a_seal() -> None:
    assert seal_holds(BARE) is None
    assert seal_holds(b'{"version": 2}') is None
    for content in (b"{}", put_seal(BARE)):
        with pytest.raises(ValueError, match="seal"):
            put_seal(content)


def test_seal_does_not_depend_on_what_the_reader_knows(prepared: str) -> None:
    """It is over the bytes as they were written, so that a newer version can check older ones."""
    content = Path(prepared, "manifest.json").read_bytes()
    assert seal_holds(content) is True
    document = DatasetManifest.parse_sealed(content, "here")
    assert document.sealed() == content


def test_damaged_documents_are_named_with_what_to_do(prepared: str) -> None:
    content = Path(prepared, "manifest.json").read_bytes()
    more = content.replace(b'"movies": ', b'"movies": 1')
    with pytest.raises(DataError, match=r"^here: differs from its own checksum; do this"):
        DatasetManifest.parse_sealed(more, "here", "do this")
    unsealed = content[: content.index(b'"seal"')] + content[content.index(b'"version"') :]
    with pytest.raises(DataError, match=r"^here: differs from its own checksum"):
        DatasetManifest.parse_sealed(unsealed, "here")
