"""One note and its neighbourhood: what it says of itself, where it links, who links to it, and what happened to it."""

from __future__ import annotations

import datetime as dt
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH, PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression

LINKS = ("link", "embed")
_NAMED = 10


@dataclass(frozen=True)
class NoteLink:
    """An edge between this note and another: `note_id`, `path` and `title` are the other end, where it is a note.

    `raw_target` is the target as it is written, `subpath` (`#heading`, `#^block`) included.
    `start` and `end` are character offsets into the content of the note that the link stands in.
    """

    kind: str
    status: str
    raw_target: str
    subpath: str | None
    display: str | None
    note_id: str | None
    path: str | None
    title: str | None
    start: int | None
    end: int | None


@dataclass(frozen=True)
class NoteEvent:
    """One observed change of the note."""

    changed_at: dt.datetime
    change_type: str
    path: str
    previous_path: str | None
    commit_id: str | None
    author: str | None
    size_bytes: int | None
    ingested_at: dt.datetime


@dataclass(frozen=True)
class NoteView:
    """All that the lakehouse knows of one note.

    `mentions` are names of other notes in its text that are not linked, `mentioned_by` notes that so mention this one.
    History is newest first.
    """

    note_id: str
    source: str
    path: str
    title: str | None
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    front_matter: dict[str, Any]
    language: str | None
    word_count: int | None
    reading_seconds: int | None
    changed_at: dt.datetime
    deleted_at: dt.datetime | None
    obsidian_url: str | None
    links: tuple[NoteLink, ...]
    backlinks: tuple[NoteLink, ...]
    mentions: tuple[NoteLink, ...]
    mentioned_by: tuple[NoteLink, ...]
    history: tuple[NoteEvent, ...]
    problems: tuple[dict[str, str], ...]
    content: str | None


@dataclass(frozen=True)
class _Name:
    """What a note can be asked for by."""

    note_id: str
    source: str
    path: str
    title: str
    aliases: tuple[str, ...]
    alive: bool


def note(stores: Stores, path_or_id: str) -> NoteView:
    """The note that `path_or_id` names: by id, path, path without `.md`, title, alias, or the end of its path.

    The first of these that any note answers to decides; deleted notes are asked last. `source:path` names a note
    where several sources have one. Raises `QueryError` if no note is meant, or more than one, naming them.
    """
    if not stores.iceberg.exists(PROCESSED_NOTES.name):
        raise QueryError("there are no notes yet: fill the lakehouse with `pkm run`")
    names = _names(stores)
    chosen = _choose(names, path_or_id)
    by_id = {name.note_id: name for name in names}
    row = _rows(stores, PROCESSED_NOTES.name, "note_id", chosen.note_id)[0]
    outgoing, incoming = _edges(stores, "src", chosen.note_id, by_id), _edges(stores, "dst", chosen.note_id, by_id)
    return NoteView(
        note_id=chosen.note_id,
        source=row["source"],
        path=row["path"],
        title=row["title"],
        aliases=tuple(row["aliases"] or ()),
        tags=tuple(row["tags"] or ()),
        front_matter=json.loads(row["front_matter"]) if row["front_matter"] else {},
        language=row["language"],
        word_count=row["word_count"],
        reading_seconds=row["reading_seconds"],
        changed_at=row["changed_at"],
        deleted_at=row["deleted_at"],
        obsidian_url=None if row["deleted_at"] else obsidian_url(stores.settings, row["source"], row["path"]),
        links=tuple(edge for edge in outgoing if edge.kind in LINKS),
        backlinks=tuple(edge for edge in incoming if edge.kind in LINKS),
        mentions=tuple(edge for edge in outgoing if edge.kind == "mention"),
        mentioned_by=tuple(edge for edge in incoming if edge.kind == "mention"),
        history=_history(stores, chosen.note_id),
        problems=tuple(row["problems"] or ()),
        content=row["content"],
    )


def obsidian_url(settings: Settings, source: str, path: str) -> str | None:
    """The address that opens a note in Obsidian, or None for a source that the settings no longer have.

    The vault is called as its root folder is (https://help.obsidian.md/uri); every reserved character is
    percent-encoded, '/' included.
    """
    found = next((item for item in settings.sources if item.name == source), None)
    if found is None:
        return None
    root = settings.source_path(found).resolve()
    vault = PurePosixPath(found.subfolder).name or root.name.removesuffix(".git")
    return f"obsidian://open?vault={quote(vault, safe='')}&file={quote(path, safe='')}"


def _names(stores: Stores) -> list[_Name]:
    columns = ["note_id", "source", "path", "title", "aliases", "deleted_at"]
    return [
        _Name(
            row["note_id"],
            row["source"],
            row["path"],
            row["title"] or "",
            tuple(row["aliases"] or ()),
            row["deleted_at"] is None,
        )
        for batch in stores.tables.read(PROCESSED_NOTES.name, columns=columns)
        for row in batch.to_pylist()
    ]


def _choose(names: Sequence[_Name], asked: str) -> _Name:
    wanted = unicodedata.normalize("NFC", asked.strip()).removeprefix("./")
    if not wanted.strip("/"):
        raise QueryError("which note? Give its path, title or id")
    folded = wanted.casefold()
    source, _, inner = wanted.partition(":")

    def ends(path: str) -> bool:
        return f"/{path.casefold()}".endswith((f"/{folded}", f"/{folded}.md"))

    tests: list[Callable[[_Name], bool]] = [
        lambda name: name.note_id == wanted,
        lambda name: name.path == wanted,
        lambda name: name.source == source and name.path in (inner, f"{inner}.md"),
        lambda name: name.path == f"{wanted}.md",
        lambda name: name.title == wanted,
        lambda name: name.title.casefold() == folded,
        lambda name: folded in (alias.casefold() for alias in name.aliases),
        lambda name: ends(name.path),
    ]
    for alive, test in product((True, False), tests):
        found = [name for name in names if name.alive == alive and test(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise QueryError(f"{asked!r} could be any of {_listed(found)}; give the path or id")
    near = [
        name for name in names if name.alive and (folded in name.path.casefold() or folded in name.title.casefold())
    ]
    hint = f"; did you mean {_listed(near)}?" if near else "; `pkm search` looks in the text"
    raise QueryError(f"no note is called {asked!r}{hint}")


def _listed(names: Sequence[_Name]) -> str:
    several = len({name.source for name in names}) > 1
    shown = sorted(f"{name.source}:{name.path}" if several else name.path for name in names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _rows(
    stores: Stores, table: str, column: str, value: str, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of `table` in which `column` is `value`."""
    from pyiceberg.expressions import EqualTo

    condition: BooleanExpression = EqualTo(column, value)
    batches = stores.tables.read(table, columns=columns, row_filter=condition)
    return [row for batch in batches for row in batch.to_pylist()]


def _edges(stores: Stores, column: str, note_id: str, by_id: dict[str, _Name]) -> list[NoteLink]:
    """The edges that start from the note (`src`) or end in it (`dst`), in the order of the text."""
    if not stores.iceberg.exists(KNOWLEDGE_GRAPH.name):
        return []
    outgoing = column == "src"
    found: list[NoteLink] = []
    for row in _rows(stores, KNOWLEDGE_GRAPH.name, column, note_id):
        other_id = row["dst"] if outgoing else row["src"]
        other = by_id.get(other_id) if other_id else None
        found.append(
            NoteLink(
                kind=row["kind"],
                status=row["status"],
                raw_target=row["raw_target"],
                subpath=row["subpath"],
                display=row["display"],
                note_id=other_id,
                path=other.path if other else (row["dst_path"] if outgoing else None),
                title=other.title if other else None,
                start=row["start"],
                end=row["end"],
            )
        )
    if outgoing:
        return sorted(found, key=lambda link: (link.start is not None, link.start or 0, link.raw_target))
    return sorted(found, key=lambda link: (link.path or "", link.start or 0))


def _history(stores: Stores, note_id: str) -> tuple[NoteEvent, ...]:
    if not stores.iceberg.exists(RAW_NOTES.name):
        return ()
    kept = ("changed_at", "change_type", "path", "previous_path", "commit_id", "author", "size_bytes", "ingested_at")
    rows = _rows(stores, RAW_NOTES.name, "note_id", note_id, [*kept, "note_id", "ordinal", "lsn"])
    rows.sort(key=lambda row: (row["changed_at"], row["ordinal"], row["lsn"]), reverse=True)
    return tuple(NoteEvent(**{name: row[name] for name in kept}) for row in rows)
