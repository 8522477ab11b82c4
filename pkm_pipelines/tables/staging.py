"""Rows on their way into data files, with a bound on what is held in memory.

Where a delta is larger than that, it is put down as data files of the table that no snapshot refers to, in the
table's own store: data of an S3 lakehouse never touches a local disk. They are deleted when the commit is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionKey
from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_manifests import Partition, partition_values
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_writer import FileWriter

# Rows of a delta that are held in memory before they are put down.
MEMORY_BYTES = 256 << 20


def partition_of(key: PartitionKey | None) -> Partition:
    """The values of a partition; none in a table that has no partitions."""
    return partition_values(key.partition) if key else ()


class Output:
    """Rows that become data files for good, each partition's as soon as there is a file's worth of them."""

    def __init__(self, writer: FileWriter, memory_bytes: int = MEMORY_BYTES) -> None:
        self._writer = writer
        self._limit = memory_bytes
        self._held: dict[Partition, list[pa.Table]] = defaultdict(list)
        self._bytes: dict[Partition, int] = defaultdict(int)
        self._keys: dict[Partition, PartitionKey | None] = {}
        self.files: list[DataFile] = []

    def add(self, rows: pa.Table) -> None:
        """Take rows of any partitions."""
        for key, part in self._writer.split(rows):
            partition = partition_of(key)
            self._keys[partition] = key
            self._held[partition].append(part)
            self._bytes[partition] += part.nbytes
            if self._bytes[partition] >= self._writer.target_bytes:
                self._write(partition)
        while self._bytes and sum(self._bytes.values()) > self._limit:
            self._write(max(self._bytes, key=self._bytes.__getitem__))

    def finish(self) -> list[DataFile]:
        """Write what is left; returns all files."""
        for partition in list(self._held):
            self._write(partition)
        return self.files

    def _write(self, partition: Partition) -> None:
        rows = pa.concat_tables(self._held.pop(partition))
        del self._bytes[partition]
        self.files += self._writer.write(self._keys[partition], rows)


class Staging:
    """All rows of a delta, to be read again partition by partition as often as a commit is tried."""

    def __init__(self, table: Table, writer: FileWriter, memory_bytes: int = MEMORY_BYTES) -> None:
        self._reader = FileReader(table)
        self._writer = writer
        self._limit = memory_bytes
        self._bytes = 0
        self._held: dict[Partition, list[pa.Table]] = defaultdict(list)
        self._keys: dict[Partition, PartitionKey | None] = {}
        self._put_down: dict[Partition, list[DataFile]] = defaultdict(list)
        self._empty = writer.conform(pa.table({}))

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take all rows."""
        for batch in batches:
            for key, part in self._writer.split(self._writer.conform(batch)):
                partition = partition_of(key)
                self._keys[partition] = key
                self._held[partition].append(part)
                self._bytes += part.nbytes
            if self._bytes > self._limit:
                self._spill()

    @property
    def partitions(self) -> set[Partition]:
        """The partitions that have rows."""
        return set(self._keys)

    def rows(self, partition: Partition | None) -> pa.Table:
        """The rows of a partition in the order in which they came; None is all of them."""
        wanted = sorted(self._keys, key=repr) if partition is None else [partition]
        tables = [self._empty]
        for one in wanted:
            tables += [self._reader.read(file) for file in self._put_down.get(one, ())]
            tables += self._held.get(one, ())
        return pa.concat_tables(tables).combine_chunks()

    def _spill(self) -> None:
        for partition, tables in self._held.items():
            self._put_down[partition] += self._writer.write(self._keys[partition], pa.concat_tables(tables), sort=False)
        self._held.clear()
        self._bytes = 0
