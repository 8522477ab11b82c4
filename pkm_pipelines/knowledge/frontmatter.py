"""Front matter: the block of YAML or JSON at the very beginning of a note.

It is untrusted text. Values are built from the parser's events and no constructor ever runs, so a tag
such as `!!python/object` is a word like any other; depth, number of values and size are bounded, and
an alias counts as often as it is used. Whatever is wrong becomes an `Oddity` of the note.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), as
Obsidian's parser does: a date stays the text it is, `yes` is a word, and `0123` is 123.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pkm_pipelines.knowledge.note import Json, Oddity

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: the same events, slower
    from yaml import SafeLoader as _Loader

MAX_CHARACTERS = 256 * 1024
"""Longer front matter is not read."""
MAX_VALUES = 20_000
"""More values than this, aliases expanded, are refused."""
MAX_DEPTH = 64
"""Deeper nesting is refused."""

_OPEN = re.compile(r"\ufeff?---[ \t]*\r?\n")
_CLOSE = re.compile(r"^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{|<%")
_TEMPLATE_LINE = re.compile(
    r"^([ \t]*(?:- )?[^\s:\"'#\[{][^:\n]*:[ \t]+|[ \t]*- )([^\s\"'\[|>&*][^\r\n]*)", re.MULTILINE
)
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_STARTS = frozenset("+-.0123456789")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class FrontMatter:
    """The front matter of a note. `values` is None where there is none that can be read.

    `body` is the offset at which the Markdown begins.
    """

    body: int = 0
    values: dict[str, Json] | None = None
    problems: list[Oddity] = field(default_factory=list)


class _RefusedError(Exception):
    """The front matter is not read, for the reason that the oddity names."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.oddity = Oddity(code, message)


def read_front_matter(content: str) -> FrontMatter:
    """Find and read the front matter of a note. Never raises."""
    opened = _OPEN.match(content)
    closed = _CLOSE.search(content, opened.end()) if opened else None
    if opened is None or closed is None:
        return FrontMatter(body=1 if content.startswith("\ufeff") else 0)
    found = FrontMatter(body=closed.end())
    if closed.start() - opened.end() > MAX_CHARACTERS:
        message = f"front matter has more than {MAX_CHARACTERS} characters and was not read"
        found.problems.append(Oddity("front-matter-too-large", message))
        return found
    text = content[opened.end() : closed.start()]
    try:
        value = _load(text, found.problems)
    except _RefusedError as refused:
        found.problems.append(refused.oddity)
        return found
    if isinstance(value, dict):
        found.values = value
    elif value is not None:
        message = f"front matter is a {_KIND[type(value)]}, not keys with values"
        found.problems.append(Oddity("front-matter-not-a-mapping", message))
    return found


_KIND = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}


def canonical(values: dict[str, Json] | None) -> str | None:
    """The front matter as JSON in one stable form: keys sorted, no blanks, characters as they are."""
    if values is None:
        return None
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _load(text: str, problems: list[Oddity]) -> Json:
    if text.lstrip().startswith("{"):
        try:
            return _load_json(text, problems)
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML's flow style looks the same and may be what is meant
    try:
        return _load_yaml(text, problems)
    except (yaml.YAMLError, _RefusedError) as error:
        quoted = _TEMPLATE_LINE.sub(_quote_template, text) if _TEMPLATE.search(text) else text
        if quoted != text:
            try:
                value = _load_yaml(quoted, problems)
            except (yaml.YAMLError, _RefusedError):
                pass
            else:
                message = "front matter holds template code, read as text; it becomes YAML when the template is filled"
                problems.append(Oddity("templated-front-matter", message))
                return value
        if isinstance(error, _RefusedError):
            raise
        raise _RefusedError("invalid-front-matter", f"front matter is not valid YAML: {_where(error)}") from None


def _quote_template(match: re.Match[str]) -> str:
    key, value = match.groups()
    if _TEMPLATE.search(value) is None:
        return match[0]
    return key + "'" + value.rstrip().replace("'", "''") + "'"


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 2}"
    return str(error).splitlines()[0]


def _load_json(text: str, problems: list[Oddity]) -> Json:
    def pairs(items: list[tuple[str, Json]]) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        for key, value in items:
            if key in mapping:
                problems.append(_duplicate(key))
            mapping[key] = value
        return mapping

    value = json.loads(text, object_pairs_hook=pairs, parse_constant=lambda _: None)
    return _clean(value, MAX_DEPTH)


def _duplicate(key: str) -> Oddity:
    return Oddity("duplicate-key", f"front matter states {key!r} more than once; the last one counts")


def _clean(value: Json, depth: int) -> Json:
    if depth == 0:
        raise _too_deep()
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _too_deep() -> _RefusedError:
    return _RefusedError("front-matter-too-deep", f"front matter is nested more than {MAX_DEPTH} deep and was not read")


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being filled."""

    value: list[Json] | dict[str, Json]
    anchor: str | None
    count: int
    depth: int = 1
    key: str | None = None


def _load_yaml(text: str, problems: list[Oddity]) -> Json:
    """Build the value of the first document from the parser's events, with a stack of our own."""
    loader = _Loader(text)
    stack: list[_Open] = []
    anchors: dict[str, tuple[Json, int, int]] = {}
    count = 0
    result: Json = None
    while True:
        event: Any = loader.get_event()
        kind = type(event)
        anchor: str | None = None
        depth, size = 0, 1
        if kind is yaml.ScalarEvent:
            value = _scalar(event)
            anchor = event.anchor
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if len(stack) >= MAX_DEPTH:
                raise _too_deep()
            stack.append(_Open({} if kind is yaml.MappingStartEvent else [], event.anchor, count))
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            done = stack.pop()
            value, anchor, depth, size = done.value, done.anchor, done.depth, 1 + count - done.count
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors:
                raise _RefusedError("invalid-front-matter", f"front matter uses the unknown alias *{event.anchor}")
            value, size, depth = anchors[event.anchor]
        elif kind is yaml.DocumentEndEvent:
            return result
        else:  # the beginning of the stream or document; the end of an empty stream
            if event is None or kind is yaml.StreamEndEvent:
                return result
            continue
        count += size if kind is yaml.AliasEvent else 1
        if count > MAX_VALUES:
            raise _RefusedError("front-matter-too-many-values", f"front matter has more than {MAX_VALUES} values")
        if anchor is not None:
            anchors[anchor] = (value, size, depth)
        if not stack:
            result = value
            continue
        top = stack[-1]
        top.depth = max(top.depth, depth + 1)
        if len(stack) + depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            top.key = _key(event, value)
        else:
            if top.key in top.value:
                problems.append(_duplicate(top.key))
            top.value[top.key] = value
            top.key = None


def _key(event: Any, value: Json) -> str:
    if isinstance(value, (dict, list)):
        raise _RefusedError("invalid-front-matter", "front matter has a list or mapping as a key")
    return event.value if type(event) is yaml.ScalarEvent else str(value)


def _scalar(event: Any) -> Json:
    """The value of a scalar by the core schema; quoted or tagged otherwise, it is text."""
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
