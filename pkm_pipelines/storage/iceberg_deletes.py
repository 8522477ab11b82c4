"""Deletes by position: files that say which rows of which data files are gone.

Such a file has two columns, the path of a data file and the position of a row in it, and is sorted by both; it may
have a third with the rows themselves (`iceberg_images.py`). It applies
to the data files of its partition that are as old as it or older, so it stays right when it is written again under a
later sequence number: a path is never used twice. If its bounds name one path only it belongs to that data
file alone.

What was read of one is kept in memory, because it never changes and is asked for once for each data file that it
may apply to.

Source: https://iceberg.apache.org/spec/#position-delete-files
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import StringType

from pkm_pipelines.storage.cache import RecentlyUsed
from pkm_pipelines.storage.iceberg_images import row_column
from pkm_pipelines.storage.iceberg_layout import layout_of
from pkm_pipelines.storage.pyiceberg_private import read_any_deletes

PATH_ID = 2147483546
POSITION_ID = 2147483545
SCHEMA = pa.schema(
    [
        pa.field("file_path", pa.string(), False, {"PARQUET:field_id": str(PATH_ID)}),
        pa.field("pos", pa.int64(), False, {"PARQUET:field_id": str(POSITION_ID)}),
    ]
)
# Positions kept in memory in all; a file with more than a quarter of them is read for one data file at a time.
CACHED_POSITIONS = 4_000_000
_LARGE = CACHED_POSITIONS // 4

Positions = Mapping[str, pa.Int64Array]
"""Positions of rows by the path of their data file: ascending, each once."""


def new_delete_path(table: Table) -> str:
    """Where a new delete file goes."""
    return table.location_provider().new_data_location(f"{uuid.uuid4()}-deletes.parquet")


def write_deletes(
    table: Table,
    location: str,
    positions: Positions,
    spec_id: int,
    partition: Record,
    rows: Mapping[str, pa.Table] | None = None,
) -> DataFile:
    """Write one delete file, at `location`, for data files of one partition; there must be a position.

    `rows` are the rows at the positions of each path, in the table's schema: of all, or of none.
    """
    paths = sorted(positions)
    lengths = [len(positions[path]) for path in paths]
    named = pa.array(paths, pa.string()).take(_repeated(lengths))
    marks = pa.Table.from_arrays([named, pa.concat_arrays([positions[path] for path in paths])], schema=SCHEMA)
    if rows is not None:
        with_ids = layout_of(table).with_ids
        images = pa.concat_tables([rows[path].cast(with_ids) for path in paths]).combine_chunks().to_struct_array()
        marks = marks.append_column(row_column(with_ids), images)
    with table.io.new_output(location).create(overwrite=True) as stream:
        with pq.ParquetWriter(stream, marks.schema, compression="zstd") as writer:
            writer.write_table(marks)
        size = stream.tell()
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=partition,
        record_count=marks.num_rows,
        file_size_in_bytes=size,
        lower_bounds={PATH_ID: to_bytes(StringType(), paths[0])},
        upper_bounds={PATH_ID: to_bytes(StringType(), paths[-1])},
    )
    file.spec_id = spec_id
    return file


def deleted_positions(io: FileIO, data: DataFile, deletes: Iterable[DataFile]) -> pa.Int64Array:
    """The positions of the rows of a data file that these delete files take off."""
    return union([_positions_in(io, delete, data.file_path) for delete in deletes])


def read_deletes(io: FileIO, delete: DataFile) -> Positions:
    """All positions of a delete file."""
    if delete.record_count > _LARGE:
        return _read(io, delete)
    return _CACHE.get(delete.file_path, partial(_read, io, delete))


def only_file(delete: DataFile) -> str | None:
    """The path of the data file that a delete file belongs to, if it belongs to one alone."""
    lower = (delete.lower_bounds or {}).get(PATH_ID)
    upper = (delete.upper_bounds or {}).get(PATH_ID)
    return lower.decode() if lower is not None and lower == upper else None


def union(arrays: Sequence[pa.Int64Array]) -> pa.Int64Array:
    """The positions that are in any of `arrays`, ascending."""
    filled = [array for array in arrays if len(array)]
    if len(filled) == 1:
        return filled[0]
    values = pc.unique(pa.concat_arrays([pa.array([], pa.int64()), *filled]))
    return values.take(pc.sort_indices(values))


def joined(parts: Iterable[Positions]) -> dict[str, pa.Int64Array]:
    """The positions of several delete files as one."""
    found: dict[str, list[pa.Int64Array]] = {}
    for part in parts:
        for path, positions in part.items():
            found.setdefault(path, []).append(positions)
    return {path: union(arrays) for path, arrays in found.items()}


def _positions_in(io: FileIO, delete: DataFile, path: str) -> pa.Int64Array:
    empty = pa.array([], pa.int64())
    if delete.record_count > _LARGE and delete.file_format == FileFormat.PARQUET:
        with io.new_input(delete.file_path).open() as stream:
            rows = pq.read_table(stream, columns=["file_path", "pos"], filters=pc.field("file_path") == path)
        return _by_path(rows).get(path, empty)
    return read_deletes(io, delete).get(path, empty)


def _read(io: FileIO, delete: DataFile) -> Positions:
    if delete.file_format == FileFormat.PARQUET:
        with io.new_input(delete.file_path).open() as stream:
            parquet = pq.ParquetFile(stream, read_dictionary=["file_path"], pre_buffer=True)
            return _by_path(parquet.read(columns=["file_path", "pos"]))
    found = read_any_deletes(io, delete)
    return {path: _ascending(positions.combine_chunks()) for path, positions in found.items()}


def _by_path(rows: pa.Table) -> Positions:
    """The rows of a delete file by path; other engines may have left them unsorted."""
    rows = rows.combine_chunks()
    if not rows.num_rows:
        return {}
    paths = rows["file_path"].chunk(0)
    if not isinstance(paths, pa.DictionaryArray):
        paths = paths.dictionary_encode()
    keyed = pa.table({"path": paths.indices, "pos": _int64(rows["pos"].chunk(0))})
    keyed = keyed.take(pc.sort_indices(keyed, sort_keys=[("path", "ascending"), ("pos", "ascending")]))
    found: dict[str, pa.Int64Array] = {}
    start = 0
    runs = pc.run_end_encode(keyed["path"].combine_chunks())
    positions = keyed["pos"].combine_chunks()
    for code, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        found[paths.dictionary[code].as_py()] = pc.unique(positions.slice(start, end - start))
        start = end
    return found


def _ascending(positions: pa.Array) -> pa.Int64Array:
    """Positions that somebody else wrote in any order, each once."""
    return pc.unique(_int64(positions.sort()))


def _int64(values: pa.Array) -> pa.Int64Array:
    return values.cast(pa.int64())


def _repeated(lengths: Sequence[int]) -> pa.Array:
    """0 as often as the first length says, then 1, and so on."""
    return pa.concat_arrays([pa.repeat(pa.scalar(i, pa.int64()), length) for i, length in enumerate(lengths)])


def _weight(positions: Positions) -> int:
    return sum(len(array) + 16 for array in positions.values())


_CACHE: RecentlyUsed[Positions] = RecentlyUsed(CACHED_POSITIONS, _weight)
