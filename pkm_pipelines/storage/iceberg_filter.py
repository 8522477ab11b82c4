"""Parts of a table as pyiceberg filters."""

from __future__ import annotations

import datetime as dt

from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, In, LessThan
from pyiceberg.expressions.parser import parse
from pyparsing import ParseException

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Slice


def parse_filter(text: str) -> BooleanExpression:
    """A filter from text, as `value > 5 and group in ('a', 'b')`; raises `StoreError` if it cannot be read."""
    try:
        return parse(text)
    except ParseException as error:
        raise StoreError(
            f"the filter {text!r} cannot be read at character {error.loc + 1}; write for example value > 5 and id = 'a'"
        ) from None


def slice_filter(part: Slice, *, is_date: bool = False) -> BooleanExpression:
    """The filter of the rows in `part`; `is_date` says that its column holds days, not moments."""
    if part.values:
        return In(part.column, set(part.values))
    found: BooleanExpression = AlwaysTrue()
    if part.first is not None:
        found = And(found, GreaterThanOrEqual(part.column, _literal(part.first, is_date)))
    if part.before is not None:
        found = And(found, LessThan(part.column, _literal(part.before, is_date)))
    return found


def _literal(value: dt.date | dt.datetime, is_date: bool) -> str:
    if is_date and isinstance(value, dt.datetime):
        return value.date().isoformat()
    return value.isoformat()
