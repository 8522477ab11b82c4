"""Unlinked mentions: another note's name in running text, where a link might stand.

The rule. A name is the title, the file name or an alias of a note. It is looked for if it has four characters at
least (two, if one of them is Chinese, Japanese or Korean) and is not digits only, and if it is the name of one note
only: a name that several notes share does not say which is meant. It is found in running text, not in code, formulas,
comments, HTML, links or front matter; in any case; as whole words, except that Chinese and Japanese have no
word boundaries to keep. Where names overlap, the leftmost counts, and of those the longest. A note and a name make
one mention, at the first place.

All names are searched at once (Aho and Corasick 1975, doi:10.1145/360825.360855), so the cost follows the
length of the text and not the number of names.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import ahocorasick_rs
import pyarrow as pa

from pkm_pipelines.knowledge.graph import Edge, to_batch
from pkm_pipelines.knowledge.links import fold
from pkm_pipelines.knowledge.markdown import prose_spans
from pkm_pipelines.knowledge.note import Flavour
from pkm_pipelines.knowledge.words import is_cjk
from pkm_pipelines.model import ids

SHORTEST = 4
SHORTEST_CJK = 2
LONGEST = 200
"""Longer names are sentences; nobody mentions a note by one."""
_WINDOW = 1 << 14
"""Characters searched at once: bounds what overlapping matches can take."""


_FORMS = ("NFC", "NFD")


class Name(NamedTuple):
    """A name of a note: title, file name without `.md`, or alias."""

    text: str
    note_id: str
    path: str


class MentionFinder:
    """Finds the names of the notes of one vault in the text of others."""

    def __init__(self, names: Iterable[Name], *, only: Collection[str] | None = None):
        """Prepare to look for `names`; with `only`, for those whose folded form (`links.fold`) is in it."""
        owners: dict[str, dict[str, Name]] = {}
        for name in names:
            key = fold(name.text).strip()
            if only is None or key in only:
                owners.setdefault(key, {}).setdefault(name.note_id, name)
        self._names: list[tuple[str, Name]] = []
        patterns: list[str] = []
        for key in sorted(owners):
            if len(owners[key]) == 1 and _is_name(key):
                [name] = owners[key].values()
                for pattern in sorted({_lower(unicodedata.normalize(form, name.text.strip())) for form in _FORMS}):
                    self._names.append((key, name))
                    patterns.append(pattern)
        self._longest = max(map(len, patterns), default=0)
        self._automaton = ahocorasick_rs.AhoCorasick(patterns) if patterns else None

    def find(self, notes: pa.RecordBatch, *, flavour: Flavour = "obsidian") -> pa.RecordBatch:
        """The mention edges of some notes, in the columns of `silver.knowledge_graph`.

        `notes` has the columns note_id and content of `silver.processed_notes`.
        """
        rows: list[Edge] = []
        if self._automaton is not None:
            columns = [notes.column(name).to_pylist() for name in ("note_id", "content")]
            for src, content in zip(*columns, strict=True):
                if content:
                    rows += self._find_in_note(src, content, flavour)
        return to_batch(rows)

    def _find_in_note(self, src: str, content: str, flavour: Flavour) -> Iterator[Edge]:
        hits = [hit for hit in self._hits(content) if self._names[hit[2]][1].note_id != src]
        if not hits:
            return
        prose = prose_spans(content, flavour=flavour)
        seen: set[str] = set()
        last_end = 0
        for start, negative_end, position in sorted(hits):  # leftmost, and of those the longest
            end = -negative_end
            span = prose[bisect_right(prose, (start, len(content))) - 1] if prose else (0, 0)
            if start < last_end or not span[0] <= start < end <= span[1]:
                continue
            last_end = end
            key, name = self._names[position]
            if key not in seen:
                seen.add(key)
                yield Edge(
                    edge_id=ids.edge_id(src, "mention", content[start:end], 0),
                    src=src,
                    kind="mention",
                    raw_target=content[start:end],
                    ordinal=0,
                    target_key=key,
                    status="resolved",
                    dst=name.note_id,
                    dst_path=name.path,
                    start=start,
                    end=end,
                )

    def _hits(self, content: str) -> Iterator[tuple[int, int, int]]:
        """(start, -end, position of the name) of every name that stands as whole words."""
        assert self._automaton is not None
        text = _lower(content)
        for offset in range(0, len(text), _WINDOW):
            window = text[offset : offset + _WINDOW + self._longest]
            for position, start, end in self._automaton.find_matches_as_indexes(window, overlapping=True):
                if start < _WINDOW and _is_whole(text, offset + start, offset + end):
                    yield offset + start, -(offset + end), position


def mentions(notes: pa.RecordBatch, names: Iterable[Name], *, flavour: Flavour = "obsidian") -> pa.RecordBatch:
    """The mention edges of some notes; `MentionFinder` is the same for many batches."""
    return MentionFinder(names).find(notes, flavour=flavour)


def note_names(note_id: str, path: str, title: str | None, aliases: Iterable[str] | None) -> Iterator[Name]:
    """The names of a note, those that are too short to be looked for included."""
    yield Name(path.rpartition("/")[2].removesuffix(".md"), note_id, path)
    if title:
        yield Name(title, note_id, path)
    for alias in aliases or ():
        yield Name(alias, note_id, path)


def _lower(text: str) -> str:
    """Lower case that keeps every character in its place, so that offsets stay right."""
    if text.isascii():
        return text.lower()
    return text.replace("\u0130", "i").lower().replace("\u03c2", "\u03c3")


def _is_name(key: str) -> bool:
    if len(key) > LONGEST or key.isdigit():
        return False
    return len(key) >= SHORTEST or (len(key) >= SHORTEST_CJK and any(map(_is_boundless, key)))


def _is_boundless(character: str) -> bool:
    """Whether words of this script run on without blanks: Chinese, Japanese, and Korean with its particles."""
    return is_cjk(character) or "\uac00" <= character <= "\ud7a3"


def _is_whole(text: str, start: int, end: int) -> bool:
    return _is_boundary(text, start - 1, text[start]) and _is_boundary(text, end, text[end - 1])


def _is_boundary(text: str, outside: int, inside: str) -> bool:
    """Whether a word may end between a character of a name and its neighbour outside."""
    if not 0 <= outside < len(text):
        return True
    character = text[outside]
    if not (character.isalnum() or character == "_" or unicodedata.combining(character)):
        return True
    return _is_boundless(character) or _is_boundless(inside)
