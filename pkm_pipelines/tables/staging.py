"""Rows on their way into data files, with a ceiling on what a write holds in memory.

Where a delta is larger than its part of that, it is put down as data files of the table that no snapshot refers to, in
the table's own store: data of an S3 lakehouse never touches a local disk. They are deleted when the commit is over. And
where the rows of one partition are too many, they are divided by ranges of their key, so that all rows of one key are
together in one part, and the files that a part becomes hold keys that lie close together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionKey
from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_manifests import Partition, partition_values
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_writer import FileWriter

# What a write may hold in memory, as Arrow data, if nothing else is said (the setting `tables.memory_mb`).
MEMORY_BYTES = 1 << 30
# The parts of it that may be: rows of a delta that have not been put down yet; rows of one part while it is merged,
# of which some five copies exist at once (as read, made unique, indexed, chosen, sorted); and rows on their way
# into a data file, with their sorted copy.
_STAGED = 1 / 10
_PART = 1 / 12
_OUTPUT = 1 / 10
# Rows that are divided at once, and of how many one is looked at to find out where to divide.
_DIVIDED_ROWS = 16_384
_SAMPLED = 128


def partition_of(key: PartitionKey | None) -> Partition:
    """The values of a partition; none in a table that has no partitions."""
    return partition_values(key.partition) if key else ()


def output_bytes(memory_bytes: int) -> int:
    """How much of a write's memory rows on their way into data files may take."""
    return int(memory_bytes * _OUTPUT)


class Output:
    """Rows that become data files for good, each partition's as soon as there is a file's worth of them.

    At most `memory_bytes` of them are held, in all partitions.
    """

    def __init__(self, writer: FileWriter, memory_bytes: int) -> None:
        self._writer = writer
        self._limit = memory_bytes
        self._file_bytes = min(writer.target_bytes, memory_bytes)
        self._held: dict[Partition, list[pa.Table]] = defaultdict(list)
        self._bytes: dict[Partition, int] = defaultdict(int)
        self._keys: dict[Partition, PartitionKey | None] = {}
        self.files: list[DataFile] = []

    def add(self, rows: pa.Table, like: DataFile | None = None) -> None:
        """Take rows of any partitions; `like` is a data file of the same one, if that is known."""
        known = None if like is None else self._writer.partition_key(like)
        for key, part in [(known, rows)] if known is not None and rows.num_rows else self._writer.split(rows):
            partition = partition_of(key)
            self._keys[partition] = key
            self._held[partition].append(part)
            self._bytes[partition] += part.nbytes
            if self._bytes[partition] >= self._file_bytes:
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
    """All rows of a delta, to be read again part by part as often as a commit is tried.

    They are split by partition, unless that would tear apart the rows of one key: then all are in no partition.
    """

    def __init__(
        self,
        table: Table,
        writer: FileWriter,
        memory_bytes: int = MEMORY_BYTES,
        key: Sequence[str] = (),
        *,
        is_split: bool = True,
    ) -> None:
        self._is_split = is_split
        self._reader = FileReader(table)
        self._writer = writer
        self._key = list(key)
        self._limit = int(memory_bytes * _STAGED)
        self._part_bytes = max(1, int(memory_bytes * _PART))
        self._bytes = 0
        self._sizes: dict[Partition, int] = defaultdict(int)
        self._held: dict[Partition, list[pa.Table]] = defaultdict(list)
        self._keys: dict[Partition, PartitionKey | None] = {}
        self._put_down: dict[Partition, list[DataFile]] = defaultdict(list)
        self._divided: dict[Partition | None, list[list[DataFile]]] = {}
        self._samples: dict[Partition, list[pa.Table]] = defaultdict(list)
        self._empty = writer.conform(pa.table({}))

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take all rows."""
        for batch in batches:
            rows = self._writer.conform(batch)
            for key, part in self._writer.split(rows) if self._is_split else [(None, rows)]:
                partition = partition_of(key)
                self._keys[partition] = key
                self._held[partition].append(part)
                self._bytes += part.nbytes
                self._sizes[partition] += part.nbytes
                if self._key:
                    self._samples[partition].append(part.select(self._key).take(pa.arange(0, len(part), _SAMPLED)))
            if self._bytes > self._limit:
                self._spill()

    @property
    def partitions(self) -> set[Partition]:
        """The partitions that have rows."""
        return set(self._keys)

    @property
    def is_held(self) -> bool:
        """Whether all rows are in memory, so few that each partition has them in one part."""
        return not self._put_down and all(self.count_parts(partition) == 1 for partition in self._keys)

    def count_parts(self, partition: Partition | None) -> int:
        """Into how many parts the rows of a partition, or all for None, are divided."""
        sizes = self._sizes.values() if partition is None else [self._sizes.get(partition, 0)]
        return max(1, math.ceil(sum(sizes) / self._part_bytes)) if self._key else 1

    def parts(self, partition: Partition | None) -> Iterator[pa.Table]:
        """The rows of a partition in the order in which they came, or all for None, part by part; one at least."""
        count = self.count_parts(partition)
        if count == 1:
            yield pa.concat_tables([self._empty, *self._stored(partition)]).combine_chunks()
            return
        if partition not in self._divided:
            self._divided[partition] = self._divide(partition, count)
        for files in self._divided[partition]:
            yield pa.concat_tables([self._empty, *(self._reader.read(file) for file in files)]).combine_chunks()

    def _stored(self, partition: Partition | None) -> Iterator[pa.Table]:
        for one in sorted(self._keys, key=repr) if partition is None else [partition]:
            for file in self._put_down.get(one, ()):
                for batch in self._reader.batches(file):
                    yield pa.Table.from_batches([batch])
            yield from self._held.get(one, ())

    def _divide(self, partition: Partition | None, count: int) -> list[list[DataFile]]:
        """Put the rows down again, each part in files of its own."""
        cuts = self._cuts(partition, count)
        files: list[list[DataFile]] = [[] for _ in range(count)]
        held: list[list[pa.Table]] = [[] for _ in range(count)]
        size = 0

        def put_down() -> None:
            for number, tables in enumerate(held):
                if tables:
                    # Where these files lie does not matter; they are no part of any partition.
                    files[number] += self._writer.write(None, pa.concat_tables(tables), sort=False)
                    tables.clear()

        for rows in self._stored(partition):
            for start in range(0, rows.num_rows, _DIVIDED_ROWS):
                some = rows.slice(start, _DIVIDED_ROWS)
                numbers = _parts_of(some.select(self._key), cuts)
                for number in np.unique(numbers).tolist():
                    held[number].append(some.filter(pa.array(numbers == number)))
                size += some.nbytes
                if size > self._limit:
                    put_down()
                    size = 0
        put_down()
        return files

    def _cuts(self, partition: Partition | None, count: int) -> list[dict[str, pa.Scalar]]:
        """The keys at which parts of about the same number of rows begin, all but the first; by a sample."""
        samples = self._samples.values() if partition is None else [self._samples[partition]]
        keys = pa.concat_tables([table for tables in samples for table in tables])
        keys = keys.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in self._key]))
        at = [len(keys) * number // count for number in range(1, count)]
        return [{name: keys.column(name)[position] for name in self._key} for position in at]

    def _spill(self) -> None:
        for partition, tables in self._held.items():
            self._put_down[partition] += self._writer.write(self._keys[partition], pa.concat_tables(tables), sort=False)
        self._held.clear()
        self._bytes = 0


def _parts_of(keys: pa.Table, cuts: Sequence[Mapping[str, pa.Scalar]]) -> npt.NDArray[np.int64]:
    """For each key how many of `cuts` are not greater: the number of its part."""
    numbers = np.zeros(len(keys), dtype=np.int64)
    for cut in cuts:
        reaches: pa.ChunkedArray | None = None
        for name in reversed(keys.column_names):  # by the first column, where that is equal by the next
            column, bound = keys.column(name), cut[name]
            if reaches is None:
                reaches = pc.greater_equal(column, bound)
            else:
                reaches = pc.or_(pc.greater(column, bound), pc.and_(pc.equal(column, bound), reaches))
        # What compares with nothing (a null, NaN) is in the first part, always.
        numbers += pc.fill_null(reaches, False).to_numpy()
    return numbers
