"""What a table holds, from its metadata and manifests alone: no data file is opened."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.manifest import DataFile, DataFileContent
from pyiceberg.table import Table
from pyiceberg.types import DateType, IcebergType, TimestampType, TimestamptzType

from pkm_pipelines.storage.iceberg_history import count
from pkm_pipelines.storage.iceberg_manifests import column_bounds, entries_of, manifests_of, partition_values

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class PartitionStats:
    """One partition; `values` by the name of its field. `rows` still counts rows that delete files take off."""

    spec_id: int
    values: dict[str, str]
    rows: int
    files: int
    bytes: int
    delete_files: int


@dataclass(frozen=True)
class ColumnStats:
    """What the files say of a column; None is not known. Bounds of long texts are cut, and may be of deleted rows."""

    name: str
    type: str
    nulls: int | None
    lower: Any
    upper: Any


@dataclass(frozen=True)
class TableStats:
    """A table in figures. Sizes are in bytes; `deleted_rows` are in its files but taken off by delete files."""

    table: str
    snapshot_id: int | None
    rows: int
    deleted_rows: int
    files: int
    bytes: int
    delete_files: int
    delete_bytes: int
    snapshots: int
    manifests: int
    metadata_bytes: int
    partitions: tuple[PartitionStats, ...]
    columns: tuple[ColumnStats, ...]


def table_stats(table: Table) -> TableStats:
    """The figures of the table's current snapshot."""
    snapshot = table.metadata.current_snapshot()
    manifests = manifests_of(table, snapshot)
    data: list[DataFile] = []
    deletes: list[DataFile] = []
    for manifest in manifests:
        for entry in entries_of(table.io, manifest):
            is_data = entry.data_file.content == DataFileContent.DATA
            (data if is_data else deletes).append(entry.data_file)
    deleted = count(snapshot, "total-position-deletes") if snapshot else 0
    return TableStats(
        table=".".join(table.name()),
        snapshot_id=snapshot.snapshot_id if snapshot else None,
        rows=sum(file.record_count for file in data) - deleted,
        deleted_rows=deleted,
        files=len(data),
        bytes=sum(file.file_size_in_bytes for file in data),
        delete_files=len(deletes),
        delete_bytes=sum(file.file_size_in_bytes for file in deletes),
        snapshots=len(table.metadata.snapshots),
        manifests=len(manifests),
        metadata_bytes=sum(manifest.manifest_length for manifest in manifests),
        partitions=tuple(_partitions(table, data, deletes)),
        columns=tuple(
            _column(table, field.name, field.field_id, field.field_type, data) for field in table.schema().fields
        ),
    )


def _partitions(table: Table, data: Iterable[DataFile], deletes: Iterable[DataFile]) -> Iterable[PartitionStats]:
    found: dict[tuple[int, tuple[Any, ...]], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for file in data:
        figures = found[file.spec_id, partition_values(file.partition)]
        for position, value in enumerate((file.record_count, 1, file.file_size_in_bytes)):
            figures[position] += value
    for file in deletes:
        found[file.spec_id, partition_values(file.partition)][3] += 1
    specs, schema = table.metadata.specs(), table.schema()
    for (spec_id, values), figures in sorted(found.items(), key=repr):
        fields = specs[spec_id].fields
        shown = {
            field.name: field.transform.to_human_string(schema.find_type(field.source_id), value)
            for field, value in zip(fields, values, strict=True)
        }
        yield PartitionStats(spec_id, shown, *figures)


def _column(table: Table, name: str, number: int, kind: IcebergType, files: Sequence[DataFile]) -> ColumnStats:
    nulls: int | None = 0
    lower: Any = None
    upper: Any = None
    is_bounded = True
    for file in files:
        known = (file.null_value_counts or {}).get(number)
        nulls = None if nulls is None or known is None else nulls + known
        bounds = column_bounds(table, file, name)
        if bounds is None:
            # A file of nothing but nulls has no bounds and needs none.
            is_bounded = is_bounded and known == file.record_count
            continue
        lower = bounds[0] if lower is None else min(lower, bounds[0])
        upper = bounds[1] if upper is None else max(upper, bounds[1])
    if not is_bounded:
        lower = upper = None
    return ColumnStats(name, str(kind), nulls, _readable(kind, lower), _readable(kind, upper))


def _readable(kind: IcebergType, value: Any) -> Any:
    """A bound as a value of Python: Iceberg counts days and microseconds."""
    if value is None:
        return None
    if isinstance(kind, DateType):
        return (_EPOCH + dt.timedelta(days=value)).date()
    if isinstance(kind, TimestampType | TimestamptzType):
        moment = _EPOCH + dt.timedelta(microseconds=value)
        return moment if isinstance(kind, TimestamptzType) else moment.replace(tzinfo=None)
    return value
