"""What deleted rows were, kept in the delete files that say they are gone.

The table format has a place for it: a third column, `row`, with the whole row, in a file in which every row has it.
Readers that ask what is there pass over it; who asks what *changed* needs the rows as they were, and finds them here
without reading the data files, whose row groups hold thousands of rows for each one that went.

It is only there where a merge had the rows at hand and they are few (`tables/images.py`).

Source: https://iceberg.apache.org/spec/#position-delete-files
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, FileFormat

from pkm_pipelines.storage.cache import RecentlyUsed

ROW_ID = 2147483544
# Bytes of rows that are kept in memory; a merge writes few of them, and each data file asks for its own.
CACHED_BYTES = 64 << 20
_ORDER = [("file_path", "ascending"), ("pos", "ascending")]


@dataclass(frozen=True)
class _Images:
    """The rows of a delete file by position, and where those of each data file begin and end among them."""

    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    rows: pa.StructArray
    spans: Mapping[str, tuple[int, int]]


def row_column(schema: pa.Schema) -> pa.Field:
    """The column of rows of a table whose schema, with field ids, is `schema`."""
    return pa.field("row", pa.struct(list(schema)), False, {"PARQUET:field_id": str(ROW_ID)})


def deleted_rows(io: FileIO, deletes: Iterable[DataFile], path: str, positions: pa.Int64Array) -> pa.RecordBatch | None:
    """The rows that stood at `positions` of a data file, as some delete files have them; None unless all are there.

    The columns are those that the table had when the rows were deleted, with field ids.
    """
    wanted = positions.to_numpy(zero_copy_only=False)
    found = np.zeros(len(wanted), dtype=bool)
    parts: list[pa.StructArray] = []
    places: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for delete in deletes:
        images = _CACHE.get(delete.file_path, partial(_read, io, delete)) if _is_small(delete) else None
        first, last = images.spans.get(path, (0, 0)) if images is not None else (0, 0)
        if images is None or first == last:
            continue
        among = first + np.searchsorted(images.positions[first:last], wanted)
        hit = (among < last) & ~found
        hit[hit] = images.positions[among[hit]] == wanted[hit]
        parts.append(images.rows.take(pa.array(among[hit])))
        places.append(np.flatnonzero(hit))
        found |= hit
    if not len(wanted) or not found.all() or len({part.type for part in parts}) > 1:
        return None
    rows = pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(places))))
    return pa.RecordBatch.from_struct_array(rows)


def _is_small(delete: DataFile) -> bool:
    return delete.file_format == FileFormat.PARQUET and delete.file_size_in_bytes <= CACHED_BYTES // 4


def _read(io: FileIO, delete: DataFile) -> _Images:
    with io.new_input(delete.file_path).open() as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=True)
        if "row" not in parquet.schema_arrow.names:
            return _Images(np.zeros(0, dtype=np.int64), pa.array([], pa.struct([])), {})
        table = parquet.read().combine_chunks()
    table = table.take(pc.sort_indices(table.select(["file_path", "pos"]), _ORDER))
    paths = table["file_path"].combine_chunks()
    runs = pc.run_end_encode(paths)
    ends = runs.run_ends.to_pylist()
    spans = dict(zip(runs.values.to_pylist(), zip([0, *ends], ends, strict=False), strict=True))
    return _Images(table["pos"].to_numpy(), table["row"].combine_chunks(), spans)


def _weight(images: _Images) -> int:
    return images.rows.nbytes + 100


_CACHE: RecentlyUsed[_Images] = RecentlyUsed(CACHED_BYTES, _weight)
