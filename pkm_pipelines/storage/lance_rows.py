"""The rows of one write, unique by key and readable as often as the write must be attempted.

Rows arrive as a stream that can be read once. A merge that loses a race is planned again from the start, and
Lance's merge inserts a new key twice when the source holds it twice. So the stream is kept: in memory while
it is small, else in a dataset of its own beside the table, because a large one fits in memory nowhere and
may touch local disk only where the table does.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

import lance
import numpy as np
import pyarrow as pa

from pkm_pipelines.model.errors import StoreError

MEMORY_BYTES = 128 << 20
STAGING = ".staging-"
"""What stands between a table's name and a random one, in the name of a dataset of staged rows."""
_BATCH_ROWS = 2048


class StagedRows:
    """Rows of `schema`, the last one of each key. A context manager: what was staged goes at its end."""

    def __init__(self, table: str, uri: str, storage_options: Mapping[str, str] | None, schema: pa.Schema, key: str):
        self._table = table
        self._uri = f"{uri.removesuffix('.lance')}{STAGING}{uuid.uuid4().hex}.lance"
        self._options = dict(storage_options) if storage_options else None
        self._schema = schema
        self._key = key
        self._memory: pa.Table = schema.empty_table()
        self._staged: lance.LanceDataset | None = None
        self._kept: np.ndarray | None = None
        self.count = 0

    def fill(self, rows: Iterable[pa.RecordBatch], memory_bytes: int = MEMORY_BYTES) -> None:
        """Take all rows, staging them once they are more than `memory_bytes`.

        Raises `StoreError` if they do not fit the table.
        """
        source = (self._fit(batch) for batch in rows)
        held: list[pa.RecordBatch] = []
        held_bytes = 0
        for batch in source:
            held.append(batch)
            held_bytes += batch.nbytes
            if held_bytes > memory_bytes:
                self._stage(held, source)
                return
        self._memory = pa.Table.from_batches(held, self._schema)
        keys = self._memory[self._key]
        if (kept := _last_of_each(keys)) is not None:
            self._memory = self._memory.filter(pa.array(kept))
        self.count = self._memory.num_rows

    def read(self) -> pa.Table | pa.RecordBatchReader:
        """The rows, from the start: a table if they are in memory, a stream if they are staged."""
        if self._staged is None:
            return self._memory
        return pa.RecordBatchReader.from_batches(self._schema, self._read_staged(self._staged))

    def _stage(self, held: list[pa.RecordBatch], rest: Iterator[pa.RecordBatch]) -> None:
        raised: list[BaseException] = []

        def chain() -> Iterator[pa.RecordBatch]:
            try:
                while held:
                    yield held.pop(0)
                yield from rest
            except BaseException as error:
                raised.append(error)  # Lance would pass on its text alone
                raise

        try:
            # Made before it is filled: what has a manifest can be dropped, however the filling ends.
            self._staged = lance.write_dataset(
                [], self._uri, schema=self._schema, storage_options=self._options, data_storage_version="2.2"
            )
            reader = pa.RecordBatchReader.from_batches(self._schema, chain())
            self._staged = lance.write_dataset(reader, self._staged, mode="append")
        except OSError as error:
            if raised:
                raise raised[0] from None
            raise StoreError(
                f"{self._table}: its rows could not be staged: {str(error).partition(', /')[0]}"
            ) from error
        self._kept = _last_of_each(self._staged.to_table(columns=[self._key])[self._key])
        self.count = self._staged.count_rows() if self._kept is None else int(self._kept.sum())

    def _read_staged(self, staged: lance.LanceDataset) -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in staged.to_batches(batch_size=_BATCH_ROWS, scan_in_order=True):
            if self._kept is None:
                yield batch
            else:
                yield batch.filter(pa.array(self._kept[start : start + batch.num_rows]))
            start += batch.num_rows

    def _fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the table's columns and types."""
        names, wanted = set(batch.schema.names), set(self._schema.names)
        if names != wanted:
            missing, unknown = sorted(wanted - names), sorted(names - wanted)
            raise StoreError(
                f"{self._table}: the rows do not fit the table (missing columns: {', '.join(missing) or 'none'}; "
                f"unknown columns: {', '.join(unknown) or 'none'})"
            )
        try:
            fitted = batch.select(self._schema.names).cast(self._schema)
        except (pa.ArrowException, ValueError) as error:
            raise StoreError(f"{self._table}: the rows do not fit the table: {error}") from error
        for field in self._schema:
            if not field.nullable and fitted[field.name].null_count:
                raise StoreError(f"{self._table}: column {field.name} must not be null")
        return fitted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staged is not None:
            lance.LanceDataset.drop(self._uri, storage_options=self._options, ignore_not_found=True)


def _last_of_each(keys: pa.ChunkedArray) -> np.ndarray | None:
    """A mask of the rows that are the last with their key; None if every key stands once."""
    codes = keys.combine_chunks().dictionary_encode()
    indices = codes.indices.to_numpy(zero_copy_only=False)
    if len(codes.dictionary) == len(indices):
        return None
    last = np.full(len(codes.dictionary), -1, np.int64)
    np.maximum.at(last, indices, np.arange(len(indices)))
    kept = np.zeros(len(indices), bool)
    kept[last] = True
    return kept
