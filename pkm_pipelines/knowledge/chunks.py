"""Notes in chunks that a model can embed: by heading and paragraph, and stable under edits.

A chunk never spans two sections unless they are small and stand under one heading. Inside a section that is
too long, cuts are made between blocks, and which of the possible ones is taken depends on the text beside it
(content-defined chunking, after LBFS: Muthitacharoen et al., SOSP 2001), not on how many tokens came before: an
edit moves the cuts next to it, and those behind fall into step again.

What is embedded is the text without its markup, below a line with the title and the headings that stand above it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pkm_pipelines.knowledge.sections import Piece, Section, TokenCounter, measure, parse_sections
from pkm_pipelines.model import ids
from pkm_pipelines.model.tables import note_embeddings

SEPARATOR = " > "
PREFIX_SHARE = 4
"""Title and headings take a quarter of a chunk's tokens at most."""
FILL_SHARE = 0.4
"""A cut is looked for once a chunk is this full; less gives fewer tokens a chunk, more lets an edit reach further."""
SMALL_SHARE = 0.5
"""Sections of less than this may share a chunk with their neighbours."""
TINY_SHARE = 0.125
"""What is left over and smaller than this joins a neighbour whenever it fits."""
_NO_WORD = re.compile(r"[\W_]+")
_COLUMNS = (
    "chunk_id", "note_id", "source", "path", "title", "tags", "heading_path", "position", "start", "end", "text",
    "token_count", "text_hash", "quality_score",
)  # fmt: skip
SCHEMA = pa.schema(
    [*(note_embeddings(1).arrow.field(name) for name in _COLUMNS), pa.field("embedded_text", pa.string())]
)


@dataclass
class Chunk:
    """Pieces that are embedded together, all of one section or whole sections."""

    sections: list[Section]
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """What it takes, in tokens."""
        return sum(piece.size for piece in self.pieces)

    @property
    def heading_path(self) -> tuple[str, ...]:
        """The headings above all of it, its own among them where it has only one."""
        shared: list[str] = []
        for names in zip(*(section.path for section in self.sections), strict=False):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return tuple(shared)

    @property
    def path_above(self) -> tuple[str, ...]:
        """The headings above its first line."""
        first = self.sections[0]
        return first.path_above if self.pieces[0] is first.pieces[0] else first.path


@dataclass(frozen=True)
class Prefix:
    """The line above a chunk's text, and its tokens."""

    text: str
    tokens: int


def chunk_notes(batch: pa.RecordBatch, counter: TokenCounter, max_tokens: int) -> pa.RecordBatch:
    """The chunks of notes (columns note_id, source, path, title, tags, headings, content), in order.

    `text` is `content[start:end]`. `embedded_text`, of `max_tokens` at most, is what is to be embedded; the ids
    follow from it. A note without any text has one chunk, so that it can be found: its text is the title and
    its span is empty. A note whose content is null has none. Front matter is left out.
    """
    rows = [row for row in batch.to_pylist() if row["content"] is not None]
    notes = [parse_sections(row["content"], row["headings"] or ()) for row in rows]
    names = [row["title"] or PurePosixPath(row["path"]).stem or row["path"] for row in rows]
    prefixes = _prefixes(zip(names, notes, strict=True), counter, max_tokens)
    for name, sections in zip(names, notes, strict=True):
        for section in sections:
            above = max(prefixes[name, path].tokens for path in (section.path, section.path_above))
            section.budget = max_tokens - above
    measure([section for sections in notes for section in sections], counter)
    found: list[dict[str, Any]] = []
    for row, name, sections in zip(rows, names, notes, strict=True):
        counts: Counter[str] = Counter()
        chunks = _join_tiny(_chunks(sections))
        for position, chunk in enumerate(chunks or [None]):
            found.append(_row(row, name, position, chunk, prefixes, counts))
    return pa.RecordBatch.from_pylist(found, SCHEMA)


def search_tags(tags: Iterable[str]) -> list[str]:
    """Tags as they are searched: lower case, with every parent of a nested one."""
    found: dict[str, None] = {}
    for tag in tags:
        parts = [part for part in tag.lower().split("/") if part]
        found.update(dict.fromkeys("/".join(parts[: depth + 1]) for depth in range(len(parts))))
    return list(found)


def _prefixes(
    notes: Iterable[tuple[str, Sequence[Section]]], counter: TokenCounter, max_tokens: int
) -> dict[tuple[str, tuple[str, ...]], Prefix]:
    """The prefix of every place in the notes: title and headings, fewer and in the end cut where they are long."""
    limit = max_tokens // PREFIX_SHARE
    shorter: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, sections in notes:
        for path in {(), *(p for section in sections for p in (section.path, section.path_above))}:
            parts = [name, *(path[1:] if path[:1] == (name,) else path)]
            nearest = parts[-1]
            shorter[name, path] = [SEPARATOR.join(parts), SEPARATOR.join(parts[-2:]), nearest, nearest[:limit]]
    texts = list(dict.fromkeys(text for candidates in shorter.values() for text in candidates))
    tokens = dict(zip(texts, counter.count_tokens([f"{text}\n\n" for text in texts]), strict=True))
    return {
        place: next((Prefix(text, tokens[text]) for text in candidates if tokens[text] <= limit), Prefix("", 0))
        for place, candidates in shorter.items()
    }


def _chunks(sections: Sequence[Section]) -> Iterator[Chunk]:
    run: list[Section] = []
    for section in sections:
        is_small = section.size < SMALL_SHARE * section.budget
        if run and not (is_small and run[-1].goes_with(section)):
            yield from _share(run)
            run = []
        if is_small:
            run.append(section)
        else:
            yield from (Chunk([section], pieces) for pieces in pack(section.pieces, section.budget))
    yield from _share(run)


def _share(run: Sequence[Section]) -> Iterator[Chunk]:
    """Small neighbours in common chunks."""
    if run:
        for group in pack(run, min(section.budget for section in run)):
            yield Chunk(group, [piece for section in group for piece in section.pieces])


def _join_tiny(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Chunks with those that are hardly worth one joined to the one before or behind."""
    joined: list[Chunk] = []
    for chunk in chunks:
        before = joined[-1] if joined else None
        if before is not None and before.sections[-1].goes_with(chunk.sections[0]):
            sections = [*before.sections, *chunk.sections]
            budget = min(section.budget for section in sections)
            both = before.size + chunk.size
            if min(before.size, chunk.size) < TINY_SHARE * budget and both <= budget:
                if before.sections[-1] is chunk.sections[0]:
                    sections.remove(chunk.sections[0])
                joined[-1] = Chunk(sections, [*before.pieces, *chunk.pieces])
                continue
        joined.append(chunk)
    return joined


class _Item(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def order(self) -> tuple[int, bytes]: ...


_T = TypeVar("_T", bound=_Item)


def pack(items: Sequence[_T], budget: int) -> list[list[_T]]:
    """Items in consecutive groups of at most `budget` tokens, unless an item alone has more.

    Of the cuts that fill a group to 40 % and more, the one with the smallest `order` is taken. It is the
    same one wherever the group began, as long as it lies in reach.
    """
    fill = FILL_SHARE * budget
    groups: list[list[_T]] = []
    start = 0
    rest = sum(item.size for item in items)
    while rest > budget and start < len(items) - 1:
        size = items[start].size
        cut, cut_size = start + 1, size
        best: tuple[bool, tuple[int, bytes]] | None = None
        for index in range(start + 1, len(items)):
            if size >= fill:
                rated = (rest - size < fill, items[index].order)
                if best is None or rated < best:
                    best, cut, cut_size = rated, index, size
            elif best is None:
                cut, cut_size = index, size
            size += items[index].size
            if size > budget:
                break
        groups.append(list(items[start:cut]))
        start, rest = cut, rest - cut_size
    groups.append(list(items[start:]))
    return [group for group in groups if group]


def _row(
    row: dict[str, Any],
    name: str,
    position: int,
    chunk: Chunk | None,
    prefixes: dict[tuple[str, tuple[str, ...]], Prefix],
    counts: Counter[str],
) -> dict[str, Any]:
    prefix = prefixes[name, chunk.path_above if chunk else ()]
    pieces = chunk.pieces if chunk else []
    start, end = (pieces[0].block.start, pieces[-1].block.end) if pieces else (0, 0)
    text = row["content"][start:end] if pieces else name
    body = "\n".join(piece.text for piece in pieces if piece.text)
    embedded = "\n\n".join(part for part in (prefix.text, body) if part)
    digest = ids.sha256(embedded.encode())
    ordinal = counts[digest]
    counts[digest] += 1
    return {
        "chunk_id": ids.chunk_id(row["note_id"], digest, ordinal),
        "note_id": row["note_id"],
        "source": row["source"],
        "path": row["path"],
        "title": row["title"],
        "tags": search_tags(row["tags"] or ()),
        "heading_path": SEPARATOR.join(chunk.heading_path) if chunk else "",
        "position": position,
        "start": start,
        "end": end,
        "text": text,
        "token_count": prefix.tokens + sum(piece.tokens for piece in pieces),
        "text_hash": digest,
        "quality_score": _word_share(text),
        "embedded_text": embedded,
    }


def _word_share(text: str) -> float:
    characters = len("".join(text.split()))
    return len(_NO_WORD.sub("", text)) / characters if characters else 0.0
