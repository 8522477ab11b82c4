"""Writing the data files of a table.

pyiceberg's own writer holds a whole table in memory, and writes a null list of structs as an empty one
(apache/iceberg-python#3833). Here one file is held at most, and Arrow's columns go into it as they are.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io import FileIO, OutputStream
from pyiceberg.io.pyarrow import compute_statistics_plan, data_file_statistics_from_parquet_metadata
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionFieldValue, PartitionKey
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.sorting import NullOrder, SortDirection
from pyiceberg.transforms import IdentityTransform, VoidTransform
from pyiceberg.typedef import Record
from pyiceberg.types import UUIDType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.arrow_cast import REFUSED, cast
from pkm_pipelines.storage.iceberg_layout import column_at, layout_of
from pkm_pipelines.storage.iceberg_schema import (
    ROW_GROUP_BYTES,
    TARGET_FILE_BYTES,
    merge_key_of,
    row_group_rows_of,
)

_LOG = logging.getLogger(__name__)
# A dictionary of texts longer than this on average costs time and saves nothing.
_DICTIONARY_BYTES = 64
# Nor does one whose values stand there less often than this on average: readers decode it for nothing.
_DICTIONARY_REPEATS = 2
# Rows by which that is told.
_SAMPLE_ROWS = 65_536


class FileWriter:
    """Writes data files for one commit of one table; `paths` names all it ever began."""

    def __init__(self, table: Table) -> None:
        self._io = table.io
        self._locations = table.location_provider()
        self._metadata = table.metadata
        self._name = ".".join(table.name())
        self._spec = table.spec()
        self._iceberg_schema = table.schema()
        layout = layout_of(table)
        self._schema, self._stored, self._leaves = layout.with_ids, layout.stored, layout.leaves
        self._sort, self._sort_order_id = _sort_columns(table)
        self._merge_key = merge_key_of(table)
        self._row_group_rows = row_group_rows_of(table)
        self._statistics = compute_statistics_plan(self._iceberg_schema, self._metadata.properties)
        self._commit = uuid.uuid4()
        target = self._metadata.properties.get(TableProperties.WRITE_TARGET_FILE_SIZE_BYTES)
        self.target_bytes = int(target) if target else TARGET_FILE_BYTES
        self.paths: list[str] = []

    @property
    def sort_columns(self) -> Sequence[str]:
        """The columns of the sort order, or of the key; none if there is neither, or an order by more than columns."""
        return self._sort

    def conform(self, rows: pa.Table | pa.RecordBatch) -> pa.Table:
        """`rows` with the table's columns, order and types; optional columns that are missing become null.

        Raises `StoreError` for a column that the table lacks, a value that does not fit, or a missing required one.
        """
        names = rows.schema.names
        unknown = sorted(set(names) - set(self._schema.names))
        if unknown:
            raise StoreError(f"table {self._name} has no column {', '.join(map(repr, unknown))}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise StoreError(f"table {self._name}: the rows have column {', '.join(map(repr, twice))} more than once")
        columns: list[pa.ChunkedArray | pa.Array] = []
        for field in self._schema:
            if field.name not in names:
                column = pa.nulls(rows.num_rows, field.type)
            else:
                try:
                    column = cast(rows.column(field.name), field.type)
                except REFUSED as error:
                    raise StoreError(f"table {self._name}, column {field.name}: {error}") from None
            if not field.nullable and column.null_count:
                raise StoreError(f"table {self._name}, column {field.name}: a row has no value, and it must have one")
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=self._schema)

    def split(self, rows: pa.Table) -> list[tuple[PartitionKey | None, pa.Table]]:
        """`rows` by partition of the table's present spec."""
        if not rows.num_rows:
            return []
        if self._spec.is_unpartitioned():
            return [(None, rows)]
        groups = list(_groups([self._partition_values(field, rows) for field in self._spec.fields]))
        if len(groups) == 1:
            return [(self._key(groups[0][0]), rows)]
        return [(self._key(value), rows.take(positions)) for value, positions in groups]

    def _partition_values(self, field: PartitionField, rows: pa.Table) -> pa.ChunkedArray:
        """What a field of the partition spec makes of each row. Raises `StoreError` for what cannot be worked out."""
        if isinstance(field.transform, VoidTransform):  # a field that was dropped from the spec of a v1 table
            return pa.chunked_array([pa.nulls(rows.num_rows, pa.int32())])
        try:
            source = self._iceberg_schema.find_field(field.source_id)
            values = column_at(rows, self._iceberg_schema, field.source_id)
            if isinstance(source.field_type, UUIDType) and isinstance(field.transform, IdentityTransform):
                raise NotImplementedError("pyiceberg reads such a partition as another value than it writes")
            return field.transform.pyarrow_transform(source.field_type)(values)
        except (ValueError, NotImplementedError, pa.ArrowException) as error:
            raise self._no_partition(field.name, error) from None

    def partition_key(self, like: DataFile) -> PartitionKey | None:
        """The partition of a data file; None in a table without partitions or for a file of another partition spec."""
        if self._spec.is_unpartitioned() or like.spec_id != self._spec.spec_id:
            return None
        return self._key(tuple(like.partition[position] for position in range(len(like.partition))))

    def _key(self, values: tuple[object, ...]) -> PartitionKey:
        fields = [PartitionFieldValue(f, v) for f, v in zip(self._spec.fields, values, strict=True)]
        key = PartitionKey(fields, self._spec, self._iceberg_schema)
        try:
            _ = key.partition
        except (ValueError, TypeError, AttributeError) as error:  # what pyiceberg makes of a bucket of times, for one
            raise self._no_partition(", ".join(field.name for field in self._spec.fields), error) from None
        return key

    def _no_partition(self, field: str, error: Exception) -> StoreError:
        return StoreError(
            f"table {self._name}: its partition by {field} cannot be worked out here:"
            f" {(str(error).splitlines() or [type(error).__name__])[0]}; write to it with another engine, or partition"
            " it by something else"
        )

    def write(self, partition: PartitionKey | None, rows: pa.Table, *, sort: bool = True) -> list[DataFile]:
        """Write rows of one partition, sorted by the table's order, as files of about the target size at most."""
        if not rows.num_rows:
            return []
        if sort:
            rows = _sorted(rows, self._sort)
        size = _share(rows, self.target_bytes)
        return [self._write_file(partition, rows.slice(start, size), sort) for start in range(0, rows.num_rows, size)]

    def begin(self, partition: PartitionKey | None, sample: pa.Table, *, is_sorted: bool) -> OpenFile:
        """Begin a file of one partition, to be written part by part; the first of its rows decide its encodings."""
        path = self._locations.new_data_location(f"{self._commit}-{len(self.paths):05d}.parquet", partition)
        self.paths.append(path)
        stream = self._io.new_output(path).create(overwrite=True)
        parquet = pq.ParquetWriter(stream, self._stored, **self._parquet_options(sample))

        def described(metadata: pq.FileMetaData, size: int) -> DataFile:
            statistics: dict[str, Any] = data_file_statistics_from_parquet_metadata(
                parquet_metadata=metadata,
                stats_columns=self._statistics,
                parquet_column_mapping=self._leaves,
            ).to_serialized_dict()
            # Sizes of columns would be most of a manifest entry, for no reader that needs them.
            statistics["column_sizes"] = None
            file = DataFile.from_args(
                content=DataFileContent.DATA,
                file_path=path,
                file_format=FileFormat.PARQUET,
                partition=partition.partition if partition else Record(),
                file_size_in_bytes=size,
                sort_order_id=self._sort_order_id if is_sorted else None,
                equality_ids=None,
                key_metadata=None,
                **statistics,
            )
            file.spec_id = self._spec.spec_id
            return file

        return OpenFile(self._name, stream, parquet, described, self._row_group_rows)

    def _write_file(self, partition: PartitionKey | None, rows: pa.Table, is_sorted: bool) -> DataFile:
        with self.begin(partition, rows, is_sorted=is_sorted) as file:
            file.write(rows)
            return file.finish()

    def _parquet_options(self, rows: pa.Table) -> dict[str, Any]:
        """Options for `rows`: a dictionary for every leaf but those in which it would not pay, which are plain.

        Numbers packed as differences would be read in half the time, but Iceberg's Java readers before 1.10, which
        Spark has, refuse them.
        """
        alone = self._merge_key if len(self._merge_key) == 1 else []
        sample = rows.slice(0, _SAMPLE_ROWS)
        plain = {name for name in sample.column_names if name in alone or not _is_repetitive(sample[name])}
        codec = self._metadata.properties.get(TableProperties.PARQUET_COMPRESSION, "zstd")
        return {
            "compression": "none" if codec == "uncompressed" else codec,  # Iceberg's word for it is another one
            "use_dictionary": [leaf for leaf in self._leaves if leaf not in plain],
        }


class OpenFile:
    """A data file that is being written."""

    def __init__(
        self,
        table: str,
        stream: OutputStream,
        parquet: pq.ParquetWriter,
        describe: Callable[[pq.FileMetaData, int], DataFile],
        row_group_rows: int | None,
    ) -> None:
        self._table = table
        self._stream = stream
        self._parquet = parquet
        self._describe = describe
        self._row_group_rows = row_group_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parquet.close()
        self._stream.close()

    @property
    def size(self) -> int:
        """The bytes written so far."""
        return self._stream.tell()

    def write(self, rows: pa.Table) -> None:
        """Add rows, which have the columns and types of `FileWriter.conform`, as row groups of about equal size."""
        size = _share(rows, ROW_GROUP_BYTES)
        schema = self._parquet.schema
        try:
            stored = rows if rows.schema.equals(schema) else rows.cast(schema)
            self._parquet.write_table(stored, row_group_size=min(size, self._row_group_rows or size))
        except pa.ArrowInvalid as error:  # a null in a list whose items must have a value, for one
            raise StoreError(f"table {self._table}: a row does not fit: {error}") from None

    def finish(self) -> DataFile:
        """The file is complete."""
        self._parquet.close()
        return self._describe(self._parquet.writer.metadata, self._stream.tell())


def _groups(columns: Sequence[pa.ChunkedArray]) -> Iterator[tuple[tuple[object, ...], pa.Array]]:
    """The distinct rows of `columns`, each with the positions where it stands, in order."""
    codes = pa.array([0]).take(pa.array([0] * len(columns[0]), pa.int64()))
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        codes = pc.add(pc.multiply(codes, len(encoded.dictionary)), encoded.indices.cast(pa.int64()))
    order = pc.sort_indices(codes)
    start = 0
    for run in pc.run_end_encode(codes.take(order)).run_ends.to_pylist():
        positions = order.slice(start, run - start)
        first = positions[0].as_py()
        yield tuple(column[first].as_py() for column in columns), positions
        start = run


def _is_repetitive(column: pa.ChunkedArray) -> bool:
    """Whether a dictionary pays: values are short, and stand there several times. Nested ones are taken to be so."""
    kind = column.type
    if pa.types.is_nested(kind):
        return True
    if (pa.types.is_string(kind) or pa.types.is_binary(kind)) and column.nbytes > _DICTIONARY_BYTES * len(column):
        return False
    return len(column) >= _DICTIONARY_REPEATS * pc.count_distinct(column).as_py()


def _share(rows: pa.Table, target_bytes: int) -> int:
    """How many rows a part has if `rows` are divided into equal parts of at most so many bytes."""
    parts = max(1, -(-rows.nbytes // target_bytes))
    return -(-rows.num_rows // parts)


def delete_files(io: FileIO, paths: Iterable[str]) -> None:
    """Delete files that no snapshot refers to; what cannot be deleted is left to the removal of orphans."""
    for path in paths:
        try:
            io.delete(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            _LOG.warning("%s could not be deleted and is an orphan now: %s", path, error)


def _sorted(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    if not columns:
        return rows
    order = pc.sort_indices(rows.select(columns), sort_keys=[(name, "ascending", "at_start") for name in columns])
    return rows.take(order)


def _sort_columns(table: Table) -> tuple[list[str], int | None]:
    """The columns of the table's sort order and its id; none if it sorts otherwise than upwards by plain columns.

    What is merged by a key and has no order is sorted by that, so that the keys of a row group lie close together.
    """
    order = table.sort_order()
    if order.is_unsorted:
        return merge_key_of(table), None
    columns = {field.field_id: field.name for field in table.schema().fields}
    if not all(
        isinstance(field.transform, IdentityTransform)
        and (field.direction, field.null_order) == (SortDirection.ASC, NullOrder.NULLS_FIRST)
        and field.source_id in columns
        for field in order.fields
    ):
        return [], None
    return [columns[field.source_id] for field in order.fields], order.order_id
