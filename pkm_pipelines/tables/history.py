"""The versions of a table, and what its writes decided."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.storage.iceberg_history import (
    OP_ID,
    ROWS_ADDED,
    ROWS_DELETED,
    ROWS_UPDATED,
    WATERMARK,
    count,
    current_ancestors,
)
from pkm_pipelines.storage.iceberg_schema import (
    WRITE_MODE,
    WRITE_REASON,
    TableMode,
    reads_per_write_of,
    write_mode_of,
)


@dataclass(frozen=True)
class TableVersion:
    """One snapshot of a table as its history shows it; `watermarks` are those that its commit carries."""

    snapshot_id: int
    parent_id: int | None
    committed_at: dt.datetime
    operation: str
    rows_added: int
    rows_updated: int
    rows_deleted: int
    total_rows: int
    run_id: str | None
    op_id: str | None
    watermarks: Mapping[str, int]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """How one write was carried out, and by which figures that was decided."""

    snapshot_id: int
    committed_at: dt.datetime
    mode: str
    reason: str
    rows: int


@dataclass(frozen=True)
class Explanation:
    """How a table is written: its setting, the last decisions (newest first), and the deletes that reads must apply.

    `reads_per_write` is what its owner says of its reads, by which a hybrid table goes; None where they are counted.
    """

    table: str
    mode: TableMode
    reads_per_write: float | None
    decisions: tuple[Decision, ...]
    delete_files: int
    deleted_rows: int


def versions(table: Table) -> list[TableVersion]:
    """The snapshots that led to the current one, newest first, as far as they have not expired."""
    tags: dict[int, list[str]] = {}
    for name, ref in table.metadata.refs.items():
        tags.setdefault(ref.snapshot_id, []).append(name)
    return [_version(snapshot, tags) for snapshot in current_ancestors(table)]


def explain(table: Table, limit: int = 10) -> Explanation:
    """What the writes of a table decided, from the summaries of its snapshots."""
    current = table.metadata.current_snapshot()
    return Explanation(
        table=".".join(table.name()),
        mode=write_mode_of(table),
        reads_per_write=reads_per_write_of(table),
        decisions=tuple(_decisions(current_ancestors(table)))[:limit],
        delete_files=count(current, "total-delete-files") if current else 0,
        deleted_rows=count(current, "total-position-deletes") if current else 0,
    )


def committed_at(snapshot: Snapshot) -> dt.datetime:
    """When a snapshot was committed, in UTC."""
    return dt.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, dt.UTC)


def rows_changed(snapshot: Snapshot) -> int:
    """The rows that a commit added, updated or deleted; of another engine's, what its summary counts."""
    properties = snapshot.summary.additional_properties if snapshot.summary else {}
    if ROWS_ADDED in properties:
        return sum(count(snapshot, name) for name in (ROWS_ADDED, ROWS_UPDATED, ROWS_DELETED))
    if snapshot.summary is None or snapshot.summary.operation.value == "replace":
        return 0
    return sum(count(snapshot, name) for name in ("added-records", "deleted-records", "added-position-deletes"))


def total_rows(snapshot: Snapshot) -> int:
    """The rows of a snapshot, those that position deletes take off left out."""
    return count(snapshot, "total-records") - count(snapshot, "total-position-deletes")


def _decisions(snapshots: Iterable[Snapshot]) -> Iterable[Decision]:
    for snapshot in snapshots:
        properties = snapshot.summary.additional_properties if snapshot.summary else {}
        if WRITE_MODE in properties:
            reason = properties.get(WRITE_REASON, "")
            yield Decision(
                snapshot.snapshot_id, committed_at(snapshot), properties[WRITE_MODE], reason, rows_changed(snapshot)
            )


def _version(snapshot: Snapshot, tags: Mapping[int, Sequence[str]]) -> TableVersion:
    properties = snapshot.summary.additional_properties if snapshot.summary else {}
    return TableVersion(
        snapshot_id=snapshot.snapshot_id,
        parent_id=snapshot.parent_snapshot_id,
        committed_at=committed_at(snapshot),
        operation=snapshot.summary.operation.value if snapshot.summary else "unknown",
        rows_added=count(snapshot, ROWS_ADDED),
        rows_updated=count(snapshot, ROWS_UPDATED),
        rows_deleted=count(snapshot, ROWS_DELETED),
        total_rows=total_rows(snapshot),
        run_id=properties.get("pkm.run-id"),
        op_id=properties.get(OP_ID),
        watermarks={k.removeprefix(WATERMARK): int(v) for k, v in properties.items() if k.startswith(WATERMARK)},
        tags=tuple(sorted(tags.get(snapshot.snapshot_id, ()))),
    )
