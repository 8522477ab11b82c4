"""Compaction: many small files become few large ones, deletes are worked in, and no row changes.

Files are packed within a partition. Small ones are taken by size, smallest first, a larger one only if the smaller ones
together are half as large as it: so every byte is rewritten a logarithmic number of times however often compaction
runs, as in a size-tiered log-structured merge tree (P. O'Neil et al., "The Log-Structured Merge-Tree", 1996). A file
that rows were deleted from by position is always taken.

What is packed is committed some hundred megabytes at a time, as `replace` snapshots that consumers pass over. When a
writer was quicker, what was rewritten from files that are still the same is kept, and the rest is left for
another time; so a conflict costs a manifest and no data. A file is read as a stream and its rows are sorted within a
memory limit (`sorting.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionKey
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg_manifests import LiveFile, Partition, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_schema import ROW_GROUP_BYTES
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.ahead import ahead
from pkm_pipelines.tables.sorting import ColumnOrder, Order, Sorter
from pkm_pipelines.tables.staging import Output
from pkm_pipelines.tables.zorder import ZOrder

# A file of this share of the target size is large enough.
FULL_SHARE = 0.75
# A small file is taken if it is no larger than so many times all smaller ones together.
SIZE_RATIO = 2
MAINTENANCE = "pkm.maintenance"
"""The property of a snapshot that says which maintenance made it."""


@dataclass(frozen=True)
class Packing:
    """How to compact: sizes are bytes, of Parquet but for `memory_bytes`, which bounds the rows held at once.

    `unsorted` also takes files of full size that are not in the table's order. `zorder` are columns to lay rows out by.
    """

    target_bytes: int
    batch_bytes: int
    memory_bytes: int
    unsorted: bool = False
    zorder: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileGroup:
    """Files of one partition that become `outputs` files, about."""

    spec_id: int
    partition: Partition
    files: tuple[LiveFile, ...]
    bytes: int
    outputs: int

    @property
    def saves_files(self) -> int:
        """How many data and delete files there are less of."""
        deletes = {delete.file_path for file in self.files for delete in file.deletes}
        return max(len(self.files) - self.outputs, 0) + len(deletes)


def plan_groups(table: Table, packing: Packing) -> list[FileGroup]:
    """What to pack in a table as it is, none larger than one commit may be; those that save most come first."""
    partitions: dict[tuple[int, Partition], list[LiveFile]] = defaultdict(list)
    for file in live_files(table, table.metadata.current_snapshot()):
        partitions[file.file.spec_id, file.partition].append(file)
    groups: list[FileGroup] = []
    for (spec_id, partition), files in partitions.items():
        due = {file.path for file in files if _is_due(table, file, packing)}
        for part in _parts(_chosen(files, due, packing), packing):
            size = sum(file.file.file_size_in_bytes for file in part)
            outputs = max(1, -(-size // packing.target_bytes))
            if outputs < len(part) or any(file.path in due for file in part):
                groups.append(FileGroup(spec_id, partition, tuple(part), size, outputs))
    return sorted(groups, key=lambda group: (-group.saves_files, group.bytes, repr(group.partition)))


def batches(groups: Iterable[FileGroup], packing: Packing) -> Iterator[list[FileGroup]]:
    """The groups by commit: as many as fit into one."""
    batch: list[FileGroup] = []
    size = 0
    for group in groups:
        if batch and size + group.bytes > packing.batch_bytes:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += group.bytes
    if batch:
        yield batch


def _is_due(table: Table, file: LiveFile, packing: Packing) -> bool:
    """Whether a file has to be rewritten whatever its size."""
    order = table.metadata.default_sort_order_id
    wants_order = packing.unsorted and order != 0 and not packing.zorder
    return bool(file.deletes) or (wants_order and file.file.sort_order_id != order)


def _chosen(files: Sequence[LiveFile], due: set[str], packing: Packing) -> list[LiveFile]:
    """The files of one partition that pay to be rewritten."""
    chosen = [file for file in files if file.path in due]
    small = sorted(
        (f for f in files if f.path not in due and f.file.file_size_in_bytes < FULL_SHARE * packing.target_bytes),
        key=lambda file: file.file.file_size_in_bytes,
    )
    total = sum(file.file.file_size_in_bytes for file in chosen)
    taken = 0
    for number, file in enumerate(small, 1):
        if file.file.file_size_in_bytes <= SIZE_RATIO * total:
            taken = number
        total += file.file.file_size_in_bytes
    return chosen + small[:taken]


def _parts(files: Sequence[LiveFile], packing: Packing) -> Iterator[list[LiveFile]]:
    """The files, oldest first, in parts that one commit may rewrite."""
    part: list[LiveFile] = []
    size = 0
    for file in sorted(files, key=lambda file: (file.sequence_number, file.path)):
        if part and size + file.file.file_size_in_bytes > packing.batch_bytes:
            yield part
            part, size = [], 0
        part.append(file)
        size += file.file.file_size_in_bytes
    if part:
        yield part


class CompactPlan:
    """Rewrites groups of files, in one commit, as far as they are still what they were when it was planned."""

    def __init__(self, groups: Sequence[FileGroup], packing: Packing) -> None:
        self._groups = groups
        self._packing = packing
        self._shape: tuple[int, int, int] | None = None
        self._writer: FileWriter | None = None
        self._begun: list[str] = []
        self._rewritten: dict[int, list[DataFile]] = {}
        self.packed: list[FileGroup] = []
        self.added: list[DataFile] = []

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return [*self._begun, *(self._writer.paths if self._writer else ())]

    def __call__(self, table: Table) -> Writes | None:
        """Replace the files of the groups that are whole; None if none is."""
        metadata = table.metadata
        shape = (metadata.current_schema_id, metadata.default_spec_id, metadata.default_sort_order_id)
        if self._writer is None or shape != self._shape:
            # What was written for another schema or partitioning does not fit any more.
            self._begun, self._rewritten = list(self.paths), {}
            self._writer, self._shape = FileWriter(table), shape
        present = {file.path: file for file in live_files(table, metadata.current_snapshot())}
        removed: list[LiveFile] = []
        self.packed, self.added = [], []
        for position, group in enumerate(self._groups):
            files = [present.get(file.path) for file in group.files]
            if any(now is None or now.identity != then.identity for now, then in zip(files, group.files, strict=True)):
                continue
            if position not in self._rewritten:
                self._rewritten[position] = _Rewriting(table, self._writer, group, self._packing).run()
            self.packed.append(group)
            self.added += self._rewritten[position]
            removed += [file for file in files if file is not None]
        if not self.packed:
            return None
        return Writes(added=self.added, removed=removed, operation="replace", properties={MAINTENANCE: "compact"})


class _Rewriting:
    """One group of files on its way into new ones."""

    def __init__(self, table: Table, writer: FileWriter, group: FileGroup, packing: Packing) -> None:
        self._table = table
        self._writer = writer
        self._group = group
        self._packing = packing
        self._reader = FileReader(table)
        self._files: list[DataFile] = []

    def run(self) -> list[DataFile]:
        """The new files."""
        if self._group.spec_id != self._table.spec().spec_id:
            output = Output(self._writer, self._packing.memory_bytes // 3)
            for rows in self._rows():
                output.add(rows)
            written = output.finish()
        else:
            written = self._in_one_partition()
        self._check(written)
        return written

    def _in_one_partition(self) -> list[DataFile]:
        order, is_sorted = self._order()
        with closing(ahead(self._rows())) as rows:
            first = next((part for part in rows if part.num_rows), None)
            if first is None:
                return []
            partition = self._writer.split(first.slice(0, 1))[0][0]
            if order is None:
                self._write(partition, chain([first], rows), is_sorted=False)
                return self._files
            sorter = Sorter(self._writer, self._reader, partition, order, self._packing.memory_bytes)
            for part in chain([first], rows):
                sorter.add(part)
        with closing(ahead(sorter.rows(), depth=1)) as rows:
            self._write(partition, rows, is_sorted=is_sorted)
        return self._files

    def _order(self) -> tuple[Order | None, bool]:
        """By what to sort, and whether that is the table's own order."""
        if self._packing.zorder:
            reader = FileReader(self._table, self._packing.zorder)
            sampled = (batch for file in self._group.files for batch in reader.batches(file))
            rows = sum(file.file.record_count for file in self._group.files)
            return ZOrder.sample(self._packing.zorder, sampled, rows), False
        columns = self._writer.sort_columns
        return (ColumnOrder(columns), True) if columns else (None, False)

    def _rows(self) -> Iterator[pa.Table]:
        for file in self._group.files:
            for batch in self._reader.batches(file):
                yield self._writer.conform(batch)

    def _write(self, partition: PartitionKey | None, parts: Iterable[pa.Table], *, is_sorted: bool) -> None:
        """Write rows as they come into files of the target size, a row group at a time."""
        groups = _row_groups(parts)
        rows = next(groups, None)
        while rows is not None:
            with self._writer.begin(partition, rows, is_sorted=is_sorted) as file:
                while rows is not None:
                    file.write(rows)
                    rows = next(groups, None)
                    if file.size >= self._packing.target_bytes:
                        break
                self._files.append(file.finish())

    def _check(self, written: Sequence[DataFile]) -> None:
        """No row may come or go: a last look before the files that hold them are let go."""
        if any(file.deletes for file in self._group.files):
            return
        before = sum(file.file.record_count for file in self._group.files)
        after = sum(file.record_count for file in written)
        if before != after:
            raise StoreError(
                f"table {'.'.join(self._table.name())}: compaction read {before} rows by their files' statistics and"
                f" wrote {after}; nothing was changed. One of the files is damaged: {self._group.files[0].path} …"
            )


def _row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in pieces of about a row group's size."""
    held: list[pa.Table] = []
    size = 0
    for part in parts:
        pieces = max(1, -(-part.nbytes // ROW_GROUP_BYTES))
        rows = max(1, -(-part.num_rows // pieces))
        for start in range(0, part.num_rows, rows):
            piece = part.slice(start, rows)
            if held and size + piece.nbytes > ROW_GROUP_BYTES:
                yield pa.concat_tables(held)
                held, size = [], 0
            held.append(piece)
            size += piece.nbytes
    if held:
        yield pa.concat_tables(held)
