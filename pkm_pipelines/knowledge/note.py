"""What a parsed note holds: the records between the parser, the tables and everyone who reads them.

The small records are tuples in the order of the struct types in `model/tables.py`, so that a batch of
them becomes an Arrow column as they are. Every `start` and `end` is a character offset into the
note's content (the Python string, front matter and all), `end` exclusive.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Flavour = Literal["obsidian", "logseq"]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Heading(NamedTuple):
    """A heading: `text` as written, without its marks; `anchor` is what Obsidian puts behind '#' in a link."""

    level: int
    text: str
    anchor: str
    start: int
    end: int


class Tag(NamedTuple):
    """A tag of the body, without its '#'; the span includes it."""

    tag: str
    start: int
    end: int


class Task(NamedTuple):
    """A list item with a check box: the raw character in the brackets, the text of its first paragraph.

    The span is the list item's, without the lists under it.
    """

    status: str
    text: str
    start: int
    end: int


class Callout(NamedTuple):
    """A callout: type in lower case, title and fold mark ('+' or '-') as written, None without one."""

    type: str
    title: str | None
    fold: str | None
    start: int
    end: int


class Block(NamedTuple):
    """A block that has an id (`^id`, or `id::` in Logseq). The span is the block's, not the id's."""

    id: str
    start: int
    end: int


class Footnote(NamedTuple):
    """The definition of a footnote."""

    label: str
    start: int
    end: int


class Link(NamedTuple):
    """A link or embed as written.

    `target` is the path before the first '#', percent-decoded in Markdown links; empty for a link within
    the note. The target of an external link is the whole URL. `subpath` is what follows, '#' included.
    `property` is the front-matter key, in Obsidian's notation (`author.0`); such a link has no span.
    """

    kind: str
    form: str
    target: str
    subpath: str | None
    display: str
    property: str | None
    start: int | None
    end: int | None


class Oddity(NamedTuple):
    """Something odd about a note, with a short stable code."""

    code: str
    message: str


@dataclass(slots=True)
class ParsedNote:
    """All that one note says about itself, nothing resolved against other notes."""

    path: str
    title: str
    content: str
    text: str
    front_matter: dict[str, Json] | None = None
    aliases: list[str] = field(default_factory=list)
    front_matter_tags: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None
    headings: list[Heading] = field(default_factory=list)
    tag_spans: list[Tag] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    callouts: list[Callout] = field(default_factory=list)
    block_ids: list[Block] = field(default_factory=list)
    code_languages: list[str] = field(default_factory=list)
    footnotes: list[Footnote] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    word_count: int = 0
    character_count: int = 0
    reading_seconds: int = 0
    problems: list[Oddity] = field(default_factory=list)
