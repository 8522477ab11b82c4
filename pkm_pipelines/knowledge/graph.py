"""The edges of the knowledge graph: what each note links to, embeds, is tagged with and is also called.

| kind | raw_target | target_key | dst, dst_path |
|---|---|---|---|
| link, embed | target as written, with subpath | name it is looked up by | note, path of note or file, or URL |
| tag | tag | folded tag | null, folded tag |
| alias | alias | folded alias | null, alias: it names its note and leads nowhere |
| mention | words as written | folded name | note, its path (see `mentions`) |

Tags, aliases and mentions are always resolved. An external link and a link within its note have the key '', since no
file can change where they lead; a reference to a Logseq block has the block's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from pkm_pipelines.knowledge.links import VaultIndex, fold, target_key
from pkm_pipelines.model import ids
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH


class Edge(NamedTuple):
    """One row of `silver.knowledge_graph`, in the order of its columns."""

    edge_id: str
    src: str
    kind: str
    raw_target: str
    ordinal: int
    target_key: str
    status: str
    dst: str | None
    dst_path: str | None
    subpath: str | None = None
    display: str | None = None
    property: str | None = None
    start: int | None = None
    end: int | None = None


def edges(notes: pa.RecordBatch, index: VaultIndex, note_ids: Mapping[str, str]) -> pa.RecordBatch:
    """The link, embed, tag and alias edges of some notes, in the columns of `silver.knowledge_graph`.

    `notes` has the columns note_id, path, aliases, tags and links of `silver.processed_notes`; `index` holds the
    files of their vault and `note_ids` the note of each path in it.
    """
    columns = ("note_id", "path", "aliases", "tags", "links")
    rows: list[Edge] = []
    for src, path, aliases, tags, links in zip(*[notes.column(name).to_pylist() for name in columns], strict=True):
        rows += _link_edges(src, path, links or [], index, note_ids)
        for tag in tags or []:
            key = fold(tag)
            rows.append(Edge(ids.edge_id(src, "tag", tag, 0), src, "tag", tag, 0, key, "resolved", None, key))
        for alias in dict.fromkeys(aliases or []):
            edge_id = ids.edge_id(src, "alias", alias, 0)
            rows.append(Edge(edge_id, src, "alias", alias, 0, fold(alias), "resolved", None, alias))
    return to_batch(rows)


def to_batch(rows: list[Edge]) -> pa.RecordBatch:
    """Edges as a batch of `silver.knowledge_graph`."""
    schema = KNOWLEDGE_GRAPH.arrow
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _link_edges(
    src: str, path: str, links: list[dict[str, Any]], index: VaultIndex, note_ids: Mapping[str, str]
) -> Iterator[Edge]:
    seen: Counter[tuple[str, str]] = Counter()
    for link in links:
        kind, form, target, subpath = link["kind"], link["form"], link["target"], link["subpath"]
        raw_target = target + (subpath or "")
        ordinal = seen[kind, raw_target]
        seen[kind, raw_target] += 1
        status, dst_path = index.resolve(target, subpath, path, form=form)
        yield Edge(
            edge_id=ids.edge_id(src, kind, raw_target, ordinal),
            src=src,
            kind=kind,
            raw_target=raw_target,
            ordinal=ordinal,
            target_key="" if status == "external" else target if form == "blockref" else target_key(target),
            status=status,
            dst=None if dst_path is None else note_ids.get(dst_path),
            dst_path=dst_path,
            subpath=subpath,
            display=link["display"],
            property=link["property"],
            start=link["start"],
            end=link["end"],
        )
