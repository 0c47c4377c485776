"""Schemas of Kubernetes custom resources as plain JSON schema."""

from __future__ import annotations

from typing import Any


def strict(schema: Any) -> Any:
    """A CRD's schema as plain JSON schema that refuses unknown fields, as the API server would.

    `x-kubernetes-int-or-string` and `nullable` are not JSON schema; and where properties are
    listed, the server drops (or, if strict, refuses) all others.
    """
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: strict(value) for key, value in schema.items()}
    if plain.pop("x-kubernetes-int-or-string", False):
        plain.pop("type", None)
        plain.pop("anyOf", None)
        plain["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(plain.get("properties"), dict) and not plain.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        plain.setdefault("additionalProperties", False)
    if plain.pop("nullable", False) is True:
        plain = {"anyOf": [plain, {"type": "null"}]}
    return plain
