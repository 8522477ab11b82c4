"""What may change about a table's shape, as values: each says one thing, and several are carried out as one."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pkm_pipelines.model.schema import PartitionField


@dataclass(frozen=True)
class AddColumn:
    """A new column at the end, or after the column `after`; null in the rows that are there."""

    name: str
    type: pa.DataType
    doc: str = ""
    required: bool = False
    after: str | None = None


@dataclass(frozen=True)
class RenameColumn:
    """Another name for a column; its values, and its part in key, order, partition and sort order stay."""

    name: str
    to: str


@dataclass(frozen=True)
class DropColumn:
    """A column goes. Its values are still there as of older snapshots of other engines, but no longer read here."""

    name: str


@dataclass(frozen=True)
class PromoteColumn:
    """A wider type: 32-bit to 64-bit integers or floats."""

    name: str
    type: pa.DataType


@dataclass(frozen=True)
class MakeOptional:
    """A required column may hold nulls from now on."""

    name: str


@dataclass(frozen=True)
class PartitionBy:
    """The partition spec of what is written from now on (none is unpartitioned); files that are there stay."""

    fields: tuple[PartitionField, ...] = ()


@dataclass(frozen=True)
class ClusterBy:
    """The columns by whose z-order compaction lays rows out from now on; none is the table's own sort order."""

    columns: tuple[str, ...] = ()


Evolution = AddColumn | RenameColumn | DropColumn | PromoteColumn | MakeOptional | PartitionBy | ClusterBy
