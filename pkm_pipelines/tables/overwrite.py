"""Replacing what a table without a key holds, or a part of it, in one snapshot.

There is no moment at which the old rows are gone and the new ones not there yet, neither for a reader nor for time
travel.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_filter import slice_filter
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.rows import in_slice
from pkm_pipelines.tables.staging import MEMORY_BYTES, Output


class OverwritePlan:
    """New rows in place of all rows, or of those in the delta's `replace_where`."""

    def __init__(self, spec: TableSpec, delta: Delta, memory_bytes: int = MEMORY_BYTES) -> None:
        self._delta = delta
        self._part = delta.replace_where
        self._memory_bytes = memory_bytes
        self._filter = EVERYTHING
        if self._part is not None:
            is_date = pa.types.is_date(spec.column(self._part.column).type)
            self._filter = slice_filter(self._part, is_date=is_date)
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
            output = Output(self._writer, self._memory_bytes)
            for batch in self._delta.rows:
                output.add(self._writer.conform(batch))
            self._added = output.finish()
        removed: list[LiveFile] = []
        kept: list[DataFile] = []
        for file in live_files(table, table.metadata.current_snapshot(), self._filter):
            if file.identity not in self._kept:
                self._kept[file.identity] = self._rest(table, self._writer, file)
            rest = self._kept[file.identity]
            if rest is not None:
                removed.append(file)
                kept += rest
        added = [*self._added, *kept]
        gone = sum(file.file.record_count for file in removed) - sum(file.record_count for file in kept)
        return Writes(
            added=added,
            removed=removed,
            operation="append" if not removed else "overwrite" if added else "delete",
            rows_added=sum(file.record_count for file in self._added),
            rows_deleted=gone,
        )

    def _rest(self, table: Table, writer: FileWriter, file: LiveFile) -> list[DataFile] | None:
        """What is left of a file, written anew; None if no row of it goes."""
        if self._part is None:
            return []
        goes = in_slice(FileReader(table, [self._part.column]).read(file), self._part)
        if not pc.any(goes).as_py():
            return None
        output = Output(writer, self._memory_bytes)
        output.add(FileReader(table).read(file).filter(pc.invert(goes)))
        return output.finish()
