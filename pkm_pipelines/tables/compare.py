"""Which rows differ between two sets of files, exactly and in bounded memory.

Rows are told apart by the table's key; without one, equal rows are counted, and the surplus of a side came or went.
What can be compared is divided until it is small enough:

1. by partition, where a row's partition cannot change without it being another row;
2. by ranges of the key, where the bounds of the files on both sides leave gaps between them, which they do in tables
   that are sorted by key;
3. what is still larger than the bound is read several times, each time for the keys of one remainder of their hash.
   The hash only divides: what is compared is the rows.

Of a data file that both sides hold, with more deletes by position on one of them, only the rows at the positions
that differ are read: from the delete files, where those hold the rows, and the data file is not opened at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_deletes import deleted_positions
from pkm_pipelines.storage.iceberg_manifests import LiveFile, column_bounds, files_between
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_schema import partition_sources
from pkm_pipelines.tables.rows import KeyIndex, differ

# Rows of both sides that are held at once while they are compared, by an estimate of their size in memory.
MEMORY_BYTES = 256 << 20
# Bytes of rows in memory for one byte of their Parquet file.
_EXPANSION = 6

ChangeType = Literal["INSERT", "DELETE", "UPDATE"]


class Difference(NamedTuple):
    """Rows that came, went, or changed from `before` to the row at the same place in `rows`."""

    kind: ChangeType
    rows: pa.Table
    before: pa.Table | None = None


@dataclass(frozen=True)
class Part:
    """Rows of one data file: those that are alive in it, or those at `positions`, which `deletes` take off."""

    file: LiveFile
    positions: pa.Int64Array | None = None
    deletes: tuple[DataFile, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """About how much memory its rows take."""
        whole = self.file.file.file_size_in_bytes * _EXPANSION
        if self.positions is None:
            return whole
        return whole * len(self.positions) // max(self.file.file.record_count, 1)

    def batches(self, reader: FileReader) -> Iterator[pa.RecordBatch]:
        """The rows."""
        if self.positions is None:
            return reader.batches(self.file)
        return reader.deleted_at(self.file, self.positions, self.deletes)


class Parts(NamedTuple):
    """What only the old side has, and what only the new one has."""

    gone: Sequence[Part]
    came: Sequence[Part]

    @property
    def bytes(self) -> int:
        """About how much memory the rows of both sides take."""
        return sum(part.bytes for side in self for part in side)


def parts_between(table: Table, old: Snapshot | None, new: Snapshot | None) -> Parts:
    """The files, and of files with other deletes the rows, that one of two snapshots has and the other has not."""
    gone, came = files_between(table, old, new)
    before = {file.path: file for file in gone}
    shared = {file.path for file in came if file.path in before}
    left = [Part(file) for file in gone if file.path not in shared]
    right = [Part(file) for file in came if file.path not in shared]
    for file in came:
        if file.path in shared:
            then, now = before[file.path], file
            taken = [deleted_positions(table.io, one.file, one.deletes) for one in (then, now)]
            for side, positions, deletes in (
                (left, _less(taken[1], taken[0]), _besides(now, then)),
                (right, _less(taken[0], taken[1]), _besides(then, now)),
            ):
                if len(positions):
                    side.append(Part(file, positions, deletes))
    return Parts(left, right)


def differences(
    table: Table, spec: TableSpec, columns: Sequence[str] | None, parts: Parts, memory_bytes: int = MEMORY_BYTES
) -> Iterator[Difference]:
    """The rows that differ; `columns` are what is compared and shown, the key's columns come on top of them.

    Each key comes once at most. Without a key a changed row is one that went and one that came.
    """
    names = FileReader(table, columns).schema.names
    reader = FileReader(table, list(dict.fromkeys([*spec.key, *names])))
    compare = _by_key(spec.key) if spec.key else _by_count
    for group in _by_partition(table, spec, parts):
        for some in _by_range(table, spec, group):
            yield from _compare(reader, spec.key, compare, some, memory_bytes)


Compare = Callable[[pa.Table, pa.Table], Iterator[Difference]]


def _compare(
    reader: FileReader, key: Sequence[str], compare: Compare, parts: Parts, memory_bytes: int
) -> Iterator[Difference]:
    if not parts.gone or not parts.came:
        kind: ChangeType = "DELETE" if parts.gone else "INSERT"
        for part in (*parts.gone, *parts.came):
            for batch in part.batches(reader):
                yield Difference(kind, pa.table(batch))
        return
    passes = -(-parts.bytes // memory_bytes)
    for remainder in range(passes):
        sides: list[pa.Table] = []
        for side in parts:
            batches = (batch for part in side for batch in part.batches(reader))
            if passes > 1:
                batches = (batch.filter(_has_remainder(batch, key, remainder, passes)) for batch in batches)
            sides.append(pa.Table.from_batches(batches, schema=reader.schema).combine_chunks())
        yield from compare(*sides)


def _by_key(key: Sequence[str]) -> Compare:
    def compare(old: pa.Table, new: pa.Table) -> Iterator[Difference]:
        at = KeyIndex(new, key).find(old)
        yield Difference("DELETE", old.filter(pc.is_null(at)))
        kept, now = pa.arange(0, old.num_rows).filter(pc.is_valid(at)), at.filter(pc.is_valid(at))
        changed = differ(old.take(kept), new.take(now))
        yield Difference("UPDATE", new.take(now.filter(changed)), old.take(kept.filter(changed)))
        yield Difference("INSERT", new.filter(pc.is_null(KeyIndex(old, key).find(new))))

    return compare


def _by_count(old: pa.Table, new: pa.Table) -> Iterator[Difference]:
    """Of each distinct row as many as one side has more of."""
    both = pa.concat_tables([old, new])
    signs = pa.concat_arrays([pa.repeat(pa.scalar(1), old.num_rows), pa.repeat(pa.scalar(-1), new.num_rows)])
    columns = {f"c{i}": _comparable(column) for i, column in enumerate(both.columns)}
    marked = pa.table({**columns, "sign": signs, "row": pa.arange(0, both.num_rows)})
    totals = marked.group_by(list(columns), use_threads=False).aggregate([("sign", "sum"), ("row", "min")])
    surplus = list(zip(totals["row_min"].to_pylist(), totals["sign_sum"].to_pylist(), strict=True))
    went = [row for row, count in surplus for _ in range(count)]
    came = [row for row, count in surplus for _ in range(-count)]
    yield Difference("DELETE", both.take(pa.array(went, pa.int64())))
    yield Difference("INSERT", both.take(pa.array(came, pa.int64())))


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column itself, or its values as text where Arrow cannot group by them."""
    if pa.types.is_nested(column.type):
        return pa.chunked_array([pa.array([repr(value) for value in column.to_pylist()], pa.string())])
    return column


def _has_remainder(batch: pa.RecordBatch, key: Sequence[str], remainder: int, passes: int) -> pa.Array:
    """For each row whether the hash of its key (of the whole row without one) leaves this remainder."""
    import polars as pl

    rows = pa.table(batch)
    rows = rows.select(key) if key else pa.table([_comparable(column) for column in rows.columns], rows.schema.names)
    hashes = pl.DataFrame(rows).hash_rows(seed=0)
    return (hashes % passes == remainder).to_arrow()


def _by_partition(table: Table, spec: TableSpec, parts: Parts) -> Iterator[Parts]:
    """The parts by partition; all in one where a row may move between partitions."""
    present = table.spec()
    sources = partition_sources(table)
    is_fixed = not spec.key or spec.kind == "log" or sources <= {*spec.key, *spec.determined}
    if not is_fixed or any(part.file.file.spec_id != present.spec_id for side in parts for part in side):
        yield parts
        return
    groups: dict[tuple[object, ...], Parts] = defaultdict(lambda: Parts([], []))
    for side, found in enumerate(parts):
        for part in found:
            _list(groups[part.file.partition], side).append(part)
    yield from groups.values()


def _by_range(table: Table, spec: TableSpec, parts: Parts) -> Iterator[Parts]:
    """The parts by ranges of the first key column that do not touch; all in one where bounds are not known."""
    if not spec.key or not parts.gone or not parts.came:
        yield parts
        return
    ranged: list[tuple[Any, Any, int, Part]] = []
    is_float = pa.types.is_floating(spec.column(spec.key[0]).type)  # bounds leave NaN out
    for side, found in enumerate(parts):
        for part in found:
            bounds = None if is_float else column_bounds(table, part.file.file, spec.key[0])
            if bounds is None:
                yield parts
                return
            ranged.append((*bounds, side, part))
    ranged.sort(key=lambda one: one[0])
    group, end = Parts([], []), ranged[0][1]
    for lower, upper, side, part in ranged:
        if lower > end:
            yield group
            group = Parts([], [])
        _list(group, side).append(part)
        end = max(end, upper)
    yield group


def _list(parts: Parts, side: int) -> list[Part]:
    found = parts[side]
    assert isinstance(found, list)
    return found


def _besides(one: LiveFile, other: LiveFile) -> tuple[DataFile, ...]:
    """The delete files of a data file that it has not in another snapshot."""
    known = {delete.file_path for delete in other.deletes}
    return tuple(delete for delete in one.deletes if delete.file_path not in known)


def _less(positions: pa.Int64Array, others: pa.Int64Array) -> pa.Int64Array:
    return positions.filter(pc.invert(pc.is_in(positions, value_set=others)))
