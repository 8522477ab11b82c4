"""The warehouse: Iceberg tables by name, made from their specs and read as streams.

Writing is in `iceberg_commit.py`, the one way by which a table changes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    RESTError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import BooleanExpression
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Snapshot
from sqlalchemy.exc import IntegrityError

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError, TableNotFoundError
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.urls import redacted
from pkm_pipelines.storage.iceberg_catalog import SharedFileIO, open_catalog, patiently
from pkm_pipelines.storage.iceberg_history import count, find_ref, find_snapshot, snapshot_at
from pkm_pipelines.storage.iceberg_leftovers import table_left
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader, reading, stream
from pkm_pipelines.storage.iceberg_schema import (
    check_table,
    iceberg_schema,
    partition_spec,
    sort_order,
    table_properties,
)
from pkm_pipelines.storage.iceberg_spec import check_spec
from pkm_pipelines.storage.location import Location


class IcebergStore:
    """The Iceberg tables of one warehouse. It is opened when first used, in each process anew."""

    def __init__(self, warehouse: Location, catalog_url: str) -> None:
        self.warehouse = warehouse
        self._url = catalog_url
        self._catalog: Catalog | None = None
        self._process = 0
        self._checked: dict[str, TableSpec] = {}

    def __repr__(self) -> str:
        return f"IcebergStore({self.warehouse.url!r}, {redacted(self._url)!r})"

    @property
    def catalog(self) -> Catalog:
        """The catalog; connections are not shared with a parent process."""
        if self._catalog is None or self._process != os.getpid():
            self._catalog, self._process = open_catalog(self._url, self.warehouse), os.getpid()
        return self._catalog

    @property
    def catalog_url(self) -> str:
        """The catalog's URL, with its password."""
        return self._url

    def ensure(self, spec: TableSpec) -> Table:
        """The table of `spec`, created if it does not exist yet; any number of processes may ask at once.

        Raises `StoreError` if a table of that name holds other columns, if the warehouse holds the files of one that
        the catalog does not know, or if a table of `spec` could not be written to.
        """
        try:
            table = self.load(spec.name)
        except TableNotFoundError:
            table = patiently(lambda: self._create(spec), self._url)
        if self._checked.get(spec.name) != spec:
            check_table(table, spec)
            self._checked[spec.name] = spec
        return table

    def _create(self, spec: TableSpec) -> Table:
        check_spec(spec)
        with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):  # another process was quicker
            self.catalog.create_namespace_if_not_exists(spec.layer)
        if left := self._left(spec.name):
            with contextlib.suppress(NoSuchTableError):  # another process was quicker, and has written to it
                return self.catalog.load_table(spec.name)
            raise StoreError(
                f"table {spec.name}: the warehouse holds one of that name that the catalog does not know ({left}), and"
                " none is made over it: `pkm warehouse rebuild-catalog` takes it back; to begin anew, move its folder"
                " out of the warehouse"
            )
        try:
            return self.catalog.create_table(
                spec.name,
                schema=iceberg_schema(spec),
                partition_spec=partition_spec(spec),
                sort_order=sort_order(spec),
                properties=table_properties(spec),
            )
        except TableAlreadyExistsError:
            return self.catalog.load_table(spec.name)

    def _left(self, name: str) -> str | None:
        try:
            return table_left(SharedFileIO(self.catalog.properties), self.warehouse, name)
        except OSError as error:
            raise StoreError(f"table {name}: {self.warehouse.url} cannot be read: {error}") from error

    def exists(self, name: str) -> bool:
        """Whether there is a table called `name`."""
        try:
            self.load(name)
        except TableNotFoundError:
            return False
        return True

    def load(self, name: str) -> Table:
        """The table as it is now; raises `TableNotFoundError`, and `StoreError` if a store cannot be reached."""
        try:
            if "." in name and all(part.strip() for part in name.split(".")):
                return patiently(lambda: self.catalog.load_table(name), self._url)
            raise NoSuchTableError(name)
        except (NoSuchTableError, NoSuchNamespaceError):
            raise TableNotFoundError(f"there is no table {name} (yet); `pkm run` makes and fills it") from None
        except (OSError, RESTError) as error:
            raise StoreError(f"table {name}: its metadata cannot be read: {error}") from error

    def names(self) -> list[str]:
        """The names of all tables, sorted."""
        catalog = self.catalog
        namespaces = patiently(catalog.list_namespaces, self._url)
        return sorted(
            ".".join(name)
            for space in namespaces
            for name in patiently(lambda s=space: catalog.list_tables(s), self._url)
        )

    def snapshot_id(self, name: str) -> int | None:
        """The id of the table's current snapshot; None while it has none. Raises `TableNotFoundError`."""
        return self.load(name).metadata.current_snapshot_id

    def scan(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        row_filter: BooleanExpression | None = None,
        snapshot_id: int | None = None,
        as_of: dt.datetime | None = None,
        tag: str | None = None,
    ) -> Scan:
        """A read of a table, planned: which of its data files may hold rows that are asked for.

        `columns` come in the order they are named in; all by default. `row_filter` is a pyiceberg expression.
        The present state is read unless `snapshot_id`, `as_of` (aware of its time zone) or `tag` (a tag or a branch)
        names another one.

        Raises `TableNotFoundError`, `SnapshotNotFoundError` for a state that never was or has expired, and
        `StoreError` for a column that the table has not, a filter that does not fit, or a file that cannot be read.
        """
        table = self.load(name)
        snapshot = resolve(table, snapshot_id, as_of, tag)
        wanted = EVERYTHING if row_filter is None else row_filter
        reader = FileReader(table, columns, wanted)
        with reading(table):
            files = live_files(table, snapshot, reader.filter.where)
        return Scan(table, snapshot, files, reader)


@dataclass(frozen=True)
class Scan:
    """A read of one snapshot (None of an empty table) that was planned and not begun."""

    table: Table
    snapshot: Snapshot | None
    files: Sequence[LiveFile]
    reader: FileReader

    @property
    def is_present(self) -> bool:
        """Whether it reads the table's present state."""
        return self.snapshot is not None and self.snapshot.snapshot_id == self.table.metadata.current_snapshot_id

    @property
    def total_files(self) -> int:
        """The data files of the snapshot, as far as its summary tells."""
        return count(self.snapshot, "total-data-files") if self.snapshot else 0

    def read(self, limit: int | None = None) -> pa.RecordBatchReader:
        """The rows, at most `limit`, as a stream that holds one data file in memory at most."""
        return stream(self.table, self.reader.schema, _batches(self.reader, self.files, limit))


def resolve(
    table: Table, snapshot_id: int | None = None, as_of: dt.datetime | None = None, tag: str | None = None
) -> Snapshot | None:
    """The snapshot that is asked for; the current one by default, None if the table is empty."""
    if sum(one is not None for one in (snapshot_id, as_of, tag)) > 1:
        raise SnapshotNotFoundError("a read is of a snapshot, as of a moment, or of a tag or branch: of one of them")
    if snapshot_id is not None:
        return find_snapshot(table, snapshot_id)
    if as_of is not None:
        return snapshot_at(table, as_of)
    if tag is not None and (tag != MAIN_BRANCH or tag in table.metadata.refs):
        return find_ref(table, tag)
    return table.metadata.current_snapshot()


def _batches(reader: FileReader, files: Sequence[LiveFile], limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for file in files:
        for batch in reader.batches(file):
            if left is None:
                yield batch
                continue
            if left <= 0:
                return
            yield batch.slice(0, left)
            left -= batch.num_rows
