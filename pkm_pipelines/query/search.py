"""Searching notes: by words, by meaning, or both, one answer a note, with the reason in view.

A query is whatever a person types: words, and "phrases in quotes"; nothing else in it has a meaning, and
nothing in it is an error. How scores come about is told in `storage/lance_search.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.query.snippet import snippet

if TYPE_CHECKING:
    from pkm_pipelines.knowledge.embed import Embedder
    from pkm_pipelines.storage.lance import VectorStore

Mode = Literal["hybrid", "vector", "text"]
_COLUMNS = ("chunk_id", "note_id", "title", "path", "source", "heading_path", "text", "start", "end")
_CHUNKS_PER_NOTE = 5
_PATH_CHARACTERS = 4096
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Hit:
    """One note that answers, and the chunk of it that answers best.

    `score` lies in [0, 1] and is comparable within one answer. `heading` are the headings above the chunk, joined
    by ' > '. `start` and `end` are character offsets into the note's content.
    """

    note_id: str
    title: str
    path: str
    source: str
    heading: str
    snippet: str
    score: float
    chunk_id: str
    start: int
    end: int


def search(
    vectors: VectorStore,
    table: str | None,
    embedder: Callable[[], Embedder | None],
    query: str,
    *,
    k: int = 10,
    mode: Mode = "hybrid",
    tag: str | None = None,
    path: str | None = None,
) -> list[Hit]:
    """The `k` notes that answer `query` best, best first.

    `tag` keeps notes with the tag or one nested below it, whatever its case. `path` is the start of paths, or a glob
    as .gitignore writes them; case is ignored too. `embedder` is called unless `mode` is `text`. Raises
    `QueryError` if there is nothing to search in or for.
    """
    if not query.strip():
        raise QueryError("the search is empty: say what to look for")
    if k < 1:
        raise QueryError(f"the number of results must be 1 or more, not {k}")
    if table is None:
        raise QueryError("embedder.model is `none`, so no note is embedded and there is nothing to search in")
    if not vectors.exists(table):
        raise QueryError("no note has been embedded yet: run `pkm run` first")
    vector = None
    if mode != "text":
        model = embedder()
        if model is None:
            raise QueryError(f"embedder.model is `none`, so a {mode} search is not possible; use the mode `text`")
        vector = model.encode_query(query)
    conditions = [_tag_filter(tag)] if tag is not None else []
    conditions += [_path_filter(path)] if path and path != "." else []
    where = " AND ".join(conditions) or None
    limit = _CHUNKS_PER_NOTE * k
    while True:
        found = vectors.search(
            table, vector=vector, text=query, mode=mode, k=limit, where=where, columns=_COLUMNS
        ).to_pylist()
        best: dict[str, dict[str, Any]] = {}
        for row in found:
            best.setdefault(row["note_id"], row)
        if len(best) >= k or len(found) < limit:
            break
        limit *= 4
    return _hits(list(best.values())[:k], query)


def _hits(rows: list[dict[str, Any]], query: str) -> list[Hit]:
    return [
        Hit(
            note_id=row["note_id"],
            title=row["title"] or PurePosixPath(row["path"]).stem,
            path=row["path"],
            source=row["source"],
            heading=row["heading_path"] or "",
            snippet=snippet(row["text"], query, row["heading_path"] or ""),
            score=row["score"],
            chunk_id=row["chunk_id"],
            start=row["start"],
            end=row["end"],
        )
        for row in rows
    ]


def _tag_filter(tag: str) -> str:
    """The table holds each tag and its parents in lower case, so that a nested one is found by its parent."""
    from pkm_pipelines.storage.lance_filter import quote

    wanted = tag.strip().removeprefix("#").strip("/").lower()
    if not wanted:
        raise QueryError(f"{tag!r} is no tag")
    return f"array_has(tags, {quote(wanted)})"


def _path_filter(path: str) -> str:
    from pkm_pipelines.model.globs import translate
    from pkm_pipelines.storage.lance_filter import quote

    if len(path) > _PATH_CHARACTERS:
        raise QueryError(f"the path has {len(path)} characters, more than any that is searched for")
    wanted = unicodedata.normalize("NFC", path).removeprefix("./").removeprefix("/")
    if not _GLOB.search(wanted):
        return f"regexp_like(path, {quote(f'(?is)^{re.escape(wanted)}')})"
    try:
        # Lance's expressions look neither ahead nor behind; only a class that names '/' would tell the difference.
        regex = translate(wanted).replace("(?!/)", "")
    except ValueError as error:
        raise QueryError(f"path {path!r}: {error}") from error
    return f"regexp_like(path, {quote(f'(?is)^(?:{regex})$')})"
