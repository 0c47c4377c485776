"""YAML as settings are written in it: text stays text where text is meant, no key comes twice.

YAML makes a number of 20240115, a date of 2024-01-15, false of `no` and 90 of 1:30. Where a field
is text or a number, its own type decides what the characters mean, not YAML.
"""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

#: What YAML takes for nothing, where a field may be without a value.
_NOTHING = ("", "~", "null", "Null", "NULL")
#: YAML's own words for numbers that are none.
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class SettingsOf:
    """Marks a field that holds the settings of `kind` as a plain mapping."""

    kind: type[BaseModel]


class RepeatedKey(yaml.MarkedYAMLError):
    """A key or section of a mapping is given twice."""


class SettingsLoader(yaml.SafeLoader):
    """Reads one document whose types are those of a kind of settings.

    Args:
        text: the document.
        kind: a model, or any type of a field; Any leaves all to YAML.
    """

    def __init__(self, text: str, kind: Any = Any) -> None:
        super().__init__(text)
        self.kind = kind

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """The mapping, unless it has a key twice, of which YAML would take the last."""
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise RepeatedKey(
                    problem=f"{key.value} is given twice, in lines {first[key.value]} and {line}",
                    problem_mark=key.start_mark,
                )
            first[key.value] = line
        return node

    def construct_document(self, node: Node) -> Any:
        """The values of the document."""
        _retag(node, self.kind, set())
        return super().construct_document(node)


def load(text: str, kind: Any = Any) -> Any:
    """The values of a document.

    Args:
        text: one document of YAML.
        kind: what they are of: a model, or the type of a field.

    Raises:
        yaml.YAMLError: not valid YAML, or a key is given twice.
    """
    return _load_all(text, kind, one=True)


def load_all(text: str) -> list[Any]:
    """The values of all documents of a file.

    Raises:
        yaml.YAMLError: as `load`.
    """
    return _load_all(text, Any, one=False)


def _load_all(text: str, kind: Any, one: bool) -> Any:
    loader = SettingsLoader(text, kind)
    try:
        if one:
            return loader.get_single_data()
        found = []
        while loader.check_data():
            found.append(loader.get_data())
        return found
    except ValueError as error:  # a date that there is not, such as 2024-13-45
        raise yaml.YAMLError(str(error)) from error
    except RecursionError as error:
        raise yaml.YAMLError("too many levels") from error
    finally:
        loader.dispose()


def problem(error: yaml.YAMLError) -> str:
    """What is wrong with a document, in a few words, with its line."""
    if isinstance(error, RepeatedKey):
        return str(error.problem)
    mark = getattr(error, "problem_mark", None)
    return f"not valid YAML{f' in line {mark.line + 1}' if mark else ''}"


def value_of(text: str, kind: Any) -> Any:
    """What `text`, written for one field, means: the text itself where the field is text.

    Args:
        text: as given on a command line.
        kind: type of the field; Any leaves it to YAML.

    Raises:
        yaml.YAMLError: not valid YAML.
    """
    wanted = _members(kind)
    if _is_text(wanted):
        return None if type(None) in wanted and text.strip() in _NOTHING else text
    return load(text, kind)


def part(kind: Any, key: str) -> Any:
    """The type of what is called `key` in `kind`; Any where that is unknown."""
    for one in _members(kind):
        if isinstance(one, type) and issubclass(one, BaseModel):
            field = one.model_fields.get(key)
            if field is not None:
                marked = [mark.kind for mark in field.metadata if isinstance(mark, SettingsOf)]
                return marked[0] if marked else field.annotation
        elif get_origin(one) is dict:
            return get_args(one)[1]
    return Any


def _members(kind: Any) -> list[Any]:
    """The types that a value of `kind` may be of."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _members(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [one for member in get_args(kind) for one in _members(member)]
    return [kind]


def _is_text(members: list[Any]) -> bool:
    """Whether it is text, and nothing that is written with a bracket, a number or a truth."""
    rest = [one for one in members if one is not type(None)]
    return bool(rest) and all(
        one is str
        or (get_origin(one) is Literal and all(isinstance(name, str) for name in get_args(one)))
        for one in rest
    )


def _is_number(members: list[Any]) -> bool:
    rest = {one for one in members if one is not type(None)}
    return bool(rest) and rest <= {int, float}


def _items(kind: Any) -> Any:
    """The type of the items of a list or tuple."""
    for one in _members(kind):
        if get_origin(one) in (list, tuple):
            inner = tuple(arg for arg in get_args(one) if arg is not Ellipsis)
            return Union[inner]  # noqa: UP007 - of a tuple that is known only now
    return Any


def _retag(node: Node, kind: Any, seen: set[tuple[int, str]]) -> None:
    """Have YAML leave as text what `kind` wants as text or reads as a number itself."""
    if (id(node), str(kind)) in seen:  # an alias, perhaps of what it is in
        return
    seen.add((id(node), str(kind)))
    if isinstance(node, MappingNode):
        for key, value in node.value:
            merged = isinstance(key, ScalarNode) and key.tag.endswith(":merge")
            _retag(value, kind if merged else part(kind, str(key.value)), seen)
    elif isinstance(node, SequenceNode):
        items = _items(kind)
        for value in node.value:
            _retag(value, items, seen)
    elif isinstance(node, ScalarNode) and node.style is None:  # plain: not in quotes
        wanted = _members(kind)
        if node.tag == _NULL and type(None) in wanted:
            return
        if _is_text(wanted) or (_is_number(wanted) and not _NOT_FINITE.fullmatch(node.value)):
            node.tag = _TEXT
