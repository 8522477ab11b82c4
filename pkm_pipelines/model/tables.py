"""Every table of the lakehouse: its columns, key, partition and sort order.

Ids are Iceberg field ids. They are never reused: a new column takes the next free number.
"""

from __future__ import annotations

import re

import pyarrow as pa

from pkm_pipelines.model.schema import TIMESTAMP, Column, PartitionField, TableSpec

_STR = pa.string()
_I64 = pa.int64()
_F64 = pa.float64()
_STRINGS = pa.list_(pa.string())

HEADING = pa.struct([("level", pa.int32()), ("text", _STR), ("anchor", _STR), ("start", _I64), ("end", _I64)])
TAG = pa.struct([("tag", _STR), ("start", _I64), ("end", _I64)])
TASK = pa.struct([("status", _STR), ("text", _STR), ("start", _I64), ("end", _I64)])
CALLOUT = pa.struct([("type", _STR), ("title", _STR), ("fold", _STR), ("start", _I64), ("end", _I64)])
BLOCK = pa.struct([("id", _STR), ("start", _I64), ("end", _I64)])
FOOTNOTE = pa.struct([("label", _STR), ("start", _I64), ("end", _I64)])
LINK = pa.struct(
    [
        ("kind", _STR),  # link | embed
        ("form", _STR),  # wikilink | markdown | frontmatter | autolink | blockref
        ("target", _STR),  # the raw link path, before the first '#', decoded
        ("subpath", _STR),  # '#heading', '#^block', or null
        ("display", _STR),
        ("property", _STR),  # the front-matter key it stands under, or null
        ("start", _I64),
        ("end", _I64),
    ]
)
PROBLEM = pa.struct([("code", _STR), ("message", _STR)])
SPAN = pa.struct([("start", _I64), ("end", _I64)])

RAW_NOTES = TableSpec(
    layer="bronze",
    table="raw_notes",
    doc="One observed change of one note, with its whole content. Nothing here is ever rewritten.",
    kind="log",
    key=("change_id",),
    partition=(PartitionField("partition_date", "month"),),
    sort=("changed_at",),
    retention_days=90,
    columns=(
        Column(1, "change_id", _STR, "UUIDv5 of (source, commit or version, path, kind, content hash)", True),
        Column(2, "lsn", _I64, "Log sequence number: epoch in the high 16 bits, then a counter", True),
        Column(3, "change_type", _STR, "INSERT, UPDATE_AFTER or DELETE", True),
        Column(4, "source", _STR, "Name of the source in the settings", True),
        Column(5, "note_id", _STR, "The note, fixed from its first appearance on", True),
        Column(6, "path", _STR, "Path in the source, '/' between folders, NFC", True),
        Column(7, "previous_path", _STR, "Where the note was before, if this change moved it"),
        Column(8, "content", _STR, "Text of the note; null for a delete"),
        Column(9, "content_bytes", pa.binary(), "The bytes, where they are not valid UTF-8 or hold NUL"),
        Column(10, "content_hash", _STR, "SHA-256 of the bytes, hexadecimal; null for a delete"),
        Column(11, "size_bytes", _I64, "Size of the note in bytes"),
        Column(12, "modified_at", TIMESTAMP, "Modification time of the file, or the commit's author time"),
        Column(13, "version", _I64, "How often this note has changed, counted from 1 (folder); null in git"),
        Column(14, "commit_id", _STR, "Git commit, or null"),
        Column(15, "author", _STR, "Author of the commit, or null"),
        Column(16, "ordinal", _I64, "Position of the commit on the first-parent chain; 0 in a folder", True),
        Column(17, "changed_at", TIMESTAMP, "When the change happened as far as anyone can know", True),
        Column(18, "ingested_at", TIMESTAMP, "When the lakehouse recorded it", True),
        Column(19, "partition_date", pa.date32(), "Day of the commit or of the observation, UTC", True),
        Column(20, "problems", pa.list_(PROBLEM), "What was odd about the file"),
    ),
)

RAW_MEDIA = TableSpec(
    layer="bronze",
    table="raw_media",
    doc="One observed change of a file that is no note; its bytes lie in the object store under their hash.",
    kind="log",
    key=("change_id",),
    partition=(PartitionField("partition_date", "month"),),
    sort=("changed_at",),
    retention_days=90,
    columns=(
        Column(1, "change_id", _STR, "UUIDv5 of (source, commit or version, path, kind, content hash)", True),
        Column(2, "lsn", _I64, "Log sequence number", True),
        Column(3, "change_type", _STR, "INSERT, UPDATE_AFTER or DELETE", True),
        Column(4, "source", _STR, "Name of the source in the settings", True),
        Column(5, "path", _STR, "Path in the source, '/' between folders, NFC", True),
        Column(6, "content_hash", _STR, "SHA-256 of the bytes, hexadecimal; null for a delete or a file too large"),
        Column(7, "size_bytes", _I64, "Size of the file in bytes"),
        Column(8, "modified_at", TIMESTAMP, "Modification time of the file, or the commit's author time"),
        Column(9, "version", _I64, "How often this file has changed, counted from 1 (folder); null in git"),
        Column(10, "commit_id", _STR, "Git commit, or null"),
        Column(11, "ordinal", _I64, "Position of the commit on the first-parent chain; 0 in a folder", True),
        Column(12, "changed_at", TIMESTAMP, "When the change happened as far as anyone can know", True),
        Column(13, "ingested_at", TIMESTAMP, "When the lakehouse recorded it", True),
        Column(14, "partition_date", pa.date32(), "Day of the commit or of the observation, UTC", True),
    ),
)

PROCESSED_NOTES = TableSpec(
    layer="silver",
    table="processed_notes",
    doc="The newest state of each note, parsed and validated. A deleted note stays as a tombstone.",
    kind="state",
    key=("note_id",),
    order=("changed_at", "ordinal", "lsn"),
    partition=(PartitionField("note_id", "bucket[16]"),),
    sort=("note_id",),
    retention_days=365,
    columns=(
        Column(1, "note_id", _STR, "The note", True),
        Column(2, "source", _STR, "Name of the source", True),
        Column(3, "path", _STR, "Path in the source", True),
        Column(4, "title", _STR, "Front-matter title, else the first level-1 heading, else the file name"),
        Column(5, "aliases", _STRINGS, "Other names of the note, from front matter"),
        Column(6, "tags", _STRINGS, "Tags without '#', front matter and body, first-seen case, unique"),
        Column(7, "created_at", TIMESTAMP, "Creation date that the front matter states"),
        Column(8, "updated_at", TIMESTAMP, "Modification date that the front matter states"),
        Column(9, "front_matter", _STR, "The whole front matter as JSON"),
        Column(10, "headings", pa.list_(HEADING), "Headings with level, text, anchor and span"),
        Column(11, "tag_spans", pa.list_(TAG), "Each tag of the body where it stands"),
        Column(12, "tasks", pa.list_(TASK), "Tasks with the raw status character"),
        Column(13, "callouts", pa.list_(CALLOUT), "Callouts with type and title"),
        Column(14, "block_ids", pa.list_(BLOCK), "Block ids (^id) and their blocks"),
        Column(15, "code_languages", _STRINGS, "Languages of fenced code, unique, in order"),
        Column(16, "footnotes", pa.list_(FOOTNOTE), "Footnote definitions"),
        Column(17, "links", pa.list_(LINK), "Links and embeds as written, not resolved"),
        Column(18, "content", _STR, "The Markdown text; null once deleted"),
        Column(19, "text", _STR, "Plain text, without markup and code"),
        Column(20, "language", _STR, "ISO 639-1 code, or null where it cannot be told"),
        Column(21, "word_count", _I64, "Words (Unicode segmentation; a Chinese or Japanese character counts as one)"),
        Column(22, "character_count", _I64, "Characters of the plain text without white space"),
        Column(23, "reading_seconds", _I64, "Reading time in seconds"),
        Column(24, "problems", pa.list_(PROBLEM), "What was odd about the note"),
        Column(25, "content_hash", _STR, "SHA-256 of the note's bytes"),
        Column(26, "change_id", _STR, "The bronze change this state comes from", True),
        Column(27, "changed_at", TIMESTAMP, "When this state came to be", True),
        Column(28, "ordinal", _I64, "First-parent ordinal in git; 0 in a folder", True),
        Column(29, "lsn", _I64, "Log sequence number of the change", True),
        Column(30, "deleted_at", TIMESTAMP, "When the note was deleted; null while it is alive"),
    ),
)

EXTRACTED_CONCEPTS = TableSpec(
    layer="silver",
    table="extracted_concepts",
    doc="A key phrase or entity found in a note, with its score and where it stands.",
    kind="state",
    key=("note_id", "concept"),
    partition=(PartitionField("note_id", "bucket[16]"),),
    sort=("note_id", "concept"),
    columns=(
        Column(1, "note_id", _STR, "The note", True),
        Column(2, "concept", _STR, "Normal form (lower case, stemmed), one for the whole vault", True),
        Column(3, "label", _STR, "The phrase as the note writes it", True),
        Column(4, "kind", _STR, "phrase or entity", True),
        Column(5, "score", _F64, "Relevance in the note, 0 to 1, higher is better", True),
        Column(6, "spans", pa.list_(SPAN), "Character offsets into the content"),
        Column(7, "language", _STR, "ISO 639-1 code the phrase was found in"),
    ),
)

KNOWLEDGE_GRAPH = TableSpec(
    layer="silver",
    table="knowledge_graph",
    doc="One edge from a note: a link, embed, tag, alias or mention; resolved, broken or external.",
    kind="state",
    key=("edge_id",),
    determined=("src",),
    partition=(PartitionField("src", "bucket[16]"),),
    sort=("src", "edge_id"),
    columns=(
        Column(1, "edge_id", _STR, "UUIDv5 of (src, kind, raw target, ordinal)", True),
        Column(2, "src", _STR, "Note the edge starts from", True),
        Column(3, "kind", _STR, "link, embed, tag, alias or mention", True),
        Column(4, "raw_target", _STR, "Target as written", True),
        Column(5, "ordinal", _I64, "Which of several equal targets in the note, from 0", True),
        Column(6, "target_key", _STR, "Name that the target is looked up by, folded", True),
        Column(7, "status", _STR, "resolved, broken or external", True),
        Column(8, "dst", _STR, "Note the edge ends in, if it is one"),
        Column(9, "dst_path", _STR, "Path of the note or file the edge ends in, a tag, or a URL"),
        Column(10, "subpath", _STR, "#heading or #^block"),
        Column(11, "display", _STR, "Text shown for the link"),
        Column(12, "property", _STR, "Front-matter key it stands under"),
        Column(13, "start", _I64, "Character offset into the content; null in front matter"),
        Column(14, "end", _I64, "Character offset of its end"),
    ),
)

NOTE_METRICS = TableSpec(
    layer="gold",
    table="note_metrics",
    doc="Counts, readability, degree, PageRank and quality of each note that is alive.",
    kind="state",
    key=("note_id",),
    sort=("note_id",),
    columns=(
        Column(1, "note_id", _STR, "The note", True),
        Column(2, "source", _STR, "Name of the source", True),
        Column(3, "path", _STR, "Path in the source", True),
        Column(4, "title", _STR, "Title of the note"),
        Column(5, "word_count", _I64, "Words"),
        Column(6, "character_count", _I64, "Characters"),
        Column(7, "reading_seconds", _I64, "Reading time in seconds"),
        Column(8, "heading_count", _I64, "Headings"),
        Column(9, "tag_count", _I64, "Tags"),
        Column(10, "task_count", _I64, "Tasks"),
        Column(11, "open_task_count", _I64, "Tasks whose status is a blank"),
        Column(12, "concept_count", _I64, "Concepts found"),
        Column(13, "out_degree", _I64, "Resolved links and embeds to other notes"),
        Column(14, "in_degree", _I64, "Resolved links and embeds from other notes"),
        Column(15, "broken_links", _I64, "Links whose target does not exist"),
        Column(16, "external_links", _I64, "Links to URLs"),
        Column(17, "pagerank", _F64, "PageRank over resolved links, scaled so that the mean is 1"),
        Column(18, "readability", _F64, "Readability score; null where the language has no formula"),
        Column(19, "quality", _F64, "0 to 1: structure, connections, metadata and length"),
        Column(20, "created_at", TIMESTAMP, "Creation date that the front matter states"),
        Column(21, "changed_at", TIMESTAMP, "Last change; freshness is computed from it on read", True),
    ),
)

ICEBERG_TABLES: tuple[TableSpec, ...] = (
    RAW_NOTES,
    RAW_MEDIA,
    PROCESSED_NOTES,
    EXTRACTED_CONCEPTS,
    KNOWLEDGE_GRAPH,
    NOTE_METRICS,
)
BY_NAME: dict[str, TableSpec] = {spec.name: spec for spec in ICEBERG_TABLES}


def note_embeddings(dimension: int, model: str = "") -> TableSpec:
    """The vector table for embeddings of `dimension` numbers (Lance, not Iceberg).

    Each model, with its backend and precision, has a table of its own: vectors of two models are never mixed,
    and a new model is filled beside the old one.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
    return TableSpec(
        layer="vectors",
        table=f"note_embeddings__{slug}" if slug else "note_embeddings",
        doc="One chunk of a note with its embedding, its place in the note and where it came from.",
        kind="state",
        key=("chunk_id",),
        columns=(
            Column(1, "chunk_id", _STR, "UUIDv5 of (note_id, text hash, ordinal)", True),
            Column(2, "note_id", _STR, "The note", True),
            Column(3, "source", _STR, "Name of the source", True),
            Column(4, "path", _STR, "Path in the source", True),
            Column(5, "title", _STR, "Title of the note"),
            Column(6, "tags", _STRINGS, "Tags of the note, and every parent of a nested tag, lower case"),
            Column(7, "heading_path", _STR, "Headings above the chunk, joined by ' > '"),
            Column(8, "position", pa.int32(), "Which chunk of the note, from 0", True),
            Column(9, "start", _I64, "Character offset into the content", True),
            Column(10, "end", _I64, "Character offset of the end", True),
            Column(11, "text", _STR, "Text of the chunk", True),
            Column(12, "token_count", pa.int32(), "Tokens of the embedded text in the model's own count", True),
            Column(13, "text_hash", _STR, "SHA-256 of the embedded text, hexadecimal", True),
            Column(14, "embedding", pa.list_(pa.float32(), dimension), "Unit vector", True),
            Column(15, "model", _STR, "Model, backend and precision", True),
            Column(16, "created_at", TIMESTAMP, "When the row was made", True),
            Column(17, "source_table", _STR, "Table the chunk was made from", True),
            Column(18, "iceberg_snapshot_id", _I64, "Snapshot of that table", True),
            Column(19, "processing_stage", _STR, "Stage of the note: silver", True),
            Column(20, "quality_score", pa.float32(), "Share of words among the chunk's characters, 0 to 1"),
        ),
    )
