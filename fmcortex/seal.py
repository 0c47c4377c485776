"""The seal of a document: its own SHA-256, for documents that no other one vouches for.

A sealed document is a JSON object whose first key is `"seal"`. The seal is the SHA-256 of the
document's bytes with an empty seal (`"seal": ""`), so that it holds for every byte, whichever
fields the document has and whichever version wrote it. It finds damage and edits by hand; it is no
signature.
"""

from __future__ import annotations

import hashlib
import re

_SEAL = re.compile(rb'"seal":\s*"([^"]*)"')


def put_seal(content: bytes) -> bytes:
    """A document with an empty seal, sealed.

    Raises:
        ValueError: it has no empty seal.
    """
    found = _SEAL.search(content)
    if found is None or found[1]:
        raise ValueError('a document to be sealed starts with "seal": ""')
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def seal_holds(content: bytes) -> bool | None:
    """Whether a document is as it was sealed, byte for byte; None if it has no seal."""
    found = _SEAL.search(content)
    if found is None or not found[1]:
        return None
    bare = content[: found.start(1)] + content[found.end(1) :]
    return found[1] == hashlib.sha256(bare).hexdigest().encode()
