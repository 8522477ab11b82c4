"""What happened to a table, commit by commit: the rows that came, went and changed, and which snapshot did it.

The changes between two snapshots are those of every snapshot on the way from one to the other, in order, so
replaying them goes through every state that the table had and ends in exactly the last one:

- A commit changes what differs between its parent and itself. A compaction (`replace`) changes nothing.
- A rollback below `since` is a change: first the rows go back to the last snapshot that both have in common, under
  that snapshot's id, then the commits after it follow.
- Where snapshots in between have expired, what they did together is one difference, under the first snapshot after
  the gap that is still there. It is exact, only less finely told; nothing is ever left out.
- With `net`, all of it is one difference under the id of `until`: each key once, a row that came and went not at all.

Rows are in the table's present schema, so a column that was dropped is no change, and one that was added is null
in older rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from pkm_pipelines.model.errors import SnapshotNotFoundError
from pkm_pipelines.model.schema import TIMESTAMP, TableSpec
from pkm_pipelines.storage.iceberg_history import ancestors, find_snapshot
from pkm_pipelines.storage.iceberg_reader import FileReader, stream
from pkm_pipelines.tables.compare import MEMORY_BYTES, Difference, differences, parts_between

CHANGE_TYPE = pa.field("_change_type", pa.string(), nullable=False)
SNAPSHOT_ID = pa.field("_snapshot_id", pa.int64(), nullable=False)
COMMITTED_AT = pa.field("_committed_at", TIMESTAMP, nullable=False)
_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Stage:
    """From one snapshot to a later one (None is the empty table), and the snapshot that its changes are told under."""

    old: Snapshot | None
    new: Snapshot
    committed_ms: int


def changes(
    table: Table,
    spec: TableSpec,
    since: int | None,
    until: Snapshot | None,
    columns: Sequence[str] | None = None,
    *,
    net: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> pa.RecordBatchReader:
    """The changes after `since` (None is before the first) up to `until` (None is an empty table).

    `columns` (all by default), then `_change_type` (INSERT, DELETE, or UPDATE_BEFORE and right after it
    UPDATE_AFTER), `_snapshot_id` and `_committed_at`. With `columns` only these are compared: a row that changed
    elsewhere did not change. In a table without a key a changed row is a DELETE and an INSERT.

    Raises `SnapshotNotFoundError` if `since` is unknown or has expired.
    """
    found = stages(table, since, until, net=net)
    shown = FileReader(table, columns).schema
    schema = shown.append(CHANGE_TYPE).append(SNAPSHOT_ID).append(COMMITTED_AT)

    def batches() -> Iterator[pa.RecordBatch]:
        for stage in found:
            at = dt.datetime.fromtimestamp(stage.committed_ms / 1000, dt.UTC)
            parts = parts_between(table, stage.old, stage.new)
            for difference in differences(table, spec, columns, parts, memory_bytes):
                for rows in labelled(difference, shown):
                    ids = pa.repeat(pa.scalar(stage.new.snapshot_id, pa.int64()), rows.num_rows)
                    times = pa.repeat(pa.scalar(at, TIMESTAMP), rows.num_rows)
                    yield pa.RecordBatch.from_arrays([*rows.columns, ids, times], schema=schema)

    return stream(table, schema, batches())


def stages(table: Table, since: int | None, until: Snapshot | None, *, net: bool = False) -> list[Stage]:
    """The way from `since` to `until` in the order in which it is told."""
    old = None if since is None else find_start(table, since)
    if until is None or (old is not None and old.snapshot_id == until.snapshot_id):
        return []
    if net:
        return [Stage(old, until, until.timestamp_ms)]
    line = list(ancestors(table, until.snapshot_id))
    if old is None:
        return [Stage(None, line[-1], line[-1].timestamp_ms), *_pairs(line)]
    known = {snapshot.snapshot_id for snapshot in ancestors(table, old.snapshot_id)}
    common = next((i for i, snapshot in enumerate(line) if snapshot.snapshot_id in known), None)
    if common is not None:
        base = line[common]
        went_back = [] if base.snapshot_id == old.snapshot_id else [Stage(old, base, _returned_ms(table, old, base))]
        return [*went_back, *_pairs(line[: common + 1])]
    # Snapshots in between have expired: one difference leads over the gap.
    later = [i for i, snapshot in enumerate(line) if _number(snapshot) > _number(old)]
    resume = later[-1] if later else 0
    return [Stage(old, line[resume], line[resume].timestamp_ms), *_pairs(line[: resume + 1])]


def find_start(table: Table, since: int) -> Snapshot:
    """The snapshot from which on changes are wanted; raises `SnapshotNotFoundError` that says what to do without it."""
    try:
        return find_snapshot(table, since)
    except SnapshotNotFoundError:
        # One that has expired leaves no trace, so it cannot be told from one that never was.
        name = ".".join(table.name())
        raise SnapshotNotFoundError(
            f"table {name} has no snapshot {since}; `pkm table {name} history` lists those there are (if it had one and"
            " that has expired, what was derived from it must be rebuilt from the whole table)"
        ) from None


def labelled(difference: Difference, shown: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A difference as rows of the columns `shown` with their `_change_type`, in batches."""
    rows, before = difference.rows, difference.before
    if not rows.num_rows:
        return
    label: pa.Array = pa.repeat(pa.scalar(difference.kind), rows.num_rows)
    if before is not None:
        turns = pa.arange(0, 2 * rows.num_rows)
        half, side = pc.bit_wise_and(turns, 1), pc.shift_right(turns, 1)
        rows = pa.concat_tables([before, rows]).take(pc.add(side, pc.multiply(half, rows.num_rows)))
        label = pc.if_else(pc.equal(half, 0), "UPDATE_BEFORE", "UPDATE_AFTER")
    schema = shown.append(CHANGE_TYPE)
    found = rows.select(shown.names).append_column(CHANGE_TYPE, label).cast(schema)
    yield from found.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)


def _pairs(line: Sequence[Snapshot]) -> list[Stage]:
    """The steps between the snapshots of `line` (newest first), oldest first."""
    return [
        Stage(old, new, new.timestamp_ms)
        for old, new in zip(reversed(line[1:]), reversed(line[:-1]), strict=True)
        # Over a gap that expiry left, also a compaction's snapshot tells what happened in the gap.
        if new.parent_snapshot_id != old.snapshot_id
        or new.summary is None
        or new.summary.operation != Operation.REPLACE
    ]


def _returned_ms(table: Table, old: Snapshot, base: Snapshot) -> int:
    """When `base` was made current again after `old`, as far as the table's log tells."""
    log = table.metadata.snapshot_log
    left = next((i for i in reversed(range(len(log))) if log[i].snapshot_id == old.snapshot_id), len(log))
    return next((entry.timestamp_ms for entry in log[left:] if entry.snapshot_id == base.snapshot_id), old.timestamp_ms)


def _number(snapshot: Snapshot) -> int:
    return snapshot.sequence_number or 0
