"""What the schema of a table means for its data files, and how to see an older file through it.

Columns are told apart by field id and never by name, at every level, so a file written before a column was added,
renamed, moved or widened reads as it should (https://iceberg.apache.org/spec/#column-projection). pyiceberg
has this too, but its projection turns a null list of structs into an empty list (apache/iceberg-python#3833), and
a merge would take that for a change.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.io.pyarrow import parquet_path_to_id_mapping
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import NestedField, StructType

from pkm_pipelines.storage.iceberg_schema import arrow_schema, file_schema

_ID = b"PARQUET:field_id"
_KEPT = 256


@dataclass(frozen=True)
class Layout:
    """One schema: as Arrow, as Arrow with field ids, as files have it, and as their leaves (path to field id)."""

    schema: Schema
    arrow: pa.Schema
    with_ids: pa.Schema
    stored: pa.Schema
    leaves: dict[str, int]
    shapes: Sequence[object] = field(repr=False)

    def is_of(self, file: pa.Schema) -> bool:
        """Whether a file has exactly these columns, ids and types, so that nothing has to be resolved."""
        return [_shape(column) for column in file] == self.shapes


def layout_of(table: Table) -> Layout:
    """The layout of the table's present schema; worked out once, since a schema never changes under its id."""
    key = (table.metadata.table_uuid, table.metadata.current_schema_id)
    if key not in _LAYOUTS:
        if len(_LAYOUTS) >= _KEPT:
            _LAYOUTS.clear()
        schema = table.schema()
        with_ids = arrow_schema(schema, field_ids=True)
        shapes = [_shape(column) for column in with_ids]
        leaves = parquet_path_to_id_mapping(schema)
        _LAYOUTS[key] = Layout(schema, arrow_schema(schema), with_ids, file_schema(schema), leaves, shapes)
    return _LAYOUTS[key]


_LAYOUTS: dict[tuple[uuid.UUID, int], Layout] = {}


def find_column(file: pa.Schema, wanted: pa.Field) -> pa.Field | None:
    """The column of a file that is `wanted`, by its id, or by its name in a file without ids; None if it has none."""
    return next((column for column in file if _is_same(column, wanted)), None)


def column_at(rows: pa.Table, schema: Schema, field_id: int) -> pa.ChunkedArray:
    """The values of a column, or of a field inside structs, where null is what lies in a null.

    Raises `ValueError` if there is no such field.
    """
    name, *inner = _path(schema.fields, field_id)
    return functools.reduce(pc.struct_field, inner, rows.column(name))


def _path(fields: Sequence[NestedField], field_id: int) -> list[str]:
    for one in fields:
        if one.field_id == field_id:
            return [one.name]
        if isinstance(one.field_type, StructType):
            with contextlib.suppress(ValueError):
                return [one.name, *_path(one.field_type.fields, field_id)]
    raise ValueError(f"there is no field {field_id}")


def project(values: pa.Array, stored: pa.Field, wanted: pa.Field) -> pa.Array:
    """A column of a file in the type that the table has for it now; nulls stay null, at every level."""
    kind = wanted.type
    if _shape(stored)[1:] == _shape(wanted)[1:]:
        return values
    if pa.types.is_struct(kind) and pa.types.is_struct(values.type):
        inner = [values.type.field(position) for position in range(values.type.num_fields)]
        children = [_child(values, inner, kind.field(position)) for position in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())
    if pa.types.is_list(kind) and (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        whole = pa.concat_arrays([values])  # from_arrays takes no mask for a slice
        items = project(whole.values, values.type.value_field, kind.value_field)
        return pa.ListArray.from_arrays(whole.offsets.cast(pa.int32()), items, type=kind, mask=whole.is_null())
    return values.cast(kind)


def _child(values: pa.StructArray, inner: list[pa.Field], wanted: pa.Field) -> pa.Array:
    for position, stored in enumerate(inner):
        if _is_same(stored, wanted):
            return project(values.field(position), stored, wanted)
    return pa.nulls(len(values), wanted.type)


def _is_same(stored: pa.Field, wanted: pa.Field) -> bool:
    number = (stored.metadata or {}).get(_ID)
    return stored.name == wanted.name if number is None else number == (wanted.metadata or {}).get(_ID)


def _shape(column: pa.Field) -> tuple[str, bytes | None, str | None, list[object]]:
    kind = column.type
    inner: list[object] = [_shape(kind.field(position)) for position in range(kind.num_fields)]
    return column.name, (column.metadata or {}).get(_ID), None if inner else str(kind), inner
