"""What changed in a table between two of its snapshots, exactly, and reading only the files they do not share.

Two kinds of question, one for each kind of table. `added` are the rows that a log has more of. `diff` are the rows
of a state table that came, went or changed. Both compare files and then rows: they do not follow the snapshots
in between, which may have expired, and so they are exact across appends, merges, deletes, compactions (which
are no change) and rollbacks (which are). What each of those snapshots did is the business of `changelog.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_history import (
    ONLY_REMOVES,
    ROWS_ADDED,
    ancestors,
    count,
    current_ancestors,
    find_snapshot,
)
from pkm_pipelines.storage.iceberg_manifests import LiveFile, files_between
from pkm_pipelines.storage.iceberg_reader import FileReader, reading, stream
from pkm_pipelines.storage.iceberg_schema import partition_sources
from pkm_pipelines.tables.changelog import CHANGE_TYPE, find_start, labelled
from pkm_pipelines.tables.compare import MEMORY_BYTES, differences, parts_between
from pkm_pipelines.tables.rows import KeyIndex

_BATCH_ROWS = 16_384


class Step(NamedTuple):
    """One snapshot of a table, and how many rows its commit added."""

    snapshot_id: int
    rows_added: int


def steps(table: Table, since: int | None) -> list[Step]:
    """The snapshots after `since` (all for None) up to the current one, oldest first.

    After a rollback below `since` they start from the last snapshot that both have in common.

    Raises `SnapshotNotFoundError` if `since` is unknown, or the snapshots between it and now have expired.
    """
    line = list(current_ancestors(table))
    if since is not None:
        find_snapshot(table, since)
        common = {snapshot.snapshot_id for snapshot in ancestors(table, since)}
        stop = next((i for i, snapshot in enumerate(line) if snapshot.snapshot_id in common), None)
        if stop is None:
            raise SnapshotNotFoundError(
                f"table {_name(table)}: snapshots between {since} and now have expired, so its steps are not known;"
                " read what was added or changed since then in one go"
            )
        line = line[:stop]
    return [Step(snapshot.snapshot_id, _rows_added(snapshot)) for snapshot in reversed(line)]


def added(
    table: Table, spec: TableSpec, since: int | None, until: int | None = None, columns: Sequence[str] | None = None
) -> pa.RecordBatchReader:
    """The rows that a log holds in `until` (now by default) and did not hold in `since` (nothing for None).

    Commit by commit, oldest first. A rewritten file (compaction, retention) is read for rows that are new by their
    key, so no row comes twice and none is left out.

    Raises `SnapshotNotFoundError` for snapshots that are unknown or have expired, and `StoreError` if somebody
    overwrote rows of the log in between.
    """
    old, new = _ends(table, since, until)
    _check_only_appended(table, old, new)
    with reading(table):
        gone, came = files_between(table, old, new)
    came.sort(key=lambda file: (file.sequence_number, file.path))
    reader = FileReader(table, columns)
    return stream(table, reader.schema, _added(table, spec, reader, gone, came))


def diff(
    table: Table,
    spec: TableSpec,
    since: int | None,
    until: int | None = None,
    columns: Sequence[str] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> pa.RecordBatchReader:
    """The rows that differ between `since` (nothing for None) and `until` (now by default), with `_change_type`.

    DELETE and INSERT carry the row that went or came; a change is UPDATE_BEFORE and, right after it,
    UPDATE_AFTER. With `columns` only these are read and compared: a row that changed elsewhere did not change.

    Raises `SnapshotNotFoundError` for snapshots that are unknown or have expired, and `StoreError` for a table
    without a key.
    """
    if not spec.key:
        raise StoreError(f"table {spec.name} has no key to tell rows apart by; read what was added to it instead")
    old, new = _ends(table, since, until)
    shown = FileReader(table, columns).schema
    with reading(table):
        parts = parts_between(table, old, new)
    found = differences(table, spec, columns, parts, memory_bytes)
    batches = (batch for difference in found for batch in labelled(difference, shown))
    return stream(table, shown.append(CHANGE_TYPE), batches)


def _ends(table: Table, since: int | None, until: int | None) -> tuple[Snapshot | None, Snapshot | None]:
    old = None if since is None else find_start(table, since)
    return old, table.metadata.current_snapshot() if until is None else find_snapshot(table, until)


def _added(
    table: Table, spec: TableSpec, reader: FileReader, gone: Sequence[LiveFile], came: Sequence[LiveFile]
) -> Iterator[pa.RecordBatch]:
    if not gone:
        for file in came:
            yield from reader.batches(file)
        return
    if not spec.key:
        raise StoreError(f"table {spec.name} was rewritten and has no key to tell which rows are new; read all of it")
    wanted = reader.schema.names
    with_key = FileReader(table, list(dict.fromkeys([*spec.key, *wanted])))
    keys_only = FileReader(table, spec.key)
    for before, after in _by_partition(table, spec, gone, came):
        index = KeyIndex(_read(keys_only, before), spec.key)
        for file in after:
            rows = with_key.read(file)
            fresh = rows.filter(pc.is_null(index.find(rows))).select(wanted)
            yield from fresh.cast(reader.schema).to_batches(max_chunksize=_BATCH_ROWS)


def _by_partition(
    table: Table, spec: TableSpec, gone: Sequence[LiveFile], came: Sequence[LiveFile]
) -> Iterator[tuple[list[LiveFile], list[LiveFile]]]:
    """The files of both sides by partition; all in one where a key may move between partitions."""
    present = table.spec()
    sources = partition_sources(table)
    is_fixed = sources <= {*spec.key, *spec.determined} or spec.kind == "log"
    if not is_fixed or any(file.file.spec_id != present.spec_id for file in (*gone, *came)):
        yield list(gone), list(came)
        return
    groups: dict[tuple[object, ...], tuple[list[LiveFile], list[LiveFile]]] = defaultdict(lambda: ([], []))
    for side, files in enumerate((gone, came)):
        for file in files:
            groups[file.partition][side].append(file)
    yield from groups.values()


def _check_only_appended(table: Table, old: Snapshot | None, new: Snapshot | None) -> None:
    if old is None or new is None:
        return
    before = {snapshot.snapshot_id for snapshot in ancestors(table, old.snapshot_id)}
    for snapshot in ancestors(table, new.snapshot_id):
        if snapshot.snapshot_id in before:
            return
        summary = snapshot.summary
        if summary and summary.operation == Operation.OVERWRITE and not summary.additional_properties.get(ONLY_REMOVES):
            raise StoreError(
                f"table {_name(table)} is a log, and snapshot {snapshot.snapshot_id} overwrote rows of it; what was"
                " derived from it must be rebuilt from the whole table"
            )


def _rows_added(snapshot: Snapshot) -> int:
    """The rows that are new by a snapshot; of a commit of another engine, what an append has added."""
    summary = snapshot.summary
    if summary is None or ROWS_ADDED in summary.additional_properties or summary.operation != Operation.APPEND:
        return count(snapshot, ROWS_ADDED)
    return count(snapshot, "added-records")


def _read(reader: FileReader, files: Iterable[LiveFile]) -> pa.Table:
    return pa.concat_tables([reader.schema.empty_table(), *(reader.read(file) for file in files)]).combine_chunks()


def _name(table: Table) -> str:
    return ".".join(table.name())
