"""What `pkm tables` and `pkm table` show of tables and understand of words: figures, files, shapes, changes."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.evolution import (
    AddColumn,
    ClusterBy,
    DropColumn,
    Evolution,
    MakeOptional,
    PartitionBy,
    PromoteColumn,
    RenameColumn,
)
from pkm_pipelines.model.schema import TIMESTAMP, PartitionField
from pkm_pipelines.operations.debt import Limit, debt_of, limits, reason
from pkm_pipelines.operations.maintenance import tables_of
from pkm_pipelines.storage.iceberg_schema import TableMode

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.tables.consumers import Consumer
    from pkm_pipelines.tables.history import Explanation

TYPES = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": TIMESTAMP,
    "binary": pa.binary(),
}
"""The types of columns by the names that the command line takes."""

_PARTITION = re.compile(
    r"(?P<transform>identity|year|month|day|hour|(?:bucket|truncate)\[[1-9]\d*\])\((?P<column>[^()]+)\)"
    r"|(?P<plain>[^()]+)"
)


@dataclass(frozen=True)
class TableOverview:
    """One table in a line; sizes in bytes. `debt` is what maintenance has to work off, each figure beside its limit,
    the most pressing first; `mode` is empty for vectors. `error` is why the table cannot be read: then nothing else is
    known of it.
    """

    name: str
    rows: int
    files: int
    bytes: int
    snapshots: int
    mode: str
    committed_at: dt.datetime | None
    debt: tuple[Limit, ...]
    error: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A table that cannot be read, and why; listed beside the others."""

    table: str
    error: str


@dataclass(frozen=True)
class FileOverview:
    """One data file of a table, and how many delete files apply to it. Size in bytes."""

    path: str
    partition: str
    rows: int
    bytes: int
    delete_files: int


@dataclass(frozen=True)
class ColumnShape:
    """One column; `id` is its Iceberg field id."""

    id: int
    name: str
    type: str
    required: bool
    doc: str


@dataclass(frozen=True)
class Shape:
    """Columns, and what they are keyed, partitioned and sorted by."""

    table: str
    columns: tuple[ColumnShape, ...]
    key: tuple[str, ...]
    partitions: tuple[str, ...]
    sort: tuple[str, ...]


def overview(stores: Stores) -> list[TableOverview]:
    """Every table of the warehouse, and the vectors; one that cannot be read says why, and hides no other."""
    found: list[TableOverview] = []
    for name in (*tables_of(stores, "compact"), *tables_of(stores, "vectors")):
        try:
            found.append(_overview(stores, name))
        except TableNotFoundError:  # dropped meanwhile
            continue
        except Exception as error:  # noqa: BLE001 # told, whatever it is
            found.append(TableOverview(name, 0, 0, 0, 0, "", None, (), reason(error)))
    return found


def explain_all(stores: Stores) -> list[Explanation | Unreadable]:
    """How every table was last written to; one that cannot be read says why."""
    found: list[Explanation | Unreadable] = []
    for name in stores.iceberg.names():
        try:
            found.append(stores.tables.explain(name, 1))
        except TableNotFoundError:  # dropped meanwhile
            continue
        except Exception as error:  # noqa: BLE001 # told, whatever it is
            found.append(Unreadable(name, reason(error)))
    return found


def list_consumers(stores: Stores, table: str | None = None) -> list[Consumer | Unreadable]:
    """Who follows a table, or any; tables that cannot be read, whose own marks are not known therefore, come last."""
    unread: list[Unreadable] = []
    found = stores.tables.consumers(
        table,
        lambda output, followed: stores.vectors.watermark(output, followed),
        lambda name, error: unread.append(Unreadable(name, reason(error))),
    )
    return [*found, *unread]


def _overview(stores: Stores, name: str) -> TableOverview:
    debt = debt_of(stores, name)
    mode, committed_at = "", None
    if not name.startswith("vectors."):
        mode = stores.tables.explain(name, 1).mode
        current = stores.iceberg.load(name).metadata.current_snapshot()
        committed_at = dt.datetime.fromtimestamp(current.timestamp_ms / 1000, dt.UTC) if current else None
    return TableOverview(
        name=name,
        rows=debt.rows,
        files=debt.files or debt.fragments,
        bytes=debt.bytes,
        snapshots=debt.snapshots or debt.versions,
        mode=mode,
        committed_at=committed_at,
        debt=tuple(sorted(limits(stores, debt), key=lambda limit: -limit.share)),
    )


def check_has_history(name: str) -> None:
    """Raise `StoreError` for vectors: they are in Lance, and what Iceberg tells of its tables is not known of them."""
    if name.startswith("vectors."):
        raise StoreError(
            f"{name}: vectors are a Lance table, without the history, files and changes that are shown here; `pkm"
            " tables` lists it, `pkm sql` asks it, and `pkm maintain vectors` looks after it"
        )


def list_files(stores: Stores, name: str) -> list[FileOverview]:
    """The data files of a table's present state, by partition; raises `TableNotFoundError`."""
    from pkm_pipelines.storage.iceberg_manifests import live_files

    table = stores.iceberg.load(name)
    return sorted(
        (
            FileOverview(
                file.path,
                "/".join(map(str, file.partition)),
                file.file.record_count,
                file.file.file_size_in_bytes,
                len(file.deletes),
            )
            for file in live_files(table, table.metadata.current_snapshot())
        ),
        key=lambda file: (file.partition, file.path),
    )


def shape(stores: Stores, name: str) -> Shape:
    """Columns, key, partitions and sort order as the table has them now; raises `TableNotFoundError`."""
    from pkm_pipelines.storage.iceberg_schema import read_spec

    spec = read_spec(stores.iceberg.load(name))
    return Shape(
        spec.name,
        tuple(ColumnShape(c.id, c.name, str(c.type), c.required, c.doc) for c in spec.columns),
        spec.key,
        tuple(f"{part.transform}({part.column})" for part in spec.partition),
        spec.sort,
    )


def first_rows(reader: pa.RecordBatchReader, limit: int) -> list[dict[str, Any]]:
    """The first rows of a stream; what follows is not read."""
    found: list[dict[str, Any]] = []
    for batch in reader:
        found += batch.slice(0, limit - len(found)).to_pylist()
        if len(found) >= limit:
            break
    return found


def set_mode(stores: Stores, name: str, mode: TableMode | None, reads_per_write: float | None) -> None:
    """Set how often a hybrid table is read for each write (None to count it), and with it the mode where one is given.

    Raises `StoreError`, and changes nothing, if the table would not be hybrid: no other mode goes by a number of reads.
    """
    is_to_be = mode or stores.tables.explain(name).mode
    if is_to_be != "hybrid" and reads_per_write is not None:
        raise StoreError(
            f"table {name} is {is_to_be}, which goes by no number of reads; only hybrid does: `pkm table {name} mode"
            f" hybrid --reads {reads_per_write:g}`"
        )
    if mode is not None:
        stores.tables.set_mode(name, mode)
    stores.tables.set_reads_per_write(name, reads_per_write)


def parse_mode(word: str) -> TableMode:
    """A write mode by its name; raises `StoreError`."""
    for mode in get_args(TableMode):
        if mode == word:
            return mode
    raise StoreError(f"{word!r} is no write mode; there are {', '.join(get_args(TableMode))}")


def parse_reads(word: str) -> float | None:
    """A number of reads, or None for `counted`; raises `StoreError`."""
    if word == "counted":
        return None
    try:
        reads = float(word)
    except ValueError:
        reads = -1.0
    if not 0 <= reads < float("inf"):
        raise StoreError(f"{word!r} is neither a number nor `counted`: give 0 or more")
    return reads


def parse_changes(
    *,
    add: Iterable[str] = (),
    rename: Iterable[str] = (),
    drop: Iterable[str] = (),
    promote: Iterable[str] = (),
    optional: Iterable[str] = (),
    partition: Sequence[str] | None = None,
    zorder: Sequence[str] | None = None,
) -> list[Evolution]:
    """Changes of a table's shape from words: `name:type`, `old=new`, `bucket[16](id)`; raises `StoreError`.

    An empty word for `partition` alone makes the table unpartitioned, one for `zorder` alone sorted as it is declared.
    """
    changes: list[Evolution] = [AddColumn(*_typed(word)) for word in add]
    for word in rename:
        name, separator, to = word.partition("=")
        if not (name.strip() and separator and to.strip()):
            raise StoreError(f"{word!r}: a column is renamed by OLD=NEW")
        changes.append(RenameColumn(name, to))
    changes += [DropColumn(_named(word)) for word in drop]
    changes += [PromoteColumn(*_typed(word)) for word in promote]
    changes += [MakeOptional(_named(word)) for word in optional]
    if partition is not None:
        changes.append(PartitionBy(tuple(_partition(word) for word in partition if word)))
    if zorder is not None:
        changes.append(ClusterBy(tuple(word for word in zorder if word)))
    return changes


def _named(word: str) -> str:
    if not word.strip():
        raise StoreError(f"{word!r} is no name of a column")
    return word


def _typed(word: str) -> tuple[str, pa.DataType]:
    name, _, kind = word.rpartition(":")
    if not name.strip() or kind not in TYPES:
        raise StoreError(f"{word!r}: a column is NAME:TYPE with a type of {', '.join(TYPES)}")
    return name, TYPES[kind]


def _partition(word: str) -> PartitionField:
    found = _PARTITION.fullmatch(word)
    if found is None:
        raise StoreError(
            f"{word!r}: a partition is a column, or bucket[16](id), truncate[4](id), year(at), month(at), day(at) or"
            " hour(at) of one"
        )
    return PartitionField(found["column"] or found["plain"], found["transform"] or "identity")
