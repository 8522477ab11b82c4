"""YAML as plain values, safe on untrusted text.

Values are built from the parser's events and no constructor ever runs, so a tag such as `!!python/object` is a
word like any other. Depth and number of values are bounded, and an alias counts as often as it is used, which is
what stops the "billion laughs". The stack is our own: libyaml's composer recurses, and crashes the process when
text is nested some ten thousand deep.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), as Obsidian's parser
does: a date stays the text it is, `yes` is a word, and `0123` is 123.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pkm_pipelines.knowledge.note import Json

try:
    from yaml import CSafeLoader as _Parser
except ImportError:  # PyYAML built without libyaml: the same events, slower
    from yaml import SafeLoader as _Parser

MAX_VALUES = 20_000
"""More values than this, aliases expanded, are refused."""
MAX_DEPTH = 64
"""Deeper nesting is refused."""

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_STARTS = frozenset("+-.0123456789")


class RefusedError(Exception):
    """The text is YAML, but not such as is read here; `code` says why."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class _Part:
    """A value, and how large it is: values in it, itself included, and levels of nesting."""

    __slots__ = ("depth", "size", "value")

    def __init__(self, value: Json, size: int = 1, depth: int = 0):
        self.value = value
        self.size = size
        self.depth = depth


class _Open(_Part):
    """A list or mapping that is being filled."""

    __slots__ = ("anchor", "key")

    def __init__(self, value: list[Json] | dict[str, Json], anchor: str | None):
        super().__init__(value, 1, 1)
        self.anchor = anchor
        self.key: str | None = None


@dataclass(slots=True)
class YamlValue:
    """What a text says in YAML, and the keys that it states more than once; of those the last counts."""

    value: Json = None
    duplicates: list[str] = field(default_factory=list)


def load_yaml(text: str) -> YamlValue:
    """Read the first document of `text`.

    Raises `yaml.YAMLError` if it is no YAML, and `RefusedError` if it is too deep, too large or not plain.
    """
    parser = _Parser(text)
    result = YamlValue()
    stack: list[_Open] = []
    anchors: dict[str, _Part] = {}
    while True:
        event: Any = parser.get_event()
        kind = type(event)
        if kind is yaml.ScalarEvent:
            part, anchor = _Part(_scalar(event)), event.anchor
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            stack.append(_Open({} if kind is yaml.MappingStartEvent else [], event.anchor))
            if len(stack) > MAX_DEPTH:
                raise too_deep()
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            part = stack.pop()
            anchor = part.anchor
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors:  # unknown, or of a value that is not complete: it would hold itself
                raise RefusedError("invalid-front-matter", f"front matter uses the unknown alias *{event.anchor}")
            part, anchor = anchors[event.anchor], None
        elif event is None or kind is yaml.StreamEndEvent or kind is yaml.DocumentEndEvent:
            return result
        else:  # the beginning of the stream, or of the document
            continue
        if anchor is not None:
            anchors[anchor] = part
        if stack:
            _put(stack, part, event, result.duplicates)
        else:
            result.value = part.value


def too_deep() -> RefusedError:
    """The refusal of text that is nested too deep."""
    return RefusedError("front-matter-too-deep", f"front matter is nested more than {MAX_DEPTH} deep and was not read")


def _put(stack: list[_Open], part: _Part, event: Any, duplicates: list[str]) -> None:
    """Put a complete value into the innermost open list or mapping."""
    top = stack[-1]
    top.size += part.size
    top.depth = max(top.depth, part.depth + 1)
    if top.size > MAX_VALUES:
        raise RefusedError("front-matter-too-many-values", f"front matter has more than {MAX_VALUES} values")
    if len(stack) + part.depth > MAX_DEPTH:
        raise too_deep()
    if isinstance(top.value, list):
        top.value.append(part.value)
    elif isinstance(top.value, dict):
        if top.key is None:
            top.key = _key(event, part.value)
            return
        if top.key in top.value:
            duplicates.append(top.key)
        top.value[top.key] = part.value
        top.key = None


def _key(event: Any, value: Json) -> str:
    if isinstance(value, (dict, list)):
        raise RefusedError("invalid-front-matter", "front matter has a list or mapping as a key")
    return event.value if type(event) is yaml.ScalarEvent else str(value)


def _scalar(event: Any) -> Json:
    """The value of a scalar by the core schema; quoted or tagged, it is text."""
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _NULL:
        return None
    if text[0] in _NUMBER_STARTS:
        return _number(text)
    return _BOOLEAN.get(text, text)


def _number(text: str) -> Json:
    if _INTEGER.fullmatch(text):
        return int(text, 8 if text[1:2] == "o" else 16 if text[1:2] == "x" else 10)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else None
    return None if _NOT_FINITE.fullmatch(text) else text
