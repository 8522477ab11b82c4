"""How far outputs are behind their inputs, cheaply enough for a sensor to ask twice a minute."""

from __future__ import annotations

from pkm_pipelines.model import keys
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
    is_read = stores.vectors.watermark(table, PROCESSED_NOTES.name) == snapshot
    is_same_code = stores.vectors.watermark(table, CODE) == note_embeddings(1).code_version
    return None if is_read and is_same_code else snapshot


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
        wanted = {CODE: BY_NAME[output].code_version}
        wanted |= {name: snapshot for name in inputs if (snapshot := _snapshot(stores, name)) is not None}
        if len(wanted) > 1 and any(stores.tables.watermark(output, name) != mark for name, mark in wanted.items()):
            return False
    return vectors_lag(stores) is None


def _snapshot(stores: Stores, table: str) -> int | None:
    return stores.iceberg.snapshot_id(table) if stores.iceberg.exists(table) else None
