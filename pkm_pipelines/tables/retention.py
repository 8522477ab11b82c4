"""Rows past their time: taken out of logs, and out of the tombstones of state tables.

Time counts from `ingested_at`, so that an old history can be ingested. The newest row of whatever is still alive stays
however old it is, since it says what is true today. The commit says that it only takes rows away, so consumers of
the log see no new row in the files that were written again. The rows are gone from the files for good when the
snapshots before have expired.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import LessThan
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_history import ONLY_REMOVES, is_ancestor
from pkm_pipelines.storage.iceberg_manifests import LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.compact import MAINTENANCE
from pkm_pipelines.tables.rows import newest
from pkm_pipelines.tables.staging import Output

INGESTED = "ingested_at"
# Rows of which the newest are picked at once.
_AT_ONCE = 100_000


@dataclass(frozen=True)
class LogRetention:
    """What goes from a log: rows ingested `before` a moment, but for the newest one of each living `entity`.

    `order` tells which row is newest; one whose `change_type` is DELETE is of something that is no more. Without an
    entity every row of that age goes.
    """

    before: dt.datetime
    key: str | None = None
    entity: tuple[str, ...] = ()
    order: tuple[str, ...] = ()


class RetentionPlan:
    """Takes rows past their time out of a log."""

    def __init__(self, rule: LogRetention, memory_bytes: int) -> None:
        self._rule = rule
        self._memory_bytes = memory_bytes
        self._writer: FileWriter | None = None
        self._snapshot: int | None = None
        self._rest: dict[tuple[str, ...], list[DataFile] | None] = {}
        self.rows = 0

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._writer.paths if self._writer else ()

    def __call__(self, table: Table) -> Writes | None:
        """Take them out of the table as it is; None if there is none."""
        if self._writer is None:
            self._writer = FileWriter(table)
        if self._snapshot is None or not is_ancestor(table, self._snapshot):
            self._rest = {}  # a rollback may have made another row the newest
        self._snapshot = table.metadata.current_snapshot_id
        past = LessThan(INGESTED, self._rule.before.isoformat())
        files = live_files(table, table.metadata.current_snapshot(), past)
        kept = _newest_of_living(table, self._rule) if any(f.identity not in self._rest for f in files) else None
        removed: list[LiveFile] = []
        added: list[DataFile] = []
        for file in files:
            if file.identity not in self._rest:
                self._rest[file.identity] = self._without(table, self._writer, file, kept)
            rest = self._rest[file.identity]
            if rest is not None:
                removed.append(file)
                added += rest
        if not removed:
            return None
        deleted = {delete.file_path: delete.record_count for file in removed for delete in file.deletes}
        rows = sum(file.file.record_count for file in removed) - sum(deleted.values())
        self.rows = rows - sum(file.record_count for file in added)
        return Writes(
            added=added,
            removed=removed,
            operation="overwrite" if added else "delete",
            rows_deleted=self.rows,
            properties={ONLY_REMOVES: "true", MAINTENANCE: "retention"},
        )

    def _without(
        self, table: Table, writer: FileWriter, file: LiveFile, kept: pa.Array | None
    ) -> list[DataFile] | None:
        """What is left of a file, written anew; None if no row of it goes."""
        columns = [INGESTED, *([self._rule.key] if self._rule.key else [])]
        if not any(
            pc.any(_goes(self._rule, batch, kept)).as_py() for batch in FileReader(table, columns).batches(file)
        ):
            return None
        output = Output(writer, self._memory_bytes)
        for batch in FileReader(table).batches(file):
            output.add(writer.conform(batch.filter(pc.invert(_goes(self._rule, batch, kept)))))
        return output.finish()


@dataclass(frozen=True)
class Past:
    """What would go: how many rows, and the `files` that hold them, with their `bytes`.

    `saves_files` hold nothing else; `saves_bytes` is an estimate, by the share of the rows.
    """

    rows: int = 0
    files: int = 0
    bytes: int = 0
    saves_files: int = 0
    saves_bytes: int = 0


def count_past(table: Table, rule: LogRetention) -> Past:
    """What would go."""
    past = LessThan(INGESTED, rule.before.isoformat())
    files = live_files(table, table.metadata.current_snapshot(), past)
    if not files:
        return Past()
    kept = _newest_of_living(table, rule)
    reader = FileReader(table, [INGESTED, *([rule.key] if rule.key else [])])
    found = Past()
    for file in files:
        rows = gone = 0
        for batch in reader.batches(file):
            rows, gone = rows + batch.num_rows, gone + (pc.sum(_goes(rule, batch, kept)).as_py() or 0)
        if gone:
            size = file.file.file_size_in_bytes
            found = Past(
                found.rows + gone,
                found.files + 1,
                found.bytes + size,
                found.saves_files + (gone == rows),
                found.saves_bytes + size * gone // rows,
            )
    return found


def _goes(rule: LogRetention, batch: pa.RecordBatch, kept: pa.Array | None) -> pa.Array:
    """For each row of a batch whether its time is over (boolean, no nulls)."""
    ingested = batch.column(INGESTED)
    past = pc.fill_null(pc.less(ingested, pa.scalar(rule.before, ingested.type)), False)
    if kept is None or not rule.key:
        return past
    return pc.and_(past, pc.invert(pc.is_in(batch.column(rule.key), value_set=kept)))


def _newest_of_living(table: Table, rule: LogRetention) -> pa.Array | None:
    """The keys of the newest rows of what is alive; holds one short row of each."""
    if not rule.entity or not rule.key:
        return None
    columns = list(dict.fromkeys([*rule.entity, *rule.order, rule.key, "change_type"]))
    reader = FileReader(table, columns)
    found = reader.schema.empty_table()
    held: list[pa.Table] = []
    size = 0
    for file in live_files(table, table.metadata.current_snapshot()):
        for batch in reader.batches(file):
            held.append(pa.table(batch))
            size += batch.num_rows
            if size >= _AT_ONCE:
                found, held, size = newest(pa.concat_tables([found, *held]), rule.entity, rule.order), [], 0
    found = newest(pa.concat_tables([found, *held]), rule.entity, rule.order)
    living = found.filter(pc.not_equal(found.column("change_type"), "DELETE"))
    return living.column(rule.key).combine_chunks()


def stripped(rows: Iterator[pa.RecordBatch], kept: Sequence[str], key: str) -> Iterator[pa.RecordBatch]:
    """Tombstones with nothing but their `kept` columns; those that have been stripped before are left out.

    Where a value must be there, a text is empty; the path is `/` and the key, which is no path a note can have.
    """
    for batch in rows:
        paths = pc.binary_join_element_wise("/", batch.column(key), "")
        full = batch.filter(pc.not_equal(batch.column("path"), paths))
        if not full.num_rows:
            continue
        columns: list[pa.Array] = []
        for field in full.schema:
            if field.name in kept:
                columns.append(full.column(field.name))
            elif field.name == "path":
                columns.append(pc.binary_join_element_wise("/", full.column(key), "").cast(field.type))
            elif field.nullable:
                columns.append(pa.nulls(full.num_rows, field.type))
            else:
                columns.append(pa.repeat(pa.scalar("", field.type), full.num_rows))
        yield pa.RecordBatch.from_arrays(columns, schema=full.schema)
