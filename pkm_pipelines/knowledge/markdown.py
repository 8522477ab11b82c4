"""From the text of a note to all it says about itself.

`parse_note` reads one note, `parse_notes` a batch of bronze rows into rows of `silver.processed_notes`. Neither
knows other notes: links stay as written (`links.py` resolves them). Neither raises on any text: what is odd
about a note becomes one of its problems.

The flavour says who wrote the note: `obsidian` (also right for plain Markdown) or `logseq`. Where Obsidian's
own index shows what it takes for a tag, link, task or heading, that is the rule here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.knowledge import logseq, properties
from pkm_pipelines.knowledge.frontmatter import canonical, read_front_matter
from pkm_pipelines.knowledge.linktext import find_urls, parse_wikilink
from pkm_pipelines.knowledge.masking import mask
from pkm_pipelines.knowledge.note import Flavour, Json, Link, Oddity, ParsedNote, Tag
from pkm_pipelines.knowledge.outline import Outline
from pkm_pipelines.knowledge.tags import find_tags
from pkm_pipelines.knowledge.words import measure
from pkm_pipelines.model.tables import PROCESSED_NOTES

_BAR_LINK = re.compile(r"\[\[(\|[^\[\]\r\n]*)\]\]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_note(content: str, path: str, *, flavour: Flavour = "obsidian") -> ParsedNote:
    """Parse one note. Offsets are characters of `content`; no text makes it raise.

    `path` is the note's path in its source; the file name is the title of last resort.
    """
    try:
        return _parse(content, path, flavour)
    except UnicodeEncodeError:  # half a surrogate pair: no file holds one, and no Arrow string can
        return _parse(_SURROGATE.sub("\ufffd", content), path, flavour)


def prose_spans(content: str, *, flavour: Flavour = "obsidian") -> list[tuple[int, int]]:
    """The spans of running text in a note: no front matter, code, formula, HTML, comment block, link, embed or tag."""
    source, _ = mask(content, read_front_matter(content).body, flavour)
    outline = Outline(source, flavour)
    marked = [(start, end) for _, start, end in find_tags(source) if outline.is_prose(start)]
    marked += [(link.start, link.end) for link in _links(source, outline) if link.start is not None and link.end]
    return _without(list(zip(outline.prose[::2], outline.prose[1::2], strict=True)), sorted(marked))


def _without(spans: list[tuple[int, int]], marked: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut the `marked` spans out of others; both are in order and do not overlap among themselves, or hardly."""
    left: list[tuple[int, int]] = []
    position = 0
    for start, end in spans:
        while position < len(marked) and marked[position][0] < end:
            cut_start, cut_end = marked[position]
            if cut_start > start:
                left.append((start, cut_start))
            start = max(start, cut_end)
            if cut_end > end:
                break  # it goes on in the next span
            position += 1
        if start < end:
            left.append((start, end))
    return left


def parse_notes(
    batch: pa.RecordBatch,
    flavours: Mapping[str, Flavour],
    *,
    detect: Callable[[str], str | None] | None = None,
) -> pa.RecordBatch:
    """Parse rows of `bronze.raw_notes` into rows of `silver.processed_notes`, one for one and in order.

    `flavours` maps a source to its flavour, `obsidian` where it is silent. `detect` tells the language of a
    plain text; `knowledge.language.detect` by default. A DELETE becomes a tombstone: key, path and times only.
    """
    if detect is None:
        from pkm_pipelines.knowledge.language import detect
    deleted = pc.equal(batch.column("change_type"), "DELETE")
    contents = _contents(batch, deleted)
    notes: list[ParsedNote | None] = []
    languages: list[str | None] = []
    for path, source, content in zip(
        batch.column("path").to_pylist(), batch.column("source").to_pylist(), contents, strict=True
    ):
        note = None if content is None else parse_note(content, path, flavour=flavours.get(source, "obsidian"))
        notes.append(note)
        languages.append(None if note is None else detect(note.text))
    changed_at = batch.column("changed_at")
    columns: dict[str, pa.Array] = {name: batch.column(name) for name in _CARRIED}
    columns |= {name: _column(name, [get(note) if note else None for note in notes]) for name, get in _PARSED.items()}
    columns["language"] = _column("language", languages)
    columns["problems"] = _problems(batch, notes)
    columns["deleted_at"] = pc.if_else(deleted, changed_at, pa.scalar(None, changed_at.type))
    schema = PROCESSED_NOTES.arrow
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _parse(content: str, path: str, flavour: Flavour) -> ParsedNote:
    front = read_front_matter(content)
    source, lines = mask(content, front.body, flavour)
    tags = list(find_tags(_BAR_LINK.sub(_blank, source) if "[[|" in source else source))
    outline = Outline(source, flavour)
    note = ParsedNote(
        path=path,
        title="",
        content=content,
        text=outline.text,
        front_matter=front.values,
        headings=outline.headings,
        tag_spans=[Tag(*tag) for tag in tags if outline.is_prose(tag[1])],
        tasks=outline.tasks,
        callouts=outline.callouts,
        block_ids=outline.blocks,
        code_languages=list(outline.languages),
        footnotes=outline.footnotes,
        links=_links(source, outline),
        problems=front.problems,
    )
    if flavour == "logseq":
        logseq.enrich(note, source, lines, outline)
        note.title = logseq.page_name(path)
    else:
        note.title = outline.title or path.rpartition("/")[2].removesuffix(".md")
    if front.values:
        note.links = properties.links(front.values) + note.links
    if note.front_matter:
        _read_properties(note, note.front_matter, flavour)
    note.tags = _unique_tags(note)
    length = measure(note.text)
    note.word_count, note.character_count, note.reading_seconds = (
        length.words,
        length.characters,
        length.reading_seconds,
    )
    return note


_CARRIED = ("note_id", "source", "path", "content_hash", "change_id", "changed_at", "ordinal", "lsn")
_PARSED: Mapping[str, Callable[[ParsedNote], Any]] = {
    name: attrgetter(name)
    for name in (
        *("title", "aliases", "tags", "created_at", "updated_at", "headings", "tag_spans", "tasks", "callouts"),
        *("block_ids", "code_languages", "footnotes", "links", "content", "text"),
        *("word_count", "character_count", "reading_seconds"),
    )
} | {"front_matter": lambda note: canonical(note.front_matter)}


def _column(name: str, values: list[Any]) -> pa.Array:
    return pa.array(values, type=PROCESSED_NOTES.column(name).type)


def _contents(batch: pa.RecordBatch, deleted: pa.BooleanArray) -> list[str | None]:
    """The text of each row; where bronze kept bytes only, what can be read of them. None for a delete."""
    texts: list[str | None] = pc.if_else(deleted, pa.scalar(None, pa.string()), batch.column("content")).to_pylist()
    for position in pc.indices_nonzero(pc.and_not(batch.column("content").is_null(), deleted)).to_pylist():
        content: bytes | None = batch.column("content_bytes")[position].as_py()
        texts[position] = (content or b"").decode(errors="replace")
    return texts


def _problems(batch: pa.RecordBatch, notes: list[ParsedNote | None]) -> pa.Array:
    """What the source found odd about the file, then what parsing found odd about the note."""
    observed: list[list[dict[str, str]] | None] = batch.column("problems").to_pylist()
    rows: list[list[Oddity]] = []
    for known, note in zip(observed, notes, strict=True):
        rows.append([Oddity(**problem) for problem in known or []] + (note.problems if note else []))
    return _column("problems", rows)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _links(source: str, outline: Outline) -> list[Link]:
    """The links of the body: those of the outline, bare URLs, and wikilinks whose path begins with a bar."""
    found: list[Link] = []
    if "://" in source:
        for url, start, end in find_urls(source, outline.is_prose):
            found.append(Link("link", "autolink", url, None, url, None, start, end))
    if "[[|" in source:
        for match in _BAR_LINK.finditer(source):
            parsed = parse_wikilink(match[1])
            if parsed is not None and outline.is_prose(match.start()):
                found.append(Link("link", "wikilink", *parsed, None, *match.span()))
    return sorted(outline.links + found, key=_position) if found else outline.links


def _position(link: Link) -> int:
    return link.start or 0


def _read_properties(note: ParsedNote, values: dict[str, Json], flavour: Flavour) -> None:
    note.title = properties.title(values) or note.title
    note.aliases = properties.aliases(values)
    note.front_matter_tags = logseq.page_tags(values) if flavour == "logseq" else properties.tags(values, note.problems)
    note.created_at, note.updated_at = properties.dates(values, note.problems)


def _unique_tags(note: ParsedNote) -> list[str]:
    """Front matter's tags, then the body's; one spelling each, the first seen."""
    spelling: dict[str, str] = {}
    for tag in [*note.front_matter_tags, *[span.tag for span in note.tag_spans]]:
        spelling.setdefault(tag.casefold(), tag)
    return list(spelling.values())
