"""What the snapshots of a table tell: ancestry, moments, watermarks, and whether an operation has landed.

Progress is ancestry and nothing else: clocks may differ and numbers be handed out early, but a snapshot's parent
is what it was built on. A snapshot whose parent has expired forgets it; expiry writes down then, in a property of the
table, which of the snapshots that are left it descends from (`iceberg_expire.py`). Everything here reads one loaded
metadata and asks no store.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from pkm_pipelines.model.errors import SnapshotNotFoundError

OP_ID = "pkm.op-id"
WATERMARK = "pkm.watermark."
ROWS_ADDED = "pkm.rows-added"
ROWS_UPDATED = "pkm.rows-updated"
ROWS_DELETED = "pkm.rows-deleted"
# On an overwrite of a log that only took rows away (retention, forget): what is left was there before.
ONLY_REMOVES = "pkm.only-removes"

# A property of the table: `child:ancestor` for each snapshot whose parent has expired, with commas between.
ANCESTRY = "pkm.ancestry"


def ancestors(table: Table, snapshot_id: int | None) -> Iterator[Snapshot]:
    """The snapshot and its ancestors that have not expired, newest first."""
    known = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
    links = expired_links(table)
    while snapshot_id is not None and (snapshot := known.get(snapshot_id)) is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot_id = parent if parent in known else links.get(snapshot_id)


def expired_links(table: Table) -> dict[int, int]:
    """For snapshots whose parent has expired the nearest ancestor that has not, if there is one."""
    pairs = (pair.split(":") for pair in table.properties.get(ANCESTRY, "").split(",") if pair)
    return {int(child): int(ancestor) for child, ancestor in pairs}


def current_ancestors(table: Table) -> Iterator[Snapshot]:
    """The table's current snapshot and its ancestors, newest first."""
    return ancestors(table, table.metadata.current_snapshot_id)


def find_snapshot(table: Table, snapshot_id: int) -> Snapshot:
    """The snapshot with this id; raises `SnapshotNotFoundError` if it is unknown or has expired."""
    snapshot = table.metadata.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise SnapshotNotFoundError(
            f"table {_name(table)} has no snapshot {snapshot_id} (any more): it has expired or never was;"
            " read a newer one, or rebuild what was derived from it"
        )
    return snapshot


def find_ref(table: Table, name: str) -> Snapshot:
    """The snapshot of a tag, or the head of a branch; raises `SnapshotNotFoundError`."""
    ref = table.metadata.refs.get(name)
    if ref is None:
        known = ", ".join(sorted(table.metadata.refs)) or "none"
        raise SnapshotNotFoundError(f"table {_name(table)} has no tag or branch {name!r} (there are: {known})")
    return find_snapshot(table, ref.snapshot_id)


def snapshot_at(table: Table, moment: dt.datetime) -> Snapshot:
    """The snapshot that was current at `moment`, also across rollbacks.

    Raises `SnapshotNotFoundError` if the table had none yet, or if the one that was current then has expired, and
    `ValueError` for a moment without a time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    wanted = int(moment.timestamp() * 1000)
    log = table.metadata.snapshot_log
    position = next((i for i in reversed(range(len(log))) if log[i].timestamp_ms <= wanted), None)
    if position is None:
        first = f"; the first that is left is of {_time(log[0].timestamp_ms)}" if log else ""
        raise SnapshotNotFoundError(f"table {_name(table)} has no snapshot as of {moment.isoformat()}{first}")
    found = find_snapshot(table, log[position].snapshot_id)
    if position + 1 < len(log) and log[position].timestamp_ms < wanted:
        follower = find_snapshot(table, log[position + 1].snapshot_id)
        is_rollback = follower.timestamp_ms != log[position + 1].timestamp_ms
        if follower.parent_snapshot_id != found.snapshot_id and not is_rollback:
            # An expired snapshot leaves no entry behind: between these two was another.
            raise SnapshotNotFoundError(
                f"table {_name(table)}: the snapshot that was current at {moment.isoformat()} has expired;"
                f" the ones before and after it are of {_time(found.timestamp_ms)} and {_time(follower.timestamp_ms)}"
            )
    return found


def watermarks_of(table: Table) -> dict[str, int]:
    """How far the table has read each of its inputs: input table to snapshot id.

    Each commit of ours carries the marks of all inputs, so those of the newest commit that has any are complete;
    commits of other engines carry none and are passed over.
    """
    for snapshot in current_ancestors(table):
        properties = snapshot.summary.additional_properties if snapshot.summary else {}
        marks = {k.removeprefix(WATERMARK): int(v) for k, v in properties.items() if k.startswith(WATERMARK)}
        if marks:
            return marks
    return {}


def find_operation(table: Table, op_id: str) -> Snapshot | None:
    """The snapshot that the operation `op_id` made, if it has landed and was not rolled back."""
    for snapshot in current_ancestors(table):
        if snapshot.summary and snapshot.summary.additional_properties.get(OP_ID) == op_id:
            return snapshot
    return None


def tells_all_since(table: Table, snapshot_id: int | None) -> bool:
    """Whether every commit that followed `snapshot_id` (None is the beginning) on the table's line is still known.

    Only then does an operation that is not found among them have not landed. A line that was rolled back below
    `snapshot_id` tells all: nothing that followed it is part of it.
    """
    line = list(current_ancestors(table))
    for snapshot in line:
        if snapshot.snapshot_id == snapshot_id:
            return True
        if snapshot.parent_snapshot_id is None or table.metadata.snapshot_by_id(snapshot.parent_snapshot_id) is None:
            break  # the beginning, or a gap that expiry left
    if snapshot_id is None:
        return not line or line[-1].sequence_number == 1
    has_expired = table.metadata.snapshot_by_id(snapshot_id) is None
    return not has_expired and all(snapshot.snapshot_id != snapshot_id for snapshot in line)


def is_ancestor(table: Table, snapshot_id: int) -> bool:
    """Whether the table's current snapshot is, or descends from, this one."""
    return any(snapshot.snapshot_id == snapshot_id for snapshot in current_ancestors(table))


def is_unchanged_since(table: Table, snapshot_id: int) -> bool:
    """Whether the rows are those of this snapshot still: nothing but compactions followed it, and all are known."""
    for snapshot in current_ancestors(table):
        if snapshot.snapshot_id == snapshot_id:
            return True
        if snapshot.summary is None or snapshot.summary.operation != Operation.REPLACE:
            return False
    return False


def count(snapshot: Snapshot, name: str) -> int:
    """A number of the snapshot's summary; 0 if it is not there."""
    return int((snapshot.summary.additional_properties.get(name) if snapshot.summary else None) or 0)


def _name(table: Table) -> str:
    return ".".join(table.name())


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="milliseconds")
