"""How a table is described, independent of the store that holds it.

A `TableSpec` is the one place that says which columns, keys, partitions and sort order a table has.
`storage/` turns it into an Iceberg or Lance schema; assets turn it into Dagster's column schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pyarrow as pa

Layer = Literal["bronze", "silver", "gold", "vectors"]
Kind = Literal["log", "state"]

TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Column:
    """One column: `id` is its Iceberg field id, fixed for ever once released."""

    id: int
    name: str
    type: pa.DataType
    doc: str
    required: bool = False

    def field(self) -> pa.Field:
        """The Arrow field of the column, its doc in the metadata that pyiceberg reads."""
        return pa.field(self.name, self.type, nullable=not self.required, metadata={b"doc": self.doc.encode()})


@dataclass(frozen=True)
class PartitionField:
    """One field of a partition spec; `transform` is Iceberg's notation: `bucket[16]`, `month`."""

    column: str
    transform: str


@dataclass(frozen=True)
class TableSpec:
    """One table of the lakehouse.

    `key` identifies a row of a state table; `order` are the columns whose greatest value is newest
    when two rows of one key meet. A log has no key to merge by: its `key` names the column that is
    unique in it, so that a repeated append is recognised. `determined` are columns beside the key that the key
    decides for ever: with them a partition tells where a key can be, and nothing else has to be searched.
    `code_version` is raised when the same input would give other rows: the table is then computed anew.
    """

    layer: Layer
    table: str
    doc: str
    kind: Kind
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...] = ()
    determined: tuple[str, ...] = ()
    partition: tuple[PartitionField, ...] = ()
    sort: tuple[str, ...] = ()
    retention_days: int | None = None
    format_version: int = 1
    code_version: int = 1

    @property
    def name(self) -> str:
        """The identifier in the catalog and in SQL, for example `bronze.raw_notes`."""
        return f"{self.layer}.{self.table}"

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, in column order."""
        return pa.schema([column.field() for column in self.columns])

    def column(self, name: str) -> Column:
        """The column called `name`; raises `KeyError` if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name!r}")
