"""From silver's notes to the concepts found in them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, PROCESSED_NOTES
from pkm_pipelines.operations.derive import inputs_of, note_windows, slice_deltas
from pkm_pipelines.operations.parallel import Spread
from pkm_pipelines.operations.stores import Stores

COLUMNS = ("note_id", "title", "content", "text", "language", "tags")
_BATCH = 200


def extract_concepts(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """The concepts of every note that changed since they were last extracted."""
    inputs = inputs_of(stores, EXTRACTED_CONCEPTS, [PROCESSED_NOTES])
    if not inputs.moved:
        return
    progress.stage("concepts", unit="notes")

    # Rows are made when their delta is written, which is after the last window was looked at: the workers outlive it.
    with Spread() as spread:
        windows = note_windows(stores, inputs, COLUMNS)
        parts = ((window.note_ids, _rows(window.alive, spread, progress)) for window in windows)
        yield from slice_deltas(inputs, "note_id", parts)
    progress.done()


def _rows(notes: pa.Table, spread: Spread, progress: Progress) -> Iterator[pa.RecordBatch]:
    batches = notes.select(COLUMNS).combine_chunks().to_batches(max_chunksize=_BATCH)
    for batch, found in zip(batches, spread.map(extract_batch, batches), strict=True):
        progress.check_cancelled()
        yield found
        progress.advance(batch.num_rows)


def extract_batch(notes: pa.RecordBatch) -> pa.RecordBatch:
    """The concepts of some notes; imports what it needs late, in the process that needs it."""
    from pkm_pipelines.knowledge import concepts

    return concepts.extract_concepts(notes)
