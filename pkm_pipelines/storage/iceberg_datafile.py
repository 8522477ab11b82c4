"""One data file of a table, open: its footer, where its row groups stand, and the rows of some of them.

A merge looks at a file up to three times: for the keys, for the rows that it must compare, and for all rows if
it writes the file again. On S3 each opening costs requests, so it is opened once; and footers, which never
change, are kept in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import InputStream
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.cache import RecentlyUsed
from pkm_pipelines.storage.iceberg_deletes import deleted_positions
from pkm_pipelines.storage.iceberg_layout import find_column
from pkm_pipelines.storage.iceberg_manifests import LiveFile

# Column chunks whose description is kept in memory in all, some 200 bytes each.
CACHED_COLUMN_CHUNKS = 200_000

RowPositions = npt.NDArray[np.int64]


class Footer:
    """What the end of a Parquet file says, worked out once: it never changes."""

    def __init__(self, metadata: pq.FileMetaData) -> None:
        self.metadata = metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self.ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._bounds: dict[str, list[tuple[Any, Any]] | None] = {}

    def bounds(self, name: str) -> list[tuple[Any, Any]] | None:
        """The least and greatest value of each row group in a top-level column; None if any is not known."""
        if name not in self._bounds:
            self._bounds[name] = self._read_bounds(name)
        return self._bounds[name]

    def _read_bounds(self, name: str) -> list[tuple[Any, Any]] | None:
        leaves = [self.metadata.schema.column(number).path for number in range(self.metadata.num_columns)]
        leaf = leaves.index(name)
        found: list[tuple[Any, Any]] = []
        for number in range(self.metadata.num_row_groups):
            statistics = self.metadata.row_group(number).column(leaf).statistics
            if statistics is None or not statistics.has_min_max or statistics.null_count != 0:
                return None
            try:
                found.append((statistics.min, statistics.max))
            except UnicodeDecodeError:  # other writers cut texts anywhere
                return None
        return found


class OpenDataFile:
    """A Parquet data file that is open for reading. `deletes` are those that apply to it."""

    def __init__(self, table: Table, data: DataFile, deletes: Sequence[DataFile], stream: InputStream) -> None:
        self._io = table.io
        self.data = data
        self.deletes = deletes
        self.stream = stream
        self._footer = _FOOTERS.get(data.file_path, lambda: Footer(pq.read_metadata(stream)))
        self._ends = self._footer.ends
        # Ranges of an object are asked for together; of a file on disk each is read when it is needed, with no detour.
        is_remote = urlsplit(data.file_path).scheme not in ("", "file")
        self.parquet = pq.ParquetFile(stream, metadata=self._footer.metadata, pre_buffer=is_remote)
        self.schema = self.parquet.schema_arrow

    @property
    def row_groups(self) -> range:
        """The numbers of all row groups."""
        return range(len(self._ends) - 1)

    @cached_property
    def deleted(self) -> RowPositions:
        """The positions of the rows that are deleted, ascending."""
        return deleted_positions(self._io, self.data, self.deletes).to_numpy(zero_copy_only=False)

    def groups_of(self, positions: RowPositions) -> list[int]:
        """The row groups in which positions lie."""
        return np.unique(np.searchsorted(self._ends, positions, side="right") - 1).tolist()

    def places(self, positions: RowPositions, groups: Sequence[int]) -> RowPositions:
        """Where rows stand among those of `groups` alone, read one after the other."""
        among = np.searchsorted(self._ends, positions, side="right") - 1
        starts = self._starts(groups)
        return positions - self._ends[among] + starts[np.searchsorted(groups, among)]

    def positions(self, places: RowPositions, groups: Sequence[int]) -> RowPositions:
        """The inverse of `places`."""
        starts = self._starts(groups)
        among = np.searchsorted(starts, places, side="right") - 1
        return places - starts[among] + self._ends[np.asarray(groups, dtype=np.int64)[among]]

    def _starts(self, groups: Sequence[int]) -> RowPositions:
        chosen = np.asarray(groups, dtype=np.int64)
        sizes = self._ends[chosen + 1] - self._ends[chosen]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int64)

    def bounds(self, column: pa.Field) -> list[tuple[Any, Any]] | None:
        """The least and greatest value of each row group in a column, by its statistics; None if any is not known.

        Only of types whose values compare in Python as they do in Parquet.
        """
        stored = find_column(self.schema, column)
        if stored is None or stored.type != column.type or not _is_comparable(column.type):
            return None
        return self._footer.bounds(stored.name)


@contextmanager
def opened(table: Table, file: LiveFile | DataFile) -> Generator[OpenDataFile]:
    """Open a data file; a `DataFile` is one that this commit wrote and no snapshot holds yet.

    Raises `StoreError` for a file that is not Parquet, and `FileNotFoundError`.
    """
    data, deletes = (file, ()) if isinstance(file, DataFile) else (file.file, file.deletes)
    if data.file_format != FileFormat.PARQUET:
        raise StoreError(f"{data.file_path} is a {data.file_format.value} file; only Parquet is read")
    with table.io.new_input(data.file_path).open() as stream:
        yield OpenDataFile(table, data, deletes, stream)


def _is_comparable(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_date(kind)


def _weight(footer: Footer) -> int:
    return footer.metadata.num_row_groups * footer.metadata.num_columns


_FOOTERS: RecentlyUsed[Footer] = RecentlyUsed(CACHED_COLUMN_CHUNKS, _weight)
