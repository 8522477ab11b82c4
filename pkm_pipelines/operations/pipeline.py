"""The road from source to vectors, in order: each table and the operation that brings it up to date.

Dagster's assets declare the same road with the same operations; this one runs it in one process without
Dagster, for tests, notebooks and embedding the library elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.operations.connect import connect_notes
from pkm_pipelines.operations.extract import extract_concepts
from pkm_pipelines.operations.ingest import Content, Days, ingest
from pkm_pipelines.operations.measure import measure_notes
from pkm_pipelines.operations.refine import refine_notes
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.operations.vectorise import embed_notes
from pkm_pipelines.operations.write import Written, write_all

Operation = Callable[..., Iterator[Delta]]
DERIVED: dict[str, Operation] = {
    "silver.processed_notes": refine_notes,
    "silver.extracted_concepts": extract_concepts,
    "silver.knowledge_graph": connect_notes,
    "gold.note_metrics": measure_notes,
    "vectors.note_embeddings": embed_notes,
}


def update(
    stores: Stores,
    *,
    sources: Sequence[str] = (),
    days: Days | None = None,
    accept_deletes: bool = False,
    progress: Progress | None = None,
    run_id: str = "",
) -> list[Written]:
    """Bring every table up to date, source to vectors; returns what was written to each, in order.

    Raises `SourceError` for sources that cannot be read; once all else is done, if others can be.
    """
    progress = progress or NullProgress()
    failed: list[SourceError] = []
    done: list[Written] = []
    logs: tuple[tuple[str, Content], ...] = (("bronze.raw_notes", "notes"), ("bronze.raw_media", "media"))
    for table, content in logs:
        deltas = ingest(
            stores,
            content,
            sources=sources,
            days=days,
            accept_deletes=accept_deletes,
            progress=progress,
            hold=failed.append,
        )
        done.append(write_all(stores, table, deltas, run_id))
    for table, operation in DERIVED.items():
        done.append(write_all(stores, table, operation(stores, progress=progress), run_id))
    if failed:
        raise failed[0]
    return done
