"""Rows in order, however many: sorted in parts that fit into memory, and merged from there.

An external merge sort (D. E. Knuth, The Art of Computer Programming 3, section 5.4) on whole batches: of each sorted
part one batch is held; all rows up to the least of the batches' last keys can be no later than what follows, so
they are sorted and let go together. Parts that do not fit are put down as files in the table's own store, like a
delta that is too large (`staging.py`), and are no part of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionKey

from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.rows import is_older


class Order(Protocol):
    """An order of rows."""

    def keys(self, rows: pa.Table) -> pa.Table:
        """The columns by which rows are compared, ascending, the first one first, null before everything."""
        ...


@dataclass(frozen=True)
class ColumnOrder:
    """The order of some columns' values."""

    columns: Sequence[str]

    def keys(self, rows: pa.Table) -> pa.Table:
        """These columns."""
        return rows.select(list(self.columns))


def sort(rows: pa.Table, order: Order) -> pa.Table:
    """Rows in order; equal ones stay as they are to each other."""
    keys = order.keys(rows).combine_chunks()
    by = [(name, "ascending", "at_start") for name in keys.column_names]
    places = pc.sort_indices(keys, sort_keys=by)
    if _is_ascending(places):
        return rows
    # Of many chunks rows are taken slowly; putting together a column at a time holds one more column and not the table.
    columns = [pa.chunked_array([column.combine_chunks()]).take(places) for column in rows.columns]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def _is_ascending(places: pa.UInt64Array) -> bool:
    """Whether rows at these places are those of the table as it is: each place is there once."""
    return bool(np.all(np.diff(places.to_numpy().astype(np.int64)) > 0))


class Sorter:
    """Sorts rows of one partition with at most `memory_bytes` of them in memory at once."""

    def __init__(
        self, writer: FileWriter, reader: FileReader, partition: PartitionKey | None, order: Order, memory_bytes: int
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._partition = partition
        self._order = order
        # Sorting holds a part twice, and a third time while it is written.
        self._limit = memory_bytes // 3
        self._held: list[pa.Table] = []
        self._bytes = 0
        self._parts: list[list[DataFile]] = []

    def add(self, rows: pa.Table) -> None:
        """Take some rows."""
        self._held.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= self._limit:
            part = sort(pa.concat_tables(self._held), self._order)
            self._held, self._bytes = [], 0
            self._parts.append(self._writer.write(self._partition, part, sort=False))

    def rows(self) -> Iterator[pa.Table]:
        """All rows, in order."""
        last = sort(pa.concat_tables(self._held), self._order) if self._held else None
        self._held = []
        if not self._parts:
            if last is not None:
                yield last
            return
        streams = [self._read(part) for part in self._parts]
        if last is not None:
            streams.append(iter([last]))
        yield from merge(streams, self._order)

    def _read(self, files: Iterable[DataFile]) -> Iterator[pa.Table]:
        for file in files:
            for batch in self._reader.batches(file):
                yield pa.table(batch)


def merge(streams: Sequence[Iterator[pa.Table]], order: Order) -> Iterator[pa.Table]:
    """The rows of sorted streams, in order."""
    heads = [head for stream in streams if (head := _next(stream, order)) is not None]
    while len(heads) > 1:
        last = _least([head.last for head in heads])
        parts: list[pa.Table] = []
        left: list[_Head] = []
        for position, head in enumerate(heads):
            # The head whose last key it is goes as a whole, so every round comes to an end.
            size = head.rows.num_rows if position == last else head.until(heads[last].last)
            parts.append(head.rows.slice(0, size))
            rest = head.skip(size) if size < head.rows.num_rows else _next(head.stream, order)
            if rest is not None:
                left.append(rest)
        yield sort(pa.concat_tables(parts), order)
        heads = left
    for head in heads:
        yield head.rows
        yield from head.stream


@dataclass(frozen=True)
class _Head:
    """What is held of a stream: some rows and their keys."""

    stream: Iterator[pa.Table]
    rows: pa.Table
    keys: pa.Table

    @property
    def last(self) -> pa.Table:
        """The key of the last row."""
        return self.keys.slice(self.keys.num_rows - 1)

    def until(self, key: pa.Table) -> int:
        """How many rows come no later than `key`."""
        bound = key.take(pa.repeat(pa.scalar(0, pa.int64()), self.keys.num_rows))
        later = is_older(bound, self.keys, self.keys.column_names)
        first = pc.index(later, True).as_py()
        return self.keys.num_rows if first < 0 else first

    def skip(self, count: int) -> _Head:
        """What follows the first rows."""
        return _Head(self.stream, self.rows.slice(count), self.keys.slice(count))


def _next(stream: Iterator[pa.Table], order: Order) -> _Head | None:
    for rows in stream:
        if rows.num_rows:
            return _Head(stream, rows, order.keys(rows))
    return None


def _least(keys: Sequence[pa.Table]) -> int:
    """Which of the one-row tables is least."""
    rows = pa.concat_tables(keys)
    by = [(name, "ascending", "at_start") for name in rows.column_names]
    return pc.sort_indices(rows, sort_keys=by)[0].as_py()
