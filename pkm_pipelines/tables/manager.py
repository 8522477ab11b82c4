"""The unified table manager: one interface to write, read and follow every Iceberg table.

What a table is decides how it is written. A log is only ever appended to; a state table is merged into by its key,
or replaced; a table without a key may be replaced as a whole or in part. Each write is one commit with its
watermarks in it (`storage/iceberg_commit.py`), so it is in the table whole or not at all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import BY_NAME
from pkm_pipelines.storage import iceberg_history, iceberg_refs
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_commit import Plan, commit
from pkm_pipelines.storage.iceberg_schema import read_spec
from pkm_pipelines.tables import changes
from pkm_pipelines.tables.append import AppendPlan
from pkm_pipelines.tables.changes import Step
from pkm_pipelines.tables.merge import MergePlan
from pkm_pipelines.tables.overwrite import OverwritePlan
from pkm_pipelines.tables.staging import MEMORY_BYTES


class Mirror(Protocol):
    """Where copies of watermarks go, for sensors and status; the state."""

    def put(self, key: str, value: bytes) -> None:
        """Set a key."""
        ...


class Lease(Protocol):
    """The right to write to a table."""

    def check(self) -> None:
        """Raise `LeaseLostError` if it is lost."""
        ...


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


class TableManager:
    """The tables of one warehouse. `memory_bytes` bounds the rows of a delta that are held at once."""

    def __init__(self, iceberg: IcebergStore, state: Mirror | None = None, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.iceberg = iceberg
        self._state = state
        self._memory_bytes = memory_bytes
        self._specs: dict[str, TableSpec] = {}

    def ensure(self, spec: TableSpec) -> None:
        """Create the table of `spec` where there is none; raises `StoreError` if it holds other columns."""
        self.iceberg.ensure(spec)
        self._specs[spec.name] = spec

    def spec(self, table: str) -> TableSpec:
        """What a table is: the project's own spec, or one made from the table itself.

        A table of the project is created if it does not exist yet; raises `TableNotFoundError` for any other.
        """
        if table not in self._specs:
            if table in BY_NAME:
                self.ensure(BY_NAME[table])
            else:
                self._specs[table] = read_spec(self.iceberg.load(table))
        return self._specs[table]

    def write(self, delta: Delta, *, lease: Lease | None = None) -> CommitResult:
        """Carry out `delta` in one commit, exactly once for its `op_id`, and copy its watermarks to the state.

        `append` leaves out rows whose key a log already has. `merge` counts a row only if it is new or differs from
        the one that is there and is not older. `replace` makes the table, or its `replace_where`, hold exactly the
        rows, and writes only what differs where the table has a key. Nothing is written (`written` is False) if
        no row and no watermark would change. `lease` is checked right before the commit.

        Raises `StoreError` for a delta that the table cannot take (a row that does not fit, a merge into a log),
        `CommitConflictError` if another run has moved an expected watermark, and `LeaseLostError`.
        """
        spec = self.spec(delta.table)
        result = commit(
            self.iceberg,
            delta.table,
            self._plan(spec, delta),
            op_id=delta.op_id,
            properties=delta.properties,
            watermarks=delta.watermarks,
            expect=delta.expect,
            before_commit=lease.check if lease else None,
        )
        if self._state is not None and result.written:
            for source, mark in delta.watermarks.items():
                self._state.put(keys.watermark(delta.table, source), str(mark).encode())
        return result

    def _plan(self, spec: TableSpec, delta: Delta) -> Plan:
        removes = delta.delete_keys is not None or delta.replace_slice is not None
        if delta.mode == "append":
            if spec.kind == "state":
                raise StoreError(f"table {spec.name} has one row for each {_key(spec)}: rows are merged, not appended")
            if removes:
                raise StoreError(f"table {spec.name}: an append takes nothing away; use merge or replace")
            return AppendPlan(spec, delta, self._memory_bytes)
        if spec.kind == "log" and spec.key:
            raise StoreError(
                f"table {spec.name} is a log: rows are only appended, what was observed is never rewritten"
            )
        if spec.key:
            return MergePlan(spec, delta, self._memory_bytes)
        if delta.mode == "merge" or removes:
            raise StoreError(f"table {spec.name} has no key to merge or delete by; append to it or replace it")
        return OverwritePlan(spec, delta, self._memory_bytes)

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        row_filter: BooleanExpression | None = None,
        snapshot_id: int | None = None,
        as_of: dt.datetime | None = None,
        limit: int | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of a table as a stream; see `IcebergStore.read`."""
        return self.iceberg.read(
            table, columns=columns, row_filter=row_filter, snapshot_id=snapshot_id, as_of=as_of, limit=limit
        )

    def watermark(self, table: str, input_table: str) -> int | None:
        """The snapshot of `input_table` up to which `table` has read it; None if it never has, or does not exist."""
        try:
            return iceberg_history.watermarks_of(self.iceberg.load(table)).get(input_table)
        except TableNotFoundError:
            return None

    def landed(self, table: str, op_id: str) -> bool:
        """Whether the operation `op_id` is part of the table."""
        return iceberg_history.find_operation(self.iceberg.load(table), op_id) is not None

    def is_ancestor(self, table: str, snapshot_id: int) -> bool:
        """Whether the table's present state is, or was built on, a snapshot; not so after a rollback below it."""
        return iceberg_history.is_ancestor(self.iceberg.load(table), snapshot_id)

    def steps(self, table: str, since: int | None) -> list[Step]:
        """The snapshots after `since` with the rows that each added, oldest first; see `changes.steps`."""
        return changes.steps(self.iceberg.load(table), since)

    def added(
        self, table: str, since: int | None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The rows that a log has more in `until` than in `since`; see `changes.added`."""
        return changes.added(self.iceberg.load(table), self.spec(table), since, until, columns)

    def diff(
        self, table: str, since: int | None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The rows that differ between two snapshots, with `_change_type`; see `changes.diff`."""
        return changes.diff(self.iceberg.load(table), self.spec(table), since, until, columns)

    def history(self, table: str) -> list[TableVersion]:
        """The snapshots that led to the present state, newest first, as far as they have not expired."""
        loaded = self.iceberg.load(table)
        tags: dict[int, list[str]] = {}
        for name, ref in loaded.metadata.refs.items():
            tags.setdefault(ref.snapshot_id, []).append(name)
        return [_version(snapshot, tags) for snapshot in iceberg_history.current_ancestors(loaded)]

    def tags(self, table: str) -> dict[str, int]:
        """The tags of a table: tag to snapshot id."""
        return iceberg_refs.tags(self.iceberg, table)

    def tag(self, table: str, tag: str, snapshot_id: int) -> None:
        """Keep a snapshot from expiring under a name; raises `SnapshotNotFoundError`."""
        iceberg_refs.tag(self.iceberg, table, tag, snapshot_id)

    def untag(self, table: str, tag: str) -> None:
        """Let go of a tag."""
        iceberg_refs.untag(self.iceberg, table, tag)

    def pin(self, table: str, consumer: str, *, current: int | None, upcoming: int) -> None:
        """Keep what `consumer` has read and will have read from expiring; `write` does it for tables of its own."""
        iceberg_refs.pin(self.iceberg, table, consumer, current=current, upcoming=upcoming)

    def unpin(self, table: str, consumer: str) -> None:
        """Let go of the pins of a consumer that is no more."""
        iceberg_refs.unpin(self.iceberg, table, consumer)

    def rollback(self, table: str, snapshot_id: int) -> None:
        """Go back to an ancestor of the present state, watermarks included; raises `SnapshotNotFoundError`."""
        iceberg_refs.rollback(self.iceberg, table, snapshot_id)


def _key(spec: TableSpec) -> str:
    return " and ".join(spec.key)


def _version(snapshot: Snapshot, tags: Mapping[int, Sequence[str]]) -> TableVersion:
    properties = snapshot.summary.additional_properties if snapshot.summary else {}
    prefix = iceberg_history.WATERMARK
    return TableVersion(
        snapshot_id=snapshot.snapshot_id,
        parent_id=snapshot.parent_snapshot_id,
        committed_at=dt.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, dt.UTC),
        operation=snapshot.summary.operation.value if snapshot.summary else "unknown",
        rows_added=iceberg_history.count(snapshot, iceberg_history.ROWS_ADDED),
        rows_updated=iceberg_history.count(snapshot, iceberg_history.ROWS_UPDATED),
        rows_deleted=iceberg_history.count(snapshot, iceberg_history.ROWS_DELETED),
        total_rows=iceberg_history.count(snapshot, "total-records"),
        run_id=properties.get("pkm.run-id"),
        op_id=properties.get(iceberg_history.OP_ID),
        watermarks={k.removeprefix(prefix): int(v) for k, v in properties.items() if k.startswith(prefix)},
        tags=tuple(sorted(tags.get(snapshot.snapshot_id, ()))),
    )
