"""Arrow values in the type that a table has for them, where pyarrow's own cast fails or keeps silent.

pyarrow has no cast for a dictionary of string views (which is what Polars makes of a categorical), makes a broken array
of a list view, and leaves out the fields of a struct that the target has not.
"""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa

_Values = TypeVar("_Values", pa.Array, pa.ChunkedArray)

# What pyarrow raises for values that do not fit.
REFUSED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


def cast(values: _Values, kind: pa.DataType) -> _Values:
    """`values` as `kind`, none of them changed or lost; raises one of `REFUSED`."""
    if values.type == kind:
        return values
    if isinstance(values, pa.ChunkedArray):
        return pa.chunked_array([cast(chunk, kind) for chunk in values.chunks], kind)
    if isinstance(values, pa.DictionaryArray):
        return cast(values.dictionary, kind).take(values.indices)
    _check(values.type, kind)
    return values.cast(kind)


def _check(given: pa.DataType, wanted: pa.DataType) -> None:
    """Raise for what pyarrow would not."""
    if pa.types.is_list_view(given) or pa.types.is_large_list_view(given):
        raise pa.ArrowNotImplementedError("list views are not read; cast it to a list")
    if pa.types.is_struct(given) and pa.types.is_struct(wanted):
        known = {wanted.field(position).name: wanted.field(position).type for position in range(wanted.num_fields)}
        for position in range(given.num_fields):
            field = given.field(position)
            if field.name not in known:
                raise pa.ArrowInvalid(f"it has no field {field.name!r}")
            _check(field.type, known[field.name])
    elif given.num_fields == wanted.num_fields:
        for position in range(given.num_fields):
            _check(given.field(position).type, wanted.field(position).type)
