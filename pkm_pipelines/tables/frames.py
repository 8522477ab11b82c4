"""Frames of other libraries as the Arrow batches and table specs of this one.

Accepted are Arrow tables, batches and streams, and Polars frames, eager or lazy. Iceberg has no unsigned
integers, no nanoseconds and no dictionaries, so those become the nearest type that holds every value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import Column, Layer, PartitionField, TableSpec
from pkm_pipelines.storage.arrow_cast import REFUSED, cast

if TYPE_CHECKING:
    import polars as pl

Frame = Any
"""A table that an asset may return: Arrow or Polars, see the module."""


def to_stream(frame: Frame) -> pa.RecordBatchReader:
    """`frame` as a stream of record batches in types that Iceberg has.

    Raises `StoreError` for anything that is no frame, and for a type without an Iceberg equivalent; so does the stream
    for a value that has no place in that.
    """
    schema, batches = _batches(frame)
    target = storable_schema(schema)
    return pa.RecordBatchReader.from_batches(target, (_stored(batch, target) for batch in batches))


def storable_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` in the types that Iceberg has, one Arrow type for each; raises `StoreError` as `to_stream` does."""
    return pa.schema([_storable(field) for field in schema])


def _batches(frame: Frame) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    if isinstance(frame, pa.RecordBatchReader):
        return frame.schema, frame
    if isinstance(frame, pa.RecordBatch):
        return frame.schema, [frame]
    if isinstance(frame, pa.Table):
        return frame.schema, frame.to_batches()
    if hasattr(frame, "collect_batches"):  # polars.LazyFrame: in batches, never whole
        return _lazy_batches(frame)
    if hasattr(frame, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(frame)
        return reader.schema, reader
    raise StoreError(
        f"an asset returned a {type(frame).__name__}; a table is an Arrow table, batch or stream, a Polars frame, "
        "or an iterator of Delta"
    )


def _lazy_batches(frame: pl.LazyFrame) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    schema = frame.head(0).collect().to_arrow().schema

    def batches() -> Iterator[pa.RecordBatch]:
        for part in frame.collect_batches(maintain_order=True):
            yield from part.to_arrow().cast(schema).to_batches()

    return schema, batches()


def _stored(batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    columns: list[pa.Array] = []
    for field, column in zip(target, batch.columns, strict=True):
        try:
            columns.append(cast(column, field.type))
        except REFUSED as error:
            raise StoreError(f"column {field.name!r}: {error}") from None
    return pa.RecordBatch.from_arrays(columns, schema=target)


def _storable(field: pa.Field) -> pa.Field:
    return field.with_type(_storable_type(field.name, field.type))


def _storable_type(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        raise StoreError(f"column {name!r} holds nothing but nulls and has no type; cast it to one")
    if pa.types.is_dictionary(kind):
        return _storable_type(name, kind.value_type)
    if pa.types.is_unsigned_integer(kind):
        return pa.int64()
    if pa.types.is_int8(kind) or pa.types.is_int16(kind):
        return pa.int32()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz else None)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_storable(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_storable(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_storable(kind.field(i)) for i in range(kind.num_fields)])
    return kind


def spec_of(
    layer: Layer,
    table: str,
    schema: pa.Schema,
    *,
    doc: str = "",
    key: Sequence[str] = (),
    partition: PartitionField | None = None,
) -> TableSpec:
    """The spec of a table with this schema; a column is required if it is a key."""
    columns = tuple(
        Column(number, field.name, field.type, (field.metadata or {}).get(b"doc", b"").decode(), field.name in key)
        for number, field in enumerate(schema, start=1)
    )
    return TableSpec(
        layer=layer,
        table=table,
        doc=doc,
        kind="state" if key else "log",
        columns=columns,
        key=tuple(key),
        partition=(partition,) if partition else (),
    )
