"""The unified table manager: one interface to write, read, follow and shape every Iceberg table.

It is the same for the project's tables and for a user's own. Each write is one commit with its watermarks in it
(`storage/iceberg_commit.py`), so it is in the table whole or not at all. What a table is (a log, a state table with a
key, or neither) decides how it is written (`plan.py`), and is read from the table itself.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.evolution import Evolution
from pkm_pipelines.model.records import CommitResult, Delta, Mutation, Slice, WriteMode
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import BY_NAME
from pkm_pipelines.storage import iceberg_evolve, iceberg_history, iceberg_refs
from pkm_pipelines.storage.iceberg import IcebergStore, resolve
from pkm_pipelines.storage.iceberg_commit import Plan, commit
from pkm_pipelines.storage.iceberg_filter import parse_filter, slice_filter
from pkm_pipelines.storage.iceberg_schema import (
    KEY,
    READS_PER_WRITE,
    TableMode,
    check_write_mode,
    read_spec,
    write_mode_properties,
)
from pkm_pipelines.storage.iceberg_update import set_properties
from pkm_pipelines.tables import changelog, changes, consumers, history, process, statistics
from pkm_pipelines.tables.changes import Step
from pkm_pipelines.tables.compare import MEMORY_BYTES as COMPARED_BYTES
from pkm_pipelines.tables.consumers import Consumer, MarkOf, Unread
from pkm_pipelines.tables.frames import Frame, to_stream
from pkm_pipelines.tables.history import Explanation, TableVersion
from pkm_pipelines.tables.overwrite import OverwritePlan
from pkm_pipelines.tables.plan import DeferredPlan, plan_of
from pkm_pipelines.tables.process import Handler, Processed, ProcessOptions
from pkm_pipelines.tables.reads import ReadCounts
from pkm_pipelines.tables.registry import Lease, Registry
from pkm_pipelines.tables.staging import MEMORY_BYTES
from pkm_pipelines.tables.statistics import TableStats
from pkm_pipelines.tables.view import lazy_frame

if TYPE_CHECKING:
    import polars as pl

Filter = BooleanExpression | str | Slice
"""Rows of a table: a pyiceberg expression, the same as text (`value > 5 and id is not null`), or a slice."""


class TableManager:
    """The tables of one warehouse. `memory_bytes` bounds the rows of a delta, or of a comparison, held at once."""

    def __init__(
        self, iceberg: IcebergStore, state: Registry | None = None, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.iceberg = iceberg
        self.state = state
        self._memory_bytes = memory_bytes
        self._compared_bytes = min(memory_bytes, COMPARED_BYTES)
        self._specs: dict[str, TableSpec] = {}
        self._reads = ReadCounts(state)

    # What tables there are

    def create(self, spec: TableSpec) -> None:
        """Create a table; raises `StoreError` if there is one of that name."""
        if self.iceberg.exists(spec.name):
            raise StoreError(f"there is a table {spec.name} already; write to it, or choose another name")
        self.ensure(spec)

    def ensure(self, spec: TableSpec) -> None:
        """Create the table of `spec` where there is none; raises `StoreError` if it holds other columns."""
        self.iceberg.ensure(spec)
        self._specs[spec.name] = spec

    def spec(self, table: str) -> TableSpec:
        """What a table is: the project's own spec, or one made from the table itself.

        A table of the project is created if it does not exist yet; raises `TableNotFoundError` for any other.
        """
        if table not in self._specs:
            if table not in BY_NAME:
                return read_spec(self.iceberg.load(table))
            self.ensure(BY_NAME[table])
        return self._specs[table]

    def _spec_of(self, table: Table) -> TableSpec:
        """What a loaded table is now; one that somebody else made is what it was said to be here."""
        known = self._specs.get(".".join(table.name()))
        return known if known is not None and KEY not in table.properties else read_spec(table)

    # Writing

    def write(self, delta: Delta, *, lease: Lease | None = None, branch: str = MAIN_BRANCH) -> CommitResult:
        """Carry out `delta` in one commit, exactly once for its `op_id`, and copy its watermarks to the state.

        `append` leaves out rows whose key a log already has. `merge` counts a row only if it is new or differs from
        the one that is there and is not older. `replace` makes the table, or its `replace_where`, hold exactly the
        rows, and writes only what differs where the table has a key. Nothing is written (`written` is False) if
        no row and no watermark would change. `lease` is checked right before the commit.

        Raises `StoreError` for a delta that the table cannot take (a row that does not fit, a merge into a log),
        `CommitConflictError` if another run has moved an expected watermark, and `LeaseLostError`.
        """
        plan = DeferredPlan(lambda table: plan_of(self._spec_of(table), delta, self._memory_bytes, self._reads.of))
        result = self._commit(delta, plan, lease, branch)
        if self.state is not None and result.written and branch == MAIN_BRANCH and delta.watermarks:
            self.state.apply(
                [
                    Mutation(keys.watermark(delta.table, source), str(mark).encode())
                    for source, mark in delta.watermarks.items()
                ]
            )
        return result

    def _commit(self, delta: Delta, plan: Plan, lease: Lease | None, branch: str) -> CommitResult:
        if delta.table in BY_NAME:
            self.spec(delta.table)
        return commit(
            self.iceberg,
            delta.table,
            plan,
            op_id=delta.op_id,
            properties=delta.properties,
            watermarks=delta.watermarks,
            expect=delta.expect,
            before_commit=lease.check if lease else None,
            branch=branch,
        )

    def append(self, table: str, rows: Frame, *, branch: str = MAIN_BRANCH) -> CommitResult:
        """Append rows to a log or to a table without a key; `rows` are an Arrow or Polars frame or stream."""
        return self.write(_delta(table, "append", rows), branch=branch)

    def merge(
        self, table: str, rows: Frame, delete_keys: Frame | None = None, *, branch: str = MAIN_BRANCH
    ) -> CommitResult:
        """Merge rows into a table by its key, and delete the rows of `delete_keys` (rows of the key's columns)."""
        doomed = None if delete_keys is None else to_stream(delete_keys).read_all()
        return self.write(_delta(table, "merge", rows, delete_keys=doomed), branch=branch)

    def delete(
        self, table: str, keys: Frame | None = None, *, where: Filter | None = None, branch: str = MAIN_BRANCH
    ) -> CommitResult:
        """Delete rows: those of `keys` (rows of the key's columns), or all that match `where`.

        A table without a key, or a log, can only be deleted from by a filter.
        """
        if (keys is None) == (where is None):
            raise StoreError(f"table {table}: say which rows to delete, by their keys or by a filter")
        if where is None:
            return self.write(_delta(table, "merge", None, delete_keys=to_stream(keys).read_all()), branch=branch)
        return self._overwrite(table, None, where, branch)

    def replace(
        self, table: str, rows: Frame, where: Filter | None = None, *, branch: str = MAIN_BRANCH
    ) -> CommitResult:
        """Make the table, or the part of it that matches `where`, hold exactly `rows`, in one snapshot.

        The part of a table with a key is a `Slice`; without a key it may be any filter.
        """
        if where is None or isinstance(where, Slice):
            return self.write(_delta(table, "replace", rows, replace_where=where), branch=branch)
        if self.spec(table).key:
            raise StoreError(f"table {table} has a key: the part of it that is replaced must be a Slice of one column")
        return self._overwrite(table, rows, where, branch)

    def _overwrite(self, table: str, rows: Frame | None, where: Filter, branch: str) -> CommitResult:
        delta = _delta(table, "replace", rows)

        def plan(loaded: Table) -> Plan:
            return OverwritePlan(delta.rows, self._filter(loaded, where), self._memory_bytes, self._reads.of)

        return self._commit(delta, DeferredPlan(plan), None, branch)

    def _filter(self, table: Table, where: Filter) -> BooleanExpression:
        if isinstance(where, Slice):
            spec = self._spec_of(table)
            return slice_filter(spec.name, spec.arrow, where)
        return parse_filter(where) if isinstance(where, str) else where

    # Reading

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        row_filter: BooleanExpression | str | None = None,
        snapshot_id: int | None = None,
        as_of: dt.datetime | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of a table as a stream; see `IcebergStore.scan`."""
        where = parse_filter(row_filter) if isinstance(row_filter, str) else row_filter
        scan = self.iceberg.scan(
            table, columns=columns, row_filter=where, snapshot_id=snapshot_id, as_of=as_of, tag=tag
        )
        self._reads.note(scan, limit)
        return scan.read(limit)

    def lazy(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        row_filter: BooleanExpression | str | None = None,
        snapshot_id: int | None = None,
        as_of: dt.datetime | None = None,
        tag: str | None = None,
    ) -> pl.LazyFrame:
        """The rows of a table as a Polars frame that reads when it is collected, always the same snapshot."""
        snapshot = resolve(self.iceberg.load(table), snapshot_id, as_of, tag)
        pinned = snapshot.snapshot_id if snapshot else None

        def scan(wanted: Sequence[str] | None, limit: int | None) -> pa.RecordBatchReader:
            return self.read(table, columns=wanted, row_filter=row_filter, snapshot_id=pinned, limit=limit)

        return lazy_frame(table, scan, columns)

    def metadata_location(self, table: str) -> str:
        """The URL by which another engine can read the table as it is now; it counts as one read of it."""
        loaded = self.iceberg.load(table)
        self._reads.add(loaded)
        return loaded.metadata_location

    def close(self) -> None:
        """Write down what was counted of this process's reads; the stores stay open."""
        self._reads.flush()

    # What changed

    def changes(
        self,
        table: str,
        since: int | None,
        until: int | str | None = None,
        columns: Sequence[str] | None = None,
        *,
        net: bool = False,
    ) -> pa.RecordBatchReader:
        """The changes after snapshot `since` up to `until`, each with the snapshot that made it; see `changelog`.

        `since` None is before the first snapshot that is left; `until` is a snapshot, tag or branch, now by default.
        `net` tells all of it as one difference.
        """
        loaded = self.iceberg.load(table)
        end = resolve(loaded, tag=until) if isinstance(until, str) else resolve(loaded, until)
        return changelog.changes(
            loaded, self._spec_of(loaded), since, end, columns, net=net, memory_bytes=self._compared_bytes
        )

    def steps(self, table: str, since: int | None) -> list[Step]:
        """The snapshots after `since` with the rows that each added, oldest first; see `changes.steps`."""
        return changes.steps(self.iceberg.load(table), since)

    def added(
        self, table: str, since: int | None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The rows that a log has more in `until` than in `since`; see `changes.added`."""
        loaded = self.iceberg.load(table)
        return changes.added(loaded, self._spec_of(loaded), since, until, columns)

    def diff(
        self, table: str, since: int | None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The rows that differ between two snapshots, with `_change_type`; see `changes.diff`."""
        loaded = self.iceberg.load(table)
        return changes.diff(loaded, self._spec_of(loaded), since, until, columns, self._compared_bytes)

    def process(self, table: str, consumer: str, handle: Handler, **options: Unpack[ProcessOptions]) -> Processed:
        """Give `handle` what changed since `consumer` last read the table: exactly once with an `output` table that
        the manager writes, at least once without; see `process.process`.
        """
        return process.process(self, table, consumer, handle, **options)

    def consumers(
        self, table: str | None = None, outside: MarkOf | None = None, unread: Unread | None = None
    ) -> list[Consumer]:
        """Who follows a table, or any, and how far behind it is; `outside` tells the marks of vector tables.

        Tables that cannot be read fail it, or are told to `unread`.
        """
        return consumers.consumers(self, table, outside, unread)

    def forget_consumer(self, table: str, consumer: str) -> None:
        """Forget a consumer that is no more, so that it keeps no snapshot from expiring."""
        process.forget(self, table, consumer)

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

    def is_unchanged_since(self, table: str, snapshot_id: int) -> bool:
        """Whether nothing but compactions followed a snapshot; False also where that is not known any more."""
        return iceberg_history.is_unchanged_since(self.iceberg.load(table), snapshot_id)

    # Versions

    def history(self, table: str) -> list[TableVersion]:
        """The snapshots that led to the present state, newest first, as far as they have not expired."""
        return history.versions(self.iceberg.load(table))

    def rollback(self, table: str, snapshot_id: int) -> None:
        """Go back to an ancestor of the present state, watermarks included; raises `SnapshotNotFoundError`."""
        iceberg_refs.rollback(self.iceberg, table, snapshot_id)

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

    def branches(self, table: str) -> dict[str, int]:
        """The branches of a table, `main` among them: branch to the snapshot at its head."""
        return iceberg_refs.branches(self.iceberg.load(table))

    def branch(self, table: str, branch: str, snapshot_id: int | None = None) -> int:
        """Start a branch at a snapshot, now by default, and return it; writes and reads can then name the branch."""
        return iceberg_refs.branch(self.iceberg, table, branch, snapshot_id)

    def publish(self, table: str, branch: str) -> int:
        """Make a branch what the table is; raises `CommitConflictError` if `main` has moved since it was started."""
        return iceberg_refs.publish(self.iceberg, table, branch)

    def drop_branch(self, table: str, branch: str) -> None:
        """Drop a branch, and with it what was written to it alone; its data goes when snapshots are expired."""
        iceberg_refs.drop_branch(self.iceberg, table, branch)

    # Shape

    def evolve(self, table: str, *changes: Evolution) -> None:
        """Change columns and partitions in one commit; see `model/evolution.py` for what can be changed.

        Columns of the project's own tables stay as they are; others may be added. Raises `StoreError` for a change
        that would lose data or make later writes fail.
        """
        iceberg_evolve.evolve(self.iceberg, table, changes, fixed=BY_NAME.get(table))
        if table in self._specs and table not in BY_NAME:
            self._specs[table] = read_spec(self.iceberg.load(table))

    def set_mode(self, table: str, mode: TableMode) -> None:
        """Set how merges into a table write from now on; what is there stays as it is and reads the same.

        Raises `StoreError` for a table of Iceberg's format 1, into which nothing but copy-on-write can be written.
        """
        check_write_mode(self.iceberg.load(table), mode)
        set_properties(self.iceberg, table, write_mode_properties(mode), what="its write mode was set")

    def set_reads_per_write(self, table: str, reads: float | None) -> None:
        """Say how often a hybrid table is read for each write to it; None to count its reads, as it is by default."""
        if reads is not None and not 0 <= reads < float("inf"):
            raise StoreError(f"{reads:g} is no number of reads for each write; give 0 or more")
        wanted = {READS_PER_WRITE: None if reads is None else f"{reads:g}"}
        set_properties(self.iceberg, table, wanted, what="its reads for each write were set")

    def stats(self, table: str) -> TableStats:
        """What a table holds: rows, files, partitions, columns; from its metadata, without reading data."""
        return statistics.table_stats(self.iceberg.load(table))

    def explain(self, table: str, limit: int = 10) -> Explanation:
        """How the last `limit` writes were carried out and why, and the deletes that reads must apply."""
        return history.explain(self.iceberg.load(table), limit)


def _delta(table: str, mode: WriteMode, rows: Frame | None, **options: Any) -> Delta:
    batches = () if rows is None else to_stream(rows)
    return Delta(table=table, rows=batches, mode=mode, op_id=str(uuid.uuid4()), **options)
