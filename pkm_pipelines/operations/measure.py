"""From notes, edges and concepts to the metrics of each note.

What is counted in a note alone is counted for the notes that changed. Degrees and PageRank are computed over the
whole graph, and only if an edge changed; a stored PageRank is replaced where it moved by more than
`PAGERANK_TOLERANCE`. So an edit of prose rewrites one row, and an edit of a link rewrites those whose value changed.
The merge finds the rows that are really different: equal rows are not written.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, NOTE_METRICS, PROCESSED_NOTES
from pkm_pipelines.operations.derive import Inputs, inputs_of, note_windows
from pkm_pipelines.operations.stores import Stores

_NOTE_COLUMNS = (
    "note_id", "source", "path", "title", "word_count", "character_count", "reading_seconds", "headings", "tags",
    "tasks", "text", "language", "created_at", "changed_at",
)  # fmt: skip
_GRAPH_COLUMNS = ("note_id", "out_degree", "in_degree", "broken_links", "external_links", "pagerank")


def measure_notes(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """The metrics of the notes that changed, and of those that hang together with the others differently now."""
    inputs = inputs_of(stores, NOTE_METRICS, [PROCESSED_NOTES, KNOWLEDGE_GRAPH, EXTRACTED_CONCEPTS])
    if not inputs.moved:
        return
    from pkm_pipelines.knowledge import metrics

    stored = _table(stores, NOTE_METRICS, NOTE_METRICS.arrow.names)
    local, gone = _local(stores, inputs, stored, progress)
    graph = _graph(stores, inputs, stored, local["note_id"].combine_chunks(), progress)
    counts = metrics.concept_counts(_table(stores, EXTRACTED_CONCEPTS, ["note_id"], inputs))
    yield Delta(
        table=NOTE_METRICS.name,
        rows=[metrics.note_metrics(local, graph, counts)],
        mode="merge",
        op_id=str(uuid.uuid4()),
        delete_keys=pa.table({"note_id": pa.array(gone, pa.string())}) if gone else None,
        watermarks=inputs.until,
        expect=inputs.marks,
    )
    progress.done()


def _local(stores: Stores, inputs: Inputs, stored: pa.Table, progress: Progress) -> tuple[pa.Table, list[str]]:
    """Local metrics of every note that is alive, counted anew where it changed; and the notes that are gone."""
    from pkm_pipelines.knowledge.metrics import LOCAL_COLUMNS, local_metrics

    progress.stage("metrics", unit="notes")
    kept = stored.select(list(LOCAL_COLUMNS))
    counted: list[pa.Table] = []
    changed: list[str] = []
    gone: list[str] = []
    for window in note_windows(stores, inputs, _NOTE_COLUMNS):
        progress.check_cancelled()
        counted.append(local_metrics(window.alive.select(_NOTE_COLUMNS)).cast(kept.schema))
        changed += window.note_ids
        gone += window.gone
        progress.advance(len(window.note_ids))
    if changed:
        kept = kept.filter(pc.invert(pc.is_in(kept["note_id"], pa.array(changed, pa.string()))))
    return pa.concat_tables([kept, *counted]), sorted(set(gone) & set(stored["note_id"].to_pylist()))


def _graph(stores: Stores, inputs: Inputs, stored: pa.Table, note_ids: pa.Array, progress: Progress) -> pa.Table:
    """Degrees and PageRank of `note_ids`: the stored ones, unless an edge or the set of notes has changed."""
    from pkm_pipelines.knowledge.metrics import graph_metrics, settle_pagerank

    graph = KNOWLEDGE_GRAPH.name
    same_notes = set(note_ids.to_pylist()) == set(stored["note_id"].to_pylist())
    if same_notes and inputs.since.get(graph) == inputs.until.get(graph):
        return stored.select(_GRAPH_COLUMNS)
    progress.stage("rank", unit="notes")
    edges = _table(stores, KNOWLEDGE_GRAPH, ["src", "kind", "status", "dst"], inputs)
    return settle_pagerank(graph_metrics(edges, note_ids), stored)


def _table(stores: Stores, spec: TableSpec, columns: Sequence[str], inputs: Inputs | None = None) -> pa.Table:
    """Some columns of a whole table, as of the run's snapshot of it where it is an input."""
    snapshot_id = inputs.until.get(spec.name) if inputs else None
    return stores.tables.read(spec.name, columns=columns, snapshot_id=snapshot_id).read_all()
