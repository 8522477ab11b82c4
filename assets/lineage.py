"""Which column comes from which: shown on the lineage page, one mapping for each table.

Written by hand, because it is what a reader of the graph asks; a test holds it against the schemas.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import (
    EXTRACTED_CONCEPTS,
    KNOWLEDGE_GRAPH,
    PROCESSED_NOTES,
    RAW_MEDIA,
    RAW_NOTES,
)

Sources = Mapping[str, tuple[tuple[TableSpec, str], ...]]

_CONTENT = ((RAW_NOTES, "content"),)
_SAME = ("note_id", "source", "path", "content", "content_hash", "change_id", "changed_at", "ordinal", "lsn")

PROCESSED: Sources = {
    **{name: ((RAW_NOTES, name),) for name in _SAME},
    **{column.name: _CONTENT for column in PROCESSED_NOTES.columns if column.name not in _SAME},
    "title": ((RAW_NOTES, "content"), (RAW_NOTES, "path")),
    "problems": ((RAW_NOTES, "content"), (RAW_NOTES, "problems")),
    "deleted_at": ((RAW_NOTES, "change_type"), (RAW_NOTES, "changed_at")),
}

CONCEPTS: Sources = {
    "note_id": ((PROCESSED_NOTES, "note_id"),),
    "language": ((PROCESSED_NOTES, "language"),),
    **dict.fromkeys(("concept", "label", "kind", "score"), ((PROCESSED_NOTES, "text"), (PROCESSED_NOTES, "title"))),
    "spans": ((PROCESSED_NOTES, "content"),),
}

_LINKS = ((PROCESSED_NOTES, "links"),)
_RESOLVED = ((PROCESSED_NOTES, "links"), (PROCESSED_NOTES, "path"), (RAW_MEDIA, "path"))
GRAPH: Sources = {
    "edge_id": ((PROCESSED_NOTES, "note_id"), *_LINKS),
    "src": ((PROCESSED_NOTES, "note_id"),),
    "kind": ((PROCESSED_NOTES, "links"), (PROCESSED_NOTES, "tags"), (PROCESSED_NOTES, "aliases")),
    "raw_target": (*_LINKS, (PROCESSED_NOTES, "tags"), (PROCESSED_NOTES, "aliases"), (PROCESSED_NOTES, "content")),
    **dict.fromkeys(("status", "dst", "dst_path"), _RESOLVED),
    **dict.fromkeys(("ordinal", "target_key", "subpath", "display", "property", "start", "end"), _LINKS),
}

_SAME_METRICS = ("note_id", "source", "path", "title", "word_count", "character_count", "reading_seconds")
METRICS: Sources = {
    **{name: ((PROCESSED_NOTES, name),) for name in (*_SAME_METRICS, "created_at", "changed_at")},
    "heading_count": ((PROCESSED_NOTES, "headings"),),
    "tag_count": ((PROCESSED_NOTES, "tags"),),
    "task_count": ((PROCESSED_NOTES, "tasks"),),
    "open_task_count": ((PROCESSED_NOTES, "tasks"),),
    "concept_count": ((EXTRACTED_CONCEPTS, "concept"),),
    "out_degree": ((KNOWLEDGE_GRAPH, "src"),),
    "in_degree": ((KNOWLEDGE_GRAPH, "dst"),),
    "broken_links": ((KNOWLEDGE_GRAPH, "status"),),
    "external_links": ((KNOWLEDGE_GRAPH, "status"),),
    "pagerank": ((KNOWLEDGE_GRAPH, "src"), (KNOWLEDGE_GRAPH, "dst")),
    "readability": ((PROCESSED_NOTES, "text"), (PROCESSED_NOTES, "language")),
    "quality": (
        (PROCESSED_NOTES, "headings"),
        (PROCESSED_NOTES, "front_matter"),
        (PROCESSED_NOTES, "word_count"),
        (KNOWLEDGE_GRAPH, "src"),
        (KNOWLEDGE_GRAPH, "dst"),
    ),
}

EMBEDDINGS: Sources = {
    **{name: ((PROCESSED_NOTES, name),) for name in ("note_id", "source", "path", "title", "tags")},
    **dict.fromkeys(
        ("chunk_id", "heading_path", "position", "start", "end", "text", "token_count", "text_hash"),
        ((PROCESSED_NOTES, "content"), (PROCESSED_NOTES, "headings")),
    ),
    "embedding": ((PROCESSED_NOTES, "content"), (PROCESSED_NOTES, "title"), (PROCESSED_NOTES, "headings")),
    "quality_score": ((PROCESSED_NOTES, "content"),),
}


def column_lineage(sources: Sources) -> dg.TableColumnLineage:
    """The lineage as Dagster shows it."""
    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(asset_key=dg.AssetKey([spec.layer, spec.table]), column_name=name)
                for spec, name in origins
            ]
            for column, origins in sources.items()
        }
    )
