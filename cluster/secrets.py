"""Passwords do not travel in what is submitted: others can read batch scripts and ConfigMaps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmcortex.errors import ConfigError, has_secret

_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|PRIVATE_KEY", re.IGNORECASE)
#: Variables that name a file with a secret in it, which is where one belongs.
_FILE = re.compile(r"_(FILE|PATH|NAME|URL|URI)$", re.IGNORECASE)


def refuse_secrets(values: Mapping[str, Any], place: str, advice: str) -> None:
    """Refuse settings with a password, or the key of a signed URL, in them.

    Args:
        values: nested settings.
        place: that would show them, such as "the ConfigMap".
        advice: where they belong.

    Raises:
        ConfigError: naming the first such field, without its value.
    """
    for field, value in _flat(values):
        if has_secret(value):
            raise _refusal(field, place, advice)


def refuse_secret_variables(variables: Mapping[str, str], place: str, advice: str) -> None:
    """Refuse environment variables whose names or values are those of secrets.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in variables.items():
        if has_secret(value) or (value and _NAME.search(name) and not _FILE.search(name)):
            raise _refusal(f"variables.{name}", place, advice)


def refuse_secret_words(words: Sequence[str], place: str, advice: str) -> None:
    """Refuse arguments of a command with a password in them.

    Raises:
        ConfigError: naming the first, by what stands before its value.
    """
    for number, word in enumerate(words):
        if has_secret(word):
            name, equals, _ = word.partition("=")
            before = words[number - 1] if number else "argument"
            raise _refusal(name if equals and "://" not in name else before, place, advice)


def _refusal(field: str, place: str, advice: str) -> ConfigError:
    return ConfigError(f"{field}: has a password or key in it, which {place} would show; {advice}")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, with the path to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{number}")
    elif isinstance(value, str):
        yield name, value
