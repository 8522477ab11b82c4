"""Rows by key: finding them, telling which is newer, and whether anything in them changed.

All of it is exact and works on whole columns: keys are compared and never hashed into something shorter, and
nested values are compared down to their leaves. Two NaN are equal here, two nulls are equal, and null is older
than everything.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.records import Slice


class KeyIndex:
    """Where each key stands in some rows; keys must be unique in them."""

    def __init__(self, rows: pa.Table, key: Sequence[str]) -> None:
        self._key = list(key)
        self._values = [pc.unique(rows.column(name)) for name in key] if len(key) > 1 else []
        self._keys = self._codes(rows)

    def find(self, rows: pa.Table) -> pa.Array:
        """For each of `rows` the position at which its key stands here, null where it does not (int32)."""
        return pc.index_in(self._codes(rows), value_set=self._keys)

    def _codes(self, rows: pa.Table) -> pa.Array:
        """One value a row that is equal where keys are; null for a key that holds a value unknown here."""
        if not self._values:
            return _whole(rows.column(self._key[0]))
        codes: pa.Array | None = None
        for name, values in zip(self._key, self._values, strict=True):
            code = pc.index_in(_whole(rows.column(name)), value_set=values).cast(pa.int64())
            codes = code if codes is None else pc.add(pc.multiply(codes, len(values)), code)
        assert codes is not None
        return codes


def newest(rows: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Table:
    """The newest row of each key: the greatest by `order`, the last one where that is equal or empty."""
    positions = _positions(rows.num_rows)
    if order:
        positions = pc.sort_indices(rows.select(order), sort_keys=[(name, "ascending", "at_start") for name in order])
    ranked = rows.select(key).take(positions).append_column("_rank", _positions(rows.num_rows))
    last = ranked.group_by(list(key), use_threads=False).aggregate([("_rank", "max")])["_rank_max"]
    if len(last) == rows.num_rows:
        return rows
    kept = positions.take(_whole(last))
    return rows.take(kept.take(pc.sort_indices(kept)))


def is_older(rows: pa.Table, others: pa.Table, order: Sequence[str]) -> pa.Array:
    """For each of `rows` whether it is older than the one at the same place in `others` (boolean, no nulls)."""
    older, equal = _all(rows.num_rows, False), _all(rows.num_rows, True)
    for name in order:
        left, right = _whole(rows.column(name)), _whole(others.column(name))
        less = pc.or_(pc.and_(pc.is_null(left), pc.is_valid(right)), pc.fill_null(pc.less(left, right), False))
        older = pc.or_(older, pc.and_(equal, less))
        equal = pc.and_(equal, pc.invert(_differ(left, right)))
    return older


def differ(rows: pa.Table, others: pa.Table) -> pa.Array:
    """For each of `rows` whether any column differs from the one at the same place in `others` (boolean, no nulls)."""
    found = _all(rows.num_rows, False)
    for name in rows.column_names:
        found = pc.or_(found, _differ(_whole(rows.column(name)), _whole(others.column(name))))
    return found


def in_slice(rows: pa.Table, part: Slice | None) -> pa.Array:
    """For each of `rows` whether it lies in `part`; None is everything (boolean, no nulls)."""
    if part is None or part.is_empty:
        return _all(rows.num_rows, part is None)
    found = _all(rows.num_rows, True)
    column = _whole(rows.column(part.column))
    if part.values:
        return pc.is_in(column, value_set=pa.array(part.values).cast(column.type))
    for bound, test in ((part.first, pc.greater_equal), (part.before, pc.less)):
        if bound is not None:
            if pa.types.is_date(column.type) and isinstance(bound, dt.datetime):
                bound = bound.date()
            found = pc.and_(found, pc.fill_null(test(column, pa.scalar(bound, column.type)), False))
    return found


def _differ(left: pa.Array, right: pa.Array) -> pa.Array:
    if left.equals(right):
        return _all(len(left), False)
    kind = left.type
    found = pc.xor(pc.is_valid(left), pc.is_valid(right))
    if pa.types.is_struct(kind):
        for inner_left, inner_right in zip(left.flatten(), right.flatten(), strict=True):
            found = pc.or_(found, _differ(inner_left, inner_right))
        return found
    if pa.types.is_list(kind):
        found = pc.or_(
            found, pc.fill_null(pc.not_equal(pc.list_value_length(left), pc.list_value_length(right)), False)
        )
        return pc.or_(found, _items_differ(left, right, pc.and_(pc.is_valid(left), pc.invert(found))))
    if pa.types.is_nested(kind):
        return pa.array([a != b for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)], pa.bool_())
    unequal = pc.fill_null(pc.not_equal(left, right), False)
    if pa.types.is_floating(kind):
        both_nan = pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), False)
        unequal = pc.and_(unequal, pc.invert(both_nan))
    return pc.or_(found, unequal)


def _items_differ(left: pa.Array, right: pa.Array, comparable: pa.Array) -> pa.Array:
    """Where the items of two lists of one length differ; only looked at where `comparable`."""
    positions = _positions(len(left)).filter(comparable)
    left, right = left.filter(comparable), right.filter(comparable)
    changed = pc.list_parent_indices(left).filter(_differ(left.flatten(), right.flatten()))
    return pc.is_in(_positions(len(comparable)), value_set=positions.take(pc.unique(changed)))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _positions(count: int) -> pa.Array:
    return pa.arange(0, count)


def _all(count: int, value: bool) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)
