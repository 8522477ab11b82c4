"""How far outputs are behind their inputs, cheaply enough for a sensor to ask twice a minute."""

from __future__ import annotations

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.model.tables import BY_NAME, PROCESSED_NOTES, note_embeddings
from pkm_pipelines.operations.cuts import INPUTS
from pkm_pipelines.operations.derive import CODE
from pkm_pipelines.operations.stores import Stores


def source_fingerprint(stores: Stores, name: str) -> str | None:
    """A word for the state that a changed source is ahead of, or None if it has not changed.

    It is the same until a run has moved the source's cursor, so a sensor asks for one run and not for many.
    """
    source = stores.source(name)
    if not source.has_changes(stores.state):
        return None
    return source.fingerprint(stores.state)


def vectors_lag(stores: Stores) -> int | None:
    """The snapshot of silver that the vectors have not read, or None if they have (or there is no embedder)."""
    table = stores.vector_table
    if table is None or not stores.iceberg.exists(PROCESSED_NOTES.name):
        return None
    snapshot = stores.iceberg.snapshot_id(PROCESSED_NOTES.name)
    if snapshot is None or not stores.vectors.exists(table):
        return snapshot
    is_read = _has_read(stores, PROCESSED_NOTES.name, stores.vectors.watermark(table, PROCESSED_NOTES.name))
    is_same_code = stores.vectors.watermark(table, CODE) == note_embeddings(1).code_version
    return None if is_read and is_same_code else snapshot


def is_current(stores: Stores) -> bool:
    """Whether no source has changed and every table has read its inputs; nothing is imported that need not be.

    A source that cannot be read is for a run to tell.
    """
    try:
        if any(stores.source(source.name).has_changes(stores.state) for source in stores.settings.sources):
            return False
    except SourceError:
        return False
    if any(True for _ in stores.state.scan(keys.INTENT, limit=1)):
        return False
    for output, inputs in INPUTS.items():
        if not stores.iceberg.exists(output):
            return False
        filled = [
            name for name in inputs if stores.iceberg.exists(name) and stores.iceberg.snapshot_id(name) is not None
        ]
        if not filled:
            continue
        if stores.tables.watermark(output, CODE) != BY_NAME[output].code_version:
            return False
        if not all(_has_read(stores, name, stores.tables.watermark(output, name)) for name in filled):
            return False
    return vectors_lag(stores) is None


def _has_read(stores: Stores, table: str, mark: int | None) -> bool:
    """Whether a mark is up to date with its input; what was compacted since is nothing to read."""
    return mark is not None and stores.tables.is_unchanged_since(table, mark)
