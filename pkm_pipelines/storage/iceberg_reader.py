"""Reading the data files of a table, one at a time.

pyiceberg's own scan holds the batches of all files at once; this one holds some of one file, whatever the size of
the table.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyiceberg.expressions import BooleanExpression
from pyiceberg.io import InputStream
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg_binding import BoundFilter, bind_filter
from pkm_pipelines.storage.iceberg_datafile import OpenDataFile, RowPositions, opened
from pkm_pipelines.storage.iceberg_images import deleted_rows
from pkm_pipelines.storage.iceberg_layout import find_column, layout_of, project
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile

_BATCH_ROWS = 16_384
_POSITION = "\0position"


@contextmanager
def reading(table: Table) -> Generator[None]:
    """Makes an error of ours of a store that fails while `table` is read."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"table {'.'.join(table.name())} cannot be read: {error}; if its snapshot has expired since, read again"
        ) from error


def stream(table: Table, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatchReader:
    """`batches`, which are read from `table` while they are asked for, as a stream that fails with errors of ours."""

    def guarded() -> Iterator[pa.RecordBatch]:
        with reading(table):
            yield from batches

    return pa.RecordBatchReader.from_batches(schema, guarded())


class FileReader:
    """Reads data files of one table: the columns asked for, in that order, in the table's present schema.

    With a `row_filter` only the rows that match it; by column statistics whole row groups are then passed over.
    Who reads several files at once sets `use_threads` to false, or threads that read columns get into their way.

    Raises `StoreError` for a column that the table has not.
    """

    def __init__(
        self,
        table: Table,
        columns: Sequence[str] | None = None,
        row_filter: BooleanExpression = EVERYTHING,
        *,
        use_threads: bool = True,
    ) -> None:
        self._table = table
        self._use_threads = use_threads
        self._layout = layout_of(table)
        known = self._layout.arrow
        names = known.names if columns is None else list(columns)
        if unknown := sorted(set(names) - set(known.names)):
            raise StoreError(f"table {'.'.join(table.name())} has no column {', '.join(map(repr, unknown))}")
        self.schema = pa.schema([known.field(name) for name in names])
        self.filter: BoundFilter = bind_filter(table, row_filter)
        self._filter: pc.Expression | None = self.filter.arrow
        self._needed = list(dict.fromkeys([*names, *self.filter.columns]))

    def with_id(self, name: str) -> pa.Field:
        """A column of the table as its data files have it, with its field id."""
        return self._layout.with_ids.field(name)

    def batches(self, file: LiveFile | DataFile) -> Iterator[pa.RecordBatch]:
        """The rows of `file`, deletes taken off, in batches of bounded size.

        A `DataFile` is one that this commit wrote and no snapshot holds yet.
        """
        with opened(self._table, file) as one:
            can_push_down = self._filter is not None and not self.filter.finds_nan
            if can_push_down and not one.deletes and self._layout.is_of(one.schema):
                yield from self._pushed_down(one.stream)
                return
            found = self.stored(one)
            if one.deletes:
                found = less(found, one.deleted)
            for batch in found:
                if self._filter is not None:
                    batch = self._shown(_whole(pa.table(batch).filter(self._filter)))
                if batch.num_rows:
                    yield batch

    def at(self, file: LiveFile, positions: pa.Int64Array) -> Iterator[pa.RecordBatch]:
        """The rows of `file` at these positions (ascending), deleted or not; no row group without one is read."""
        with opened(self._table, file) as one:
            yield from self.stored_at(one, positions.to_numpy(zero_copy_only=False))

    def deleted_at(
        self, file: LiveFile, positions: pa.Int64Array, deletes: Sequence[DataFile]
    ) -> Iterator[pa.RecordBatch]:
        """As `at`, of rows that `deletes` take off: from these delete files themselves, if they hold the rows."""
        rows = deleted_rows(self._table.io, deletes, file.path, positions)
        if rows is None:
            yield from self.at(file, positions)
            return
        yield self._shown(self._resolve(rows, file.file, self._sources(rows.schema)))

    def matches(self, file: LiveFile) -> RowPositions:
        """The positions of the rows of `file` that match the filter, deletes taken off (ascending)."""
        found = [np.array([], dtype=np.int64)]
        start = 0
        with opened(self._table, file) as one:
            for batch in self.stored(one):
                positions = pa.arange(start, start + batch.num_rows)
                numbered = pa.table([*batch.columns, positions], names=[*batch.schema.names, _POSITION])
                kept = numbered if self._filter is None else numbered.filter(self._filter)
                found.append(kept.column(batch.num_columns).to_numpy())
                start += batch.num_rows
            return np.setdiff1d(np.concatenate(found), one.deleted, assume_unique=True)

    def stored_at(self, file: OpenDataFile, positions: RowPositions) -> Iterator[pa.RecordBatch]:
        """As `at`, of a file that is open."""
        groups = file.groups_of(positions)
        places = file.places(positions, groups)
        start = 0
        for batch in self.stored(file, groups):
            first, last = np.searchsorted(places, [start, start + batch.num_rows])
            if first < last:
                rows = batch.take(pa.array(places[first:last] - start))
                yield rows if self._filter is None else self._shown(rows)
            start += batch.num_rows

    def stored(
        self, file: OpenDataFile, row_groups: Sequence[int] | None = None, batch_rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The rows of an open file, or of some of its row groups, as they stand in it: deleted or not, and unfiltered.

        Without a filter the batches have the columns of `schema`; with one also those that it needs.
        """
        if row_groups is not None and not row_groups:
            return
        if self._layout.is_of(file.schema):
            found = self._iterated(file, row_groups, batch_rows, self._needed)
        else:
            found = self._resolved(file, row_groups, batch_rows)
        for batch in found:
            yield batch if self._filter is not None else self._shown(batch)

    def read(self, file: LiveFile | DataFile) -> pa.Table:
        """All rows of `file`, deletes taken off."""
        return pa.Table.from_batches(self.batches(file), schema=self.schema)

    def _pushed_down(self, stream: InputStream) -> Iterator[pa.RecordBatch]:
        fragment = ds.ParquetFileFormat(pre_buffer=True).make_fragment(stream)
        scanner = ds.Scanner.from_fragment(
            fragment, columns=self.schema.names, filter=self._filter, batch_size=_BATCH_ROWS, batch_readahead=2
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield self._shown(batch)

    def _resolved(
        self, file: OpenDataFile, row_groups: Sequence[int] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """The needed columns of a file of another schema; what the file lacks is null, or its partition's value."""
        sources = self._sources(file.schema)
        names = [source.name for source in sources if source is not None] or file.schema.names[:1]
        for batch in self._iterated(file, row_groups, batch_rows, names):
            yield self._resolve(batch, file.data, sources)

    def _iterated(
        self, file: OpenDataFile, row_groups: Sequence[int] | None, batch_rows: int, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        return file.parquet.iter_batches(
            batch_rows, row_groups=row_groups, columns=columns, use_threads=self._use_threads
        )

    def _sources(self, schema: pa.Schema) -> list[pa.Field | None]:
        """For each needed column the one of `schema`, which has field ids, that it is read from."""
        return [find_column(schema, self._layout.with_ids.field(name)) for name in self._needed]

    def _resolve(self, batch: pa.RecordBatch, data: DataFile, sources: Sequence[pa.Field | None]) -> pa.RecordBatch:
        """The needed columns of rows of a data file, each from its source; see `_resolved`."""
        wanted = [self._layout.with_ids.field(name) for name in self._needed]
        columns: list[pa.Array] = []
        for column, source in zip(wanted, sources, strict=True):
            if source is None:
                constant = pa.scalar(self._partition_value(data, column.name), column.type)
                columns.append(pa.repeat(constant, batch.num_rows))
            else:
                columns.append(project(batch.column(source.name), source, column))
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(wanted))

    def _partition_value(self, data: DataFile, name: str) -> Any:
        number = self._layout.schema.find_field(name).field_id
        for position, part in enumerate(self._table.metadata.specs()[data.spec_id].fields):
            if part.source_id == number and isinstance(part.transform, IdentityTransform):
                return data.partition[position]
        return None

    def _shown(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([batch.column(name) for name in self.schema.names], schema=self.schema)


def less(batches: Iterator[pa.RecordBatch], gone: RowPositions) -> Iterator[pa.RecordBatch]:
    """The batches, which come one after the other in a file, without the rows at the positions `gone` (ascending)."""
    start = 0
    for batch in batches:
        first, last = np.searchsorted(gone, (start, start + batch.num_rows))
        if first < last:
            keep = np.ones(batch.num_rows, dtype=bool)
            keep[gone[first:last] - start] = False
            yield batch.filter(pa.array(keep))
        else:
            yield batch
        start += batch.num_rows


def _whole(rows: pa.Table) -> pa.RecordBatch:
    """One batch of a table that was one batch."""
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
