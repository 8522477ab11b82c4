"""From silver's notes to the concepts found in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, PROCESSED_NOTES
from pkm_pipelines.operations.derive import inputs_of, note_windows, slice_deltas
from pkm_pipelines.operations.stores import Stores

COLUMNS = ("note_id", "title", "content", "text", "language", "tags")
_BATCH = 200


def extract_concepts(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """The concepts of every note that changed since they were last extracted."""
    inputs = inputs_of(stores, EXTRACTED_CONCEPTS, [PROCESSED_NOTES])
    if not inputs.moved:
        return
    progress.stage("concepts", unit="notes")

    def parts() -> Iterator[tuple[Sequence[str], Iterator[pa.RecordBatch]]]:
        for window in note_windows(stores, inputs, COLUMNS):
            yield window.note_ids, _rows(window.alive, progress)

    yield from slice_deltas(inputs, "note_id", parts())
    progress.done()


def _rows(notes: pa.Table, progress: Progress) -> Iterator[pa.RecordBatch]:
    from pkm_pipelines.knowledge import concepts

    for batch in notes.select(COLUMNS).combine_chunks().to_batches(max_chunksize=_BATCH):
        progress.check_cancelled()
        yield concepts.extract_concepts(batch)
        progress.advance(batch.num_rows)
