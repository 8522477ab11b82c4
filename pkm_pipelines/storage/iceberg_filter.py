"""Filters of a table from text, and from a slice of it. What they find is in `iceberg_binding.py`."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
from pydantic import ValidationError
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    In,
    LessThan,
)
from pyiceberg.expressions.parser import parse
from pyparsing import ParseException

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Slice


def parse_filter(text: str) -> BooleanExpression:
    """A filter from text, as `value > 5 and group in ('a', 'b')`; raises `StoreError` if it cannot be read."""
    try:
        found = parse(text)
    except ParseException as error:
        raise StoreError(
            f"the filter {text!r} cannot be read at character {error.loc + 1}; write for example value > 5 and id = 'a'"
        ) from None
    except ValidationError:  # what pyiceberg makes of a true or false among other conditions
        raise StoreError(
            f"the filter {text!r} cannot be read: true and false stand alone, or are compared as in done = true"
        ) from None
    except ValueError as error:
        raise StoreError(f"the filter {text!r} cannot be read: {error}") from None
    return found


def slice_filter(table: str, columns: pa.Schema, part: Slice) -> BooleanExpression:
    """The filter of the rows in `part` of a table; raises `StoreError` where its column cannot hold such a part."""
    if part.column not in columns.names:
        raise StoreError(f"table {table} has no column {part.column!r}")
    kind = columns.field(part.column).type
    if part.is_empty:
        return AlwaysFalse()
    try:
        if part.values:
            pa.array(part.values).cast(kind)
            return In(part.column, set(part.values))
        found: BooleanExpression = AlwaysTrue()
        for bound, test in ((part.first, GreaterThanOrEqual), (part.before, LessThan)):
            if bound is not None:
                day = bound.date() if pa.types.is_date(kind) and isinstance(bound, dt.datetime) else bound
                pa.scalar(day, kind)
                found = And(found, test(part.column, day.isoformat()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(
            f"table {table}: column {part.column!r} holds {kind}, of which there is no such part: {error}"
        ) from None
    return found
