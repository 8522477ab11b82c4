"""Expiry: which snapshots a table lets go of.

Kept are, of every branch, its head and the newest ones (by number, and by age if a minimal age is set); whatever a tag
holds: consumers' pins, cuts, people's own; snapshots that the caller names, because an open intent must be able to find
its operation; and for each of these its newest ancestor that carries watermarks, since that is the one that is
asked how far the table has read. What is older than its layer's time goes all the same, unless it is a head, is
tagged or is asked for its marks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot

from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_expire import Unneeded, expiring, unreachable_files
from pkm_pipelines.storage.iceberg_history import ONLY_REMOVES, OP_ID, WATERMARK, ancestors
from pkm_pipelines.storage.iceberg_schema import KIND
from pkm_pipelines.storage.iceberg_update import Change, update_table


@dataclass(frozen=True)
class Keeping:
    """Which snapshots to keep: the `newest` of each branch and all `since` a moment, but none from `before` another.

    `op_ids` are operations that must still be found.
    """

    newest: int = 1
    since: dt.datetime | None = None
    before: dt.datetime | None = None
    op_ids: frozenset[str] = field(default_factory=frozenset[str])


@dataclass(frozen=True)
class Expired:
    """What was let go of: the snapshots, and the files that only they held, some at a time, to be deleted in order."""

    snapshots: tuple[Snapshot, ...]
    files: Iterator[list[Unneeded]]


def expirable(table: Table, keeping: Keeping) -> list[Snapshot]:
    """The snapshots to let go of, oldest first."""
    kept = _kept(table, keeping)
    for snapshot_id in list(kept):
        line = list(ancestors(table, snapshot_id))
        marked = next((at for at, snapshot in enumerate(line) if _has_marks(snapshot)), None)
        if marked is not None:
            # Over an overwrite of a log that is gone no ancestry is remembered: the way to the marks would end there.
            kept |= {line[marked].snapshot_id, *_overwrites(table, line[:marked])}
    gone = [snapshot for snapshot in table.metadata.snapshots if snapshot.snapshot_id not in kept]
    return sorted(gone, key=lambda snapshot: snapshot.sequence_number or 0)


def expire(store: IcebergStore, name: str, keeping: Callable[[Table], Keeping]) -> Expired:
    """Let go of snapshots in one commit, decided anew if the table moves meanwhile; deletes no file.

    Raises `TableNotFoundError`, and `CommitConflictError` if the table kept changing.
    """
    # An attempt whose answer was lost may have landed: the files of each are looked at.
    let_go: dict[int, Snapshot] = {}
    before: list[TableMetadata] = []

    def decide(table: Table) -> Change:
        gone = expirable(table, keeping(table))
        let_go.update((snapshot.snapshot_id, snapshot) for snapshot in gone)
        before.append(table.metadata)
        return expiring(table, gone, cut=_overwrites(table, gone))

    update_table(store, name, decide, what="snapshots were expired")
    table = store.load(name)
    present = {snapshot.snapshot_id for snapshot in table.metadata.snapshots}
    gone = tuple(snapshot for snapshot in let_go.values() if snapshot.snapshot_id not in present)
    return Expired(gone, unreachable_files(table, gone, before[0]) if gone else iter(()))


def _kept(table: Table, keeping: Keeping) -> set[int]:
    metadata = table.metadata
    heads = {ref.snapshot_id for ref in metadata.refs.values()}
    if metadata.current_snapshot_id is not None:
        heads.add(metadata.current_snapshot_id)
    kept = set(heads)
    lines = [ref.snapshot_id for ref in metadata.refs.values() if ref.snapshot_ref_type == SnapshotRefType.BRANCH]
    for head in lines:
        for position, snapshot in enumerate(ancestors(table, head)):
            if keeping.before is not None and snapshot.timestamp_ms < _ms(keeping.before):
                break
            if position >= keeping.newest and (keeping.since is None or snapshot.timestamp_ms < _ms(keeping.since)):
                break
            kept.add(snapshot.snapshot_id)
    if keeping.since is not None:  # what was rolled back is on no branch
        first = max(_ms(moment) for moment in (keeping.since, keeping.before) if moment is not None)
        kept |= {s.snapshot_id for s in metadata.snapshots if s.timestamp_ms >= first}
    if keeping.op_ids:
        kept |= {s.snapshot_id for s in metadata.snapshots if _property(s, OP_ID) in keeping.op_ids}
    return kept


def _overwrites(table: Table, snapshots: list[Snapshot]) -> set[int]:
    """Snapshots of a log by which rows were overwritten: a consumer must not pass over such a one unseen."""
    if table.properties.get(KIND) != "log":
        return set()
    return {
        snapshot.snapshot_id
        for snapshot in snapshots
        if snapshot.summary is not None
        and snapshot.summary.operation == Operation.OVERWRITE
        and not _property(snapshot, ONLY_REMOVES)
    }


def _has_marks(snapshot: Snapshot) -> bool:
    properties = snapshot.summary.additional_properties if snapshot.summary else {}
    return any(name.startswith(WATERMARK) for name in properties)


def _property(snapshot: Snapshot, name: str) -> str | None:
    return snapshot.summary.additional_properties.get(name) if snapshot.summary else None


def _ms(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)
