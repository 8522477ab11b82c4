"""Replacing or deleting the rows that match a filter, in one snapshot.

There is no moment at which the old rows are gone and the new ones not there yet, neither for a reader nor for time
travel. A file whose partition says that all of its rows match goes without being read. One that loses some rows is
written again without them, or they are marked as deleted by their positions: as the table is set, for a hybrid one by
the rule of `cost.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from pkm_pipelines.storage.iceberg_datafile import RowPositions, opened
from pkm_pipelines.storage.iceberg_deletes import deleted_positions, new_delete_path, write_deletes
from pkm_pipelines.storage.iceberg_history import ONLY_REMOVES
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_schema import WRITE_MODE, WRITE_REASON, write_mode_of
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.cost import is_rewritten
from pkm_pipelines.tables.reads import Reads, stated
from pkm_pipelines.tables.staging import MEMORY_BYTES, Output, output_bytes


@dataclass(frozen=True)
class _Loss:
    """The rows that a file loses, by position, and how many of its rows were deleted before."""

    positions: RowPositions
    deleted: int


@dataclass
class _Outcome:
    """What one attempt came to."""

    removed: list[LiveFile] = field(default_factory=list)
    kept: list[DataFile] = field(default_factory=list)
    marked: dict[tuple[int, Record], dict[str, pa.Int64Array]] = field(default_factory=lambda: defaultdict(dict))
    rewritten: int = 0
    gone: int = 0

    @property
    def reason(self) -> str:
        """What was done to the files that lost rows."""
        marked = sum(len(files) for files in self.marked.values())
        dropped = len(self.removed) - self.rewritten
        return f"files that lost rows: {self.rewritten} rewritten, {marked} marked, {dropped} dropped whole"


class OverwritePlan:
    """New rows (or none) in place of all rows, or of those that match `where`."""

    def __init__(
        self,
        rows: Iterable[pa.RecordBatch],
        where: BooleanExpression = EVERYTHING,
        memory_bytes: int = MEMORY_BYTES,
        reads_of: Callable[[Table], Reads] = stated,
    ) -> None:
        self._rows = rows
        self._where = where
        self._output_bytes = output_bytes(memory_bytes)
        self._reads_of = reads_of
        self._writer: FileWriter | None = None
        self._added: list[DataFile] = []
        self._losses: dict[tuple[str, ...], _Loss] = {}
        self._rests: dict[tuple[str, ...], list[DataFile]] = {}
        self._delete_paths: list[str] = []

    @property
    def paths(self) -> Sequence[str]:
        """Every file begun so far."""
        return [*(self._writer.paths if self._writer else ()), *self._delete_paths]

    def __call__(self, table: Table) -> Writes:
        """Overwrite the table as it is."""
        reader = FileReader(table, [], self._where)  # first: a filter that does not fit costs no file
        if self._writer is None:
            self._writer = FileWriter(table)
            output = Output(self._writer, self._output_bytes)
            for batch in self._rows:
                output.add(self._writer.conform(batch))
            self._added = output.finish()
        reads = self._reads_of(table)
        found = self._take_away(table, reader, self._writer, reads)
        deletes: list[DataFile] = []
        for (spec_id, partition), positions in found.marked.items():
            self._delete_paths.append(new_delete_path(table))
            deletes.append(write_deletes(table, self._delete_paths[-1], positions, spec_id, partition))
        added = [*self._added, *found.kept]
        is_append = not found.removed and not deletes
        return Writes(
            added=added,
            removed=found.removed,
            deletes=deletes,
            operation="append" if is_append else "overwrite" if added else "delete",
            rows_added=sum(file.record_count for file in self._added),
            rows_deleted=found.gone,
            properties={
                WRITE_MODE: write_mode_of(table),
                WRITE_REASON: found.reason,
                **reads.properties,
                **({} if self._added else {ONLY_REMOVES: "true"}),
            },
        )

    def _take_away(self, table: Table, reader: FileReader, writer: FileWriter, reads: Reads) -> _Outcome:
        found = _Outcome()
        losses: list[tuple[LiveFile, _Loss]] = []
        for file in live_files(table, table.metadata.current_snapshot(), reader.filter.where):
            if file.identity not in self._losses:
                self._losses[file.identity] = self._loss(table, reader, file)
            loss = self._losses[file.identity]
            found.gone += len(loss.positions)
            if len(loss.positions) + loss.deleted == file.file.record_count:
                found.removed.append(file)
            elif len(loss.positions):
                losses.append((file, loss))
        for file, loss in losses:
            gone = len(loss.positions)
            if not is_rewritten(
                table, file, deleted=loss.deleted, losing=gone, files=len(losses), reads=reads.per_write
            ):
                found.marked[file.file.spec_id, file.file.partition][file.path] = pa.array(loss.positions)
                continue
            if file.identity not in self._rests:
                output = Output(writer, self._output_bytes)
                for batch in _others(table, file, loss.positions):
                    output.add(pa.table(batch))
                self._rests[file.identity] = output.finish()
            found.removed.append(file)
            found.kept += self._rests[file.identity]
            found.rewritten += 1
        return found

    def _loss(self, table: Table, reader: FileReader, file: LiveFile) -> _Loss:
        deleted = _deleted(table, file)
        if reader.filter.holds_for(table, file.file):
            return _Loss(np.arange(file.file.record_count - deleted), deleted)
        return _Loss(reader.matches(file), deleted)


def _others(table: Table, file: LiveFile, going: RowPositions) -> Iterator[pa.RecordBatch]:
    """The rows of a file but those at the positions `going`, deletes taken off."""
    reader = FileReader(table)
    with opened(table, file) as one:
        staying = np.setdiff1d(np.arange(file.file.record_count), np.union1d(going, one.deleted), assume_unique=True)
        yield from reader.stored_at(one, staying)


def _deleted(table: Table, file: LiveFile) -> int:
    return len(deleted_positions(table.io, file.file, file.deletes))
