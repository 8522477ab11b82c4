"""Values inside the SQL filters that Lance takes: one place that quotes them.

Lance has no bound parameters, and paths, tags and ids come from other people's notes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from pkm_pipelines.model.records import Slice


def quote(value: str) -> str:
    """`value` as a SQL string literal. Lone surrogates, which no UTF-8 can hold, become question marks."""
    return "'" + value.encode("utf-8", "replace").decode().replace("'", "''") + "'"


def column(name: str) -> str:
    """A column's name as an identifier, whatever characters and case it has."""
    return "`" + name.replace("`", "``") + "`"


def is_in(name: str, values: Iterable[str]) -> str:
    """Rows whose column `name` is one of `values`; no row for no values."""
    listed = ", ".join(quote(value) for value in values)
    return f"{column(name)} IN ({listed})" if listed else "false"


def slice_filter(part: Slice) -> str:
    """A slice as a predicate. Bounds are typed literals: Lance compares no date with a string."""
    if part.values:
        return is_in(part.column, part.values)
    bounds: list[str] = []
    if part.first is not None:
        bounds.append(f"{column(part.column)} >= {_moment(part.first)}")
    if part.before is not None:
        bounds.append(f"{column(part.column)} < {_moment(part.before)}")
    return " AND ".join(bounds) or "false"


def _moment(value: dt.date | dt.datetime) -> str:
    kind = "timestamp" if isinstance(value, dt.datetime) else "date"
    return f"{kind} '{value.isoformat()}'"
