"""How far outputs are behind their inputs, cheaply enough for a sensor to ask twice a minute."""

from __future__ import annotations

from pkm_pipelines.model import keys
from pkm_pipelines.model.tables import PROCESSED_NOTES
from pkm_pipelines.operations.cuts import INPUTS
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
    read = stores.vectors.watermark(table, PROCESSED_NOTES.name) if stores.vectors.exists(table) else None
    return snapshot if snapshot != read else None


def is_current(stores: Stores) -> bool:
    """Whether no source has changed and every table has read its inputs; nothing is imported that need not be."""
    for source in stores.settings.sources:
        if stores.source(source.name).has_changes(stores.state):
            return False
    if any(True for _ in stores.state.scan(keys.INTENT, limit=1)):
        return False
    for output, inputs in INPUTS.items():
        if not stores.iceberg.exists(output):
            return False
        for name in inputs:
            snapshot = stores.iceberg.snapshot_id(name) if stores.iceberg.exists(name) else None
            if snapshot is not None and stores.tables.watermark(output, name) != snapshot:
                return False
    return vectors_lag(stores) is None
