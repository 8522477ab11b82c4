"""One table, whichever store holds it, the way a reader wants it: rows, a preview, a slice, a lazy frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pkm_pipelines.model.records import Slice
from pkm_pipelines.tables.frames import storable_schema

if TYPE_CHECKING:
    import polars as pl

    from pkm_pipelines.storage.lance import VectorStore
    from pkm_pipelines.tables.manager import TableManager


class TableView(ABC):
    """A table as it is now."""

    snapshot_label: str
    """What the store calls a state of the table, as a metadata key."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the columns' docs where the store keeps them."""

    @property
    @abstractmethod
    def row_count(self) -> int:
        """Rows, deletes taken off."""

    @property
    @abstractmethod
    def snapshot_id(self) -> int | None:
        """The present snapshot or version."""

    @abstractmethod
    def scan(
        self, columns: Sequence[str] | None = None, part: Slice | None = None, limit: int | None = None
    ) -> pa.RecordBatchReader:
        """The rows as a stream; only `columns`, only those of `part`."""

    def lazy(self, columns: Sequence[str] | None = None, part: Slice | None = None) -> pl.LazyFrame:
        """The rows as a Polars frame that reads when collected, batch by batch and only the columns it needs.

        It reads through `scan`, so deletes, credentials and schema evolution are as everywhere else.
        """
        return lazy_frame(self.name, lambda wanted, limit: self.scan(wanted, part, limit), columns)

    def head(self, count: int) -> pa.Table:
        """The first rows, in no particular order."""
        return self.scan(limit=count).read_all()


class IcebergView(TableView):
    """A table of the warehouse."""

    snapshot_label = "iceberg/snapshot_id"

    def __init__(self, tables: TableManager, name: str) -> None:
        super().__init__(name)
        self._tables = tables
        self._table = tables.iceberg.load(name)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, from Iceberg's."""
        fields = {field.name: field for field in self._table.schema().fields}
        return pa.schema(
            [
                pa.field(f.name, f.type, f.nullable, {b"doc": (fields[f.name].doc or "").encode()})
                for f in storable_schema(self._table.schema().as_arrow())
            ]
        )

    @property
    def row_count(self) -> int:
        """Rows by the snapshot's own summary, position deletes taken off."""
        snapshot = self._table.current_snapshot()
        if snapshot is None or snapshot.summary is None:
            return 0
        count = snapshot.summary.get("total-records") or "0"
        deleted = snapshot.summary.get("total-position-deletes") or "0"
        return int(count) - int(deleted)

    @property
    def snapshot_id(self) -> int | None:
        """The present snapshot."""
        snapshot = self._table.current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def scan(
        self, columns: Sequence[str] | None = None, part: Slice | None = None, limit: int | None = None
    ) -> pa.RecordBatchReader:
        """A stream of the rows."""
        from pkm_pipelines.storage.iceberg_filter import slice_filter

        where = slice_filter(self.name, self.schema, part) if part else None
        return self._tables.read(self.name, columns=columns, row_filter=where, limit=limit)


class LanceView(TableView):
    """A table of vectors."""

    snapshot_label = "lance/version"

    def __init__(self, store: VectorStore, name: str) -> None:
        super().__init__(name)
        self._store = store

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        return self._store.schema(self.name)

    @property
    def row_count(self) -> int:
        """Rows."""
        return self._store.count(self.name)

    @property
    def snapshot_id(self) -> int | None:
        """The present version."""
        return self._store.version(self.name)

    def scan(
        self, columns: Sequence[str] | None = None, part: Slice | None = None, limit: int | None = None
    ) -> pa.RecordBatchReader:
        """A stream of the rows."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        from pkm_pipelines.storage.lance_filter import slice_filter

        where = slice_filter(part) if part else None
        return pa.RecordBatchReader.from_batches(
            schema, self._store.read(self.name, columns=columns, filter=where, limit=limit)
        )


Scan = Callable[[Sequence[str] | None, int | None], pa.RecordBatchReader]
"""Reads some columns (all for None) of the first rows (all for None)."""


def lazy_frame(name: str, scan: Scan, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """A Polars frame that calls `scan` when it is collected, with the columns that it needs."""
    import polars as pl
    from polars.io.plugins import register_io_source

    def frames(
        wanted: list[str] | None, predicate: pl.Expr | None, row_count: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for batch in scan(wanted, row_count):
            frame = pl.DataFrame(batch)
            yield frame if predicate is None else frame.filter(predicate)

    schema = pl.DataFrame(scan(None, 0).schema.empty_table()).schema
    frame = register_io_source(frames, schema=schema, explain_name=name)
    return frame if columns is None else frame.select(columns)


def view(name: str, tables: TableManager, vectors: VectorStore) -> TableView:
    """The view of the table `name`; raises `TableNotFoundError` if neither store has it."""
    return LanceView(vectors, name) if name.startswith("vectors.") else IcebergView(tables, name)
