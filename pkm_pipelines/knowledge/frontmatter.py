"""Front matter: the block of YAML or JSON at the very beginning of a note.

It is untrusted text, and often not what it should be: a template before it is filled, a key stated twice, a list
where keys were meant. Whatever is wrong becomes an `Oddity` of the note, and what can be read is read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

import yaml

from pkm_pipelines.knowledge.note import Json, Oddity
from pkm_pipelines.knowledge.yamlvalue import MAX_DEPTH, RefusedError, YamlValue, load_yaml, too_deep

MAX_CHARACTERS = 256 * 1024
"""Longer front matter is not read."""
MAX_DUPLICATES = 20
"""Keys stated more than once: so many are named."""

_OPEN = re.compile(r"\ufeff?---[ \t]*\r?\n")
_CLOSE = re.compile(r"^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{|<%")
_TEMPLATE_LINE = re.compile(
    r"^([ \t]*(?:- )?[^\s:\"'#\[{][^:\n]*:[ \t]+|[ \t]*- )([^\s\"'\[|>&*][^\r\n]*)", re.MULTILINE
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class FrontMatter:
    """The front matter of a note. `values` is None where there is none that can be read.

    `body` is the offset at which the Markdown begins.
    """

    body: int = 0
    values: dict[str, Json] | None = None
    problems: list[Oddity] = field(default_factory=list)


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
    except RefusedError as refused:
        found.problems.append(Oddity(refused.code, str(refused)))
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
    """The value of a block of front matter; raises `RefusedError` if it cannot be read."""
    if text.lstrip().startswith("{"):
        try:
            return _settle(_load_json(text), problems)
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML's flow style looks the same and may be what is meant
    try:
        return _settle(load_yaml(text), problems)
    except (yaml.YAMLError, RefusedError) as error:
        filled = _load_template(text)
        if filled is not None:
            message = "front matter holds template code, read as text; it becomes YAML when the template is filled"
            problems.append(Oddity("templated-front-matter", message))
            return _settle(filled, problems)
        if isinstance(error, RefusedError):
            raise
        raise RefusedError("invalid-front-matter", f"front matter is not valid YAML: {_where(error)}") from None


def _load_template(text: str) -> YamlValue | None:
    """Front matter read with its template code quoted, None where that is not what is wrong with it."""
    quoted = _TEMPLATE_LINE.sub(_quote_template, text) if _TEMPLATE.search(text) else text
    if quoted == text:
        return None
    try:
        return load_yaml(quoted)
    except (yaml.YAMLError, RefusedError):
        return None


def _quote_template(match: re.Match[str]) -> str:
    key, value = match.groups()
    if _TEMPLATE.search(value) is None:
        return match[0]
    return key + "'" + value.rstrip().replace("'", "''") + "'"


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 2}"
    return str(error).splitlines()[0]


def _settle(read: YamlValue, problems: list[Oddity]) -> Json:
    for key in list(dict.fromkeys(read.duplicates))[:MAX_DUPLICATES]:
        message = f"front matter states {key[:80]!r} more than once; the last one counts"
        problems.append(Oddity("duplicate-key", message))
    return read.value


def _load_json(text: str) -> YamlValue:
    result = YamlValue()

    def pairs(items: list[tuple[str, Json]]) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        for key, value in items:
            if key in mapping:
                result.duplicates.append(key)
            mapping[key] = value
        return mapping

    result.value = _clean(json.loads(text, object_pairs_hook=pairs, parse_constant=lambda _: None), MAX_DEPTH)
    return result


def _clean(value: Json, depth: int) -> Json:
    """What JSON can say and a table cannot hold, taken out: half surrogate pairs, numbers beyond floating point."""
    if depth == 0:
        raise too_deep()
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
