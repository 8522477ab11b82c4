"""Whether any of some keys can lie between two bounds: what decides which files and row groups are read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Bounds = tuple[Any, Any]
"""The least and the greatest value, both included, as Python values of the column's type."""


class KeyRanges:
    """The values of each key column, sorted. Columns with a null or NaN prune nothing: bounds leave both out."""

    def __init__(self, tables: Iterable[pa.Table], key: Sequence[str]) -> None:
        parts = [table.select(list(key)) for table in tables if table.num_rows]
        self._is_empty = not parts
        self._columns: dict[str, Sequence[Any]] = {}
        for name in key if parts else ():
            values = _values([part.column(name) for part in parts])
            if values is not None:
                self._columns[name] = values

    def may_hold(self, bounds: Mapping[str, Bounds]) -> bool:
        """Whether a key may be among rows with these bounds of their columns, as far as they are known."""
        if self._is_empty:
            return False
        for name, values in self._columns.items():
            if name in bounds:
                least, greatest = bounds[name]
                at = bisect_left(values, least)
                if at == len(values) or values[at] > greatest:
                    return False
        return True


def _values(columns: Sequence[pa.ChunkedArray]) -> Sequence[Any] | None:
    values = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type))
    if values.null_count or (pa.types.is_floating(values.type) and pc.any(pc.is_nan(values)).as_py()):
        return None
    return _Sorted(values.take(pc.sort_indices(values)))


class _Sorted(Sequence[Any]):
    """An Arrow array as Python values, each made when it is asked for."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: Any) -> Any:
        return self._values[position].as_py()
