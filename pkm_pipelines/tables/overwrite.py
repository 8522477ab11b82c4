"""Replacing or deleting the rows that match a filter, in one snapshot.

There is no moment at which the old rows are gone and the new ones not there yet, neither for a reader nor for time
travel. A file whose partition says that all of its rows match goes without being read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.expressions.visitors import residual_evaluator_of
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_datafile import opened
from pkm_pipelines.storage.iceberg_history import ONLY_REMOVES
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.staging import MEMORY_BYTES, Output, output_bytes


class OverwritePlan:
    """New rows (or none) in place of all rows, or of those that match `where`."""

    def __init__(
        self,
        rows: Iterable[pa.RecordBatch],
        where: BooleanExpression = EVERYTHING,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._rows = rows
        self._where = where
        self._memory_bytes = memory_bytes
        self._writer: FileWriter | None = None
        self._added: list[DataFile] = []
        self._kept: dict[tuple[str, ...], list[DataFile] | None] = {}

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._writer.paths if self._writer else ()

    def __call__(self, table: Table) -> Writes:
        """Overwrite the table as it is."""
        if self._writer is None:
            self._writer = FileWriter(table)
            output = Output(self._writer, output_bytes(self._memory_bytes))
            for batch in self._rows:
                output.add(self._writer.conform(batch))
            self._added = output.finish()
        removed: list[LiveFile] = []
        kept: list[DataFile] = []
        gone = 0
        for file in live_files(table, table.metadata.current_snapshot(), self._where):
            if file.identity not in self._kept:
                self._kept[file.identity] = self._rest(table, self._writer, file)
            rest = self._kept[file.identity]
            if rest is not None:
                removed.append(file)
                kept += rest
                gone += _live_rows(table, file) - sum(one.record_count for one in rest)
        added = [*self._added, *kept]
        return Writes(
            added=added,
            removed=removed,
            operation="append" if not removed else "overwrite" if added else "delete",
            rows_added=sum(file.record_count for file in self._added),
            rows_deleted=gone,
            properties={} if self._added else {ONLY_REMOVES: "true"},
        )

    def _rest(self, table: Table, writer: FileWriter, file: LiveFile) -> list[DataFile] | None:
        """What is left of a file, written anew; None if no row of it goes."""
        if _matches_whole(table, file, self._where):
            return []
        going = FileReader(table, [], self._where).matches(file)
        if not len(going):
            return None
        output = Output(writer, output_bytes(self._memory_bytes))
        for batch in _others(table, file, going):
            output.add(pa.table(batch))
        return output.finish()


def _others(table: Table, file: LiveFile, going: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of a file but those at the positions `going`, deletes taken off."""
    reader = FileReader(table)
    with opened(table, file) as one:
        staying = np.setdiff1d(np.arange(file.file.record_count), np.union1d(going, one.deleted), assume_unique=True)
        yield from reader.stored_at(one, staying)


def _matches_whole(table: Table, file: LiveFile, where: BooleanExpression) -> bool:
    """Whether the partition alone says that every row matches."""
    spec = table.metadata.specs()[file.file.spec_id]
    residual = residual_evaluator_of(spec, where, case_sensitive=True, schema=table.schema())
    return isinstance(residual.residual_for(file.file.partition), AlwaysTrue)


def _live_rows(table: Table, file: LiveFile) -> int:
    if not file.deletes:
        return file.file.record_count
    with opened(table, file) as one:
        return file.file.record_count - len(one.deleted)
