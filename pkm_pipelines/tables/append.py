"""Appending rows to a log, each once.

A log's key is unique in it. A row whose key is there already is left out, so that repeating an ingest, as a whole or
in part, appends nothing. The same commit is recognised by its operation id and never gets here; what is looked for
here are repeats by other runs. They lie in the same partitions (a change's day is part of what it is), and of those
only files are read whose bounds have room for one of the keys: a file of one row has bounds that say exactly
which key it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_manifests import LiveFile, column_bounds, live_files, partition_values
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.staging import MEMORY_BYTES, Output, output_bytes, partition_of


class AppendPlan:
    """The rows of a delta that a log does not hold yet, written once for all attempts of the commit."""

    def __init__(self, spec: TableSpec, delta: Delta, memory_bytes: int = MEMORY_BYTES) -> None:
        self._key = spec.key[0] if spec.key else None
        self._delta = delta
        self._memory_bytes = memory_bytes
        self._writer: FileWriter | None = None
        self._files: list[DataFile] = []
        self._looked_at: set[str] = set()

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._writer.paths if self._writer else ()

    def __call__(self, table: Table) -> Writes:
        """Append to the table as it is."""
        present = _PresentKeys(table, self._key, self._looked_at)
        if self._writer is None:
            self._writer = FileWriter(table)
            self._files = self._write(self._writer, present)
        else:
            self._files = self._write_again(table, self._writer, present)
        self._looked_at = present.all_files
        return Writes(added=self._files, rows_added=sum(file.record_count for file in self._files))

    def _write(self, writer: FileWriter, present: _PresentKeys) -> list[DataFile]:
        output = Output(writer, output_bytes(self._memory_bytes))
        seen: set[object] = set()
        for batch in self._delta.rows:
            rows = writer.conform(batch)
            if self._key is None:
                output.add(rows)
                continue
            for partition, part in writer.split(_first_of_each(rows, self._key, seen)):
                fresh = pc.invert(present.contain(part.column(self._key), partition_of(partition)))
                output.add(part.filter(fresh))
        return output.finish()

    def _write_again(self, table: Table, writer: FileWriter, present: _PresentKeys) -> list[DataFile]:
        """The files written before, less the rows that others have appended since."""
        if self._key is None:
            return self._files
        files: list[DataFile] = []
        for file in self._files:
            keys = FileReader(table, [self._key]).read(file).column(self._key)
            known = present.contain(keys, partition_values(file.partition))
            if not pc.any(known).as_py():
                files.append(file)
                continue
            output = Output(writer, output_bytes(self._memory_bytes))
            output.add(FileReader(table).read(file).filter(pc.invert(known)))
            files += output.finish()
        return files


class _PresentKeys:
    """The keys that a log holds, read file by file where they must be, less the files that were looked at before."""

    def __init__(self, table: Table, key: str | None, looked_at: set[str]) -> None:
        self._table = table
        self._key = key
        files = live_files(table, table.metadata.current_snapshot()) if key else []
        self.all_files = {file.path for file in files}
        self._files = [file for file in files if file.path not in looked_at]
        self._reader = FileReader(table, [key] if key else [])
        self._read: dict[str, pa.Array] = {}

    def contain(self, keys: pa.ChunkedArray, partition: tuple[object, ...]) -> pa.ChunkedArray:
        """For each of `keys` whether the log holds it, in that partition or in one of an older partition spec."""
        spec = self._table.spec().spec_id
        found = pc.is_null(keys)
        for file in self._files:
            if file.partition != partition and file.file.spec_id == spec:
                continue
            if self._has_room(file, keys):
                found = pc.or_(found, pc.is_in(keys, value_set=self._keys_of(file)))
        return found

    def _has_room(self, file: LiveFile, keys: pa.ChunkedArray) -> bool:
        assert self._key is not None
        bounds = column_bounds(self._table, file.file, self._key)
        if bounds is None:
            return True
        lower, upper = (pa.scalar(bound, keys.type) for bound in bounds)
        return bool(pc.any(pc.and_(pc.greater_equal(keys, lower), pc.less_equal(keys, upper))).as_py())

    def _keys_of(self, file: LiveFile) -> pa.Array:
        if file.path not in self._read:
            self._read[file.path] = self._reader.read(file).column(0).combine_chunks()
        return self._read[file.path]


def _first_of_each(rows: pa.Table, key: str, seen: set[object]) -> pa.Table:
    """The rows whose key is not in `seen` and did not come before in `rows`; adds their keys to `seen`."""
    fresh: list[bool] = []
    for value in rows.column(key).to_pylist():
        fresh.append(value not in seen)
        seen.add(value)
    return rows if all(fresh) else rows.filter(pa.array(fresh, pa.bool_()))
