"""From silver's notes to the chunks and vectors of each.

Only text that is new is embedded: a chunk that is still there keeps its row, one whose place, title or tags
moved is written again with the vector it has, and a text that stands anywhere in the table already lends its
vector (the table is the cache: one table holds one model and precision). Rows are committed a window at a
time; the watermark moves with the last, so a killed run embeds nothing twice.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import PROCESSED_NOTES, note_embeddings
from pkm_pipelines.operations.derive import Inputs, NoteWindow, inputs_of, note_windows
from pkm_pipelines.operations.stores import Stores

if TYPE_CHECKING:
    import numpy as np

    from pkm_pipelines.knowledge.embed import Embedder

COLUMNS = ("note_id", "source", "path", "title", "tags", "headings", "content")
# A chunk is written again when one of these moved; its vector depends on `text_hash` alone.
_PLACE = ("source", "path", "title", "tags", "heading_path", "position", "start", "end")
_CHUNK_NOTES = 200
_COMMIT_CHUNKS = 512


def embed_notes(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """The chunks of every note that changed since they were last embedded, with vectors for those that are new."""
    embedder = stores.embedder
    if embedder is None:
        progress.note("no embedder is set: nothing is embedded")
        return
    spec = note_embeddings(embedder.dimension, embedder.name)
    inputs = inputs_of(stores, spec, [PROCESSED_NOTES])
    if not inputs.moved:
        return
    # A commit to Iceberg pins its inputs by itself; one to Lance cannot.
    notes = PROCESSED_NOTES.name
    stores.tables.pin(notes, spec.name, current=inputs.marks[notes], upcoming=inputs.until[notes])
    progress.stage("embed", unit="chunks")
    held: Delta | None = None
    for window in note_windows(stores, inputs, COLUMNS):
        for delta in _window_deltas(stores, embedder, spec, inputs, window, progress):
            if held is not None:
                yield held
            held = delta
    if held is None:
        held = Delta(table=spec.name, rows=(), mode="merge", op_id=str(uuid.uuid4()))
    held.watermarks, held.expect = inputs.until, inputs.marks
    yield held
    progress.done()
    progress.stage("index", unit="tables")
    stores.vectors.index(spec.name)
    progress.done()


def _window_deltas(
    stores: Stores, embedder: Embedder, spec: TableSpec, inputs: Inputs, window: NoteWindow, progress: Progress
) -> Iterator[Delta]:
    stored = {} if inputs.is_empty else _stored(stores, inputs.table, window.note_ids)
    chunks = _chunks(stores, embedder, window)
    fresh = set(chunks["chunk_id"].to_pylist()) if chunks else set[str]()
    stale = pa.table({"chunk_id": pa.array(sorted(stored.keys() - fresh), pa.string())})
    if chunks is None:
        if stale.num_rows:
            yield _delta(inputs.table, (), stale)
        return
    places = zip(*(chunks[column].to_pylist() for column in _PLACE), strict=True)
    moved = [stored.get(id_) != place for id_, place in zip(chunks["chunk_id"].to_pylist(), places, strict=True)]
    # By length across the whole window: a batch of equal lengths wastes no padding.
    changed = chunks.filter(pa.array(moved, pa.bool_())).sort_by("token_count")
    known = {} if inputs.is_empty else _known_vectors(stores, inputs.table, changed["text_hash"].to_pylist())
    progress.stage("embed", total=changed.num_rows, unit="chunks")
    for start in range(0, changed.num_rows, _COMMIT_CHUNKS):
        progress.check_cancelled()
        part = changed.slice(start, _COMMIT_CHUNKS)
        embedded = _encode_unknown(embedder, part, known)
        rows = _rows(spec, part, known, embedder.name, inputs.until[PROCESSED_NOTES.name])
        yield _delta(inputs.table, rows.to_batches(), stale if start == 0 else None)
        progress.advance(part.num_rows, embedded=embedded, reused=part.num_rows - embedded)
    if not changed.num_rows and stale.num_rows:
        yield _delta(inputs.table, (), stale)


def _delta(table: str, rows: Sequence[pa.RecordBatch], stale: pa.Table | None) -> Delta:
    return Delta(table=table, rows=rows, mode="merge", op_id=str(uuid.uuid4()), delete_keys=stale)


def _chunks(stores: Stores, embedder: Embedder, window: NoteWindow) -> pa.Table | None:
    from pkm_pipelines.knowledge.chunks import chunk_notes

    max_tokens = min(stores.settings.embedder.chunk_tokens, embedder.max_tokens)
    notes = window.alive.select(COLUMNS).combine_chunks().to_batches(max_chunksize=_CHUNK_NOTES)
    batches = [chunk_notes(batch, embedder, max_tokens) for batch in notes]
    return pa.Table.from_batches(batches) if batches else None


def _stored(stores: Stores, table: str, note_ids: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """The chunks that the table holds of these notes: where each of them stands."""
    found: dict[str, tuple[object, ...]] = {}
    for batch in stores.vectors.lookup(table, "note_id", note_ids, ["chunk_id", *_PLACE]):
        places = zip(*(batch[column].to_pylist() for column in _PLACE), strict=True)
        found.update(zip(batch["chunk_id"].to_pylist(), places, strict=True))
    return found


def _known_vectors(stores: Stores, table: str, hashes: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors that the table already holds, by the hash of the text that was embedded."""
    known: dict[str, np.ndarray] = {}
    for batch in stores.vectors.lookup(table, "text_hash", sorted(set(hashes)), ["text_hash", "embedding"]):
        known.update(zip(batch["text_hash"].to_pylist(), matrix(batch["embedding"]), strict=True))
    return known


def matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """The vectors of a column as a float32 array of shape [rows, dimension]."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _encode_unknown(embedder: Embedder, part: pa.Table, known: dict[str, np.ndarray]) -> int:
    """Embed each text of `part` whose vector is not known yet, once; returns how many that were."""
    texts = dict(zip(part["text_hash"].to_pylist(), part["embedded_text"].to_pylist(), strict=True))
    missing = {digest: text for digest, text in texts.items() if digest not in known}
    if missing:
        known.update(zip(missing, embedder.encode(list(missing.values())), strict=True))
    return len(missing)


def _rows(spec: TableSpec, part: pa.Table, known: dict[str, np.ndarray], model: str, snapshot_id: int) -> pa.Table:
    import numpy as np

    vectors = np.stack([known[digest] for digest in part["text_hash"].to_pylist()]).astype(np.float32, copy=False)
    count = part.num_rows
    added = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "model": pa.array([model] * count),
        "created_at": pa.array([dt.datetime.now(dt.UTC)] * count, spec.column("created_at").type),
        "source_table": pa.array([PROCESSED_NOTES.name] * count),
        "iceberg_snapshot_id": pa.array([snapshot_id] * count, pa.int64()),
        "processing_stage": pa.array([PROCESSED_NOTES.layer] * count),
    }
    columns = [added[name] if name in added else part[name] for name in spec.arrow.names]
    return pa.Table.from_arrays(
        [pc.cast(c, f.type) for c, f in zip(columns, spec.arrow, strict=True)], schema=spec.arrow
    )
