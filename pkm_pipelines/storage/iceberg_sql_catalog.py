"""pyiceberg's SQL catalog, with the metadata files that were read last kept in memory.

A metadata file never changes under its name, yet each load of a table reads and parses it anew: some milliseconds,
more with every snapshot, and a commit loads its table several times. What is current is still asked of the database
each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata

_KEPT = 32


class WarmSqlCatalog(SqlCatalog):
    """An SQL catalog that parses each metadata file once."""

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        """The table of a row; overrides a private method, which a contract test watches."""
        location = orm_table.metadata_location
        if not location:
            raise NoSuchTableError(f"{orm_table.table_namespace}.{orm_table.table_name} has no metadata file")
        metadata = _METADATA.get(location)
        if metadata is None:
            metadata = FromInputFile.table_metadata(self._load_file_io(location=location).new_input(location))
            _METADATA.keep(location, metadata)
        return Table(
            identifier=(*self.identifier_to_tuple(orm_table.table_namespace), orm_table.table_name),
            metadata=metadata,
            metadata_location=location,
            io=self._load_file_io(metadata.properties, location),
            catalog=self,
        )


class _Kept:
    """The metadata used last, by location. They are immutable: an update of a table makes a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[str, TableMetadata] = OrderedDict()

    def get(self, location: str) -> TableMetadata | None:
        with self._lock:
            if location in self._items:
                self._items.move_to_end(location)
            return self._items.get(location)

    def keep(self, location: str, metadata: TableMetadata) -> None:
        with self._lock:
            self._items[location] = metadata
            while len(self._items) > _KEPT:
                self._items.popitem(last=False)


_METADATA = _Kept()
