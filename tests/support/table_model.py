"""What tables must hold, as dictionaries; and a compaction, the change that is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.table import Table

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from tests.support.iceberg import key_of

Row = dict[str, Any]
Rows = dict[Any, Row]


def full(spec: TableSpec, row: Mapping[str, Any]) -> Row:
    """A row with every column; those it lacks are null."""
    return {name: row.get(name) for name in spec.arrow.names}


def newest(spec: TableSpec, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """The newest row of each key, the last one of equals."""
    found: Rows = {}
    for row in rows:
        key = key_of(spec, row)
        if key not in found or _age(spec, row) >= _age(spec, found[key]):
            found[key] = full(spec, row)
    return found


def merged(spec: TableSpec, present: Rows, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """What a table holds after a merge."""
    result = dict(present)
    for key, row in newest(spec, rows).items():
        if key not in present or _age(spec, row) >= _age(spec, present[key]):
            result[key] = row
    return result


def _age(spec: TableSpec, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in spec.order)


def counts(before: Rows, after: Rows) -> tuple[int, int, int]:
    """Rows that were added, updated and deleted between two states."""
    return (
        len(after.keys() - before.keys()),
        sum(1 for key in before.keys() & after.keys() if before[key] != after[key]),
        len(before.keys() - after.keys()),
    )


def replayed(spec: TableSpec, before: Rows, changes: pa.RecordBatchReader) -> Rows:
    """`before` with the changes of a diff applied; fails if one of them does not fit, or is none."""
    result = dict(before)
    pending: Row | None = None
    for row in changes.read_all().to_pylist():
        kind = row.pop("_change_type")
        key = key_of(spec, row)
        assert (kind == "UPDATE_AFTER") == (pending is not None), "the two sides of an update stand together"
        if kind == "INSERT":
            assert key not in result
            result[key] = row
        elif kind == "DELETE":
            assert result.pop(key) == row
        elif kind == "UPDATE_BEFORE":
            assert result[key] == row
            pending = row
        else:
            assert kind == "UPDATE_AFTER"
            assert pending is not None
            assert key_of(spec, pending) == key
            assert pending != row
            result[key], pending = row, None
    return result


class Compaction:
    """A plan that packs all files of each partition into one, as a `replace` snapshot: no row changes."""

    def __init__(self) -> None:
        self._writer: FileWriter | None = None

    @property
    def paths(self) -> Sequence[str]:
        return self._writer.paths if self._writer else ()

    def __call__(self, table: Table) -> Writes:
        self._writer = FileWriter(table)
        files = live_files(table, table.current_snapshot())
        reader = FileReader(table)
        rows = pa.concat_tables([reader.schema.empty_table(), *(reader.read(file) for file in files)])
        added = [file for key, part in self._writer.split(rows) for file in self._writer.write(key, part)]
        return Writes(added=added, removed=files, operation="replace")
