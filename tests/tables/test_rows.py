"""Comparing rows, against Python's own comparison."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.model.records import Slice
from pkm_pipelines.tables.rows import KeyIndex, differ, in_slice, is_older, newest

STRUCT = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])
TYPES = [
    pa.int64(),
    pa.string(),
    pa.float64(),
    pa.list_(pa.string()),
    STRUCT,
    pa.list_(STRUCT),
    pa.list_(pa.list_(pa.float64())),
    pa.map_(pa.string(), pa.int64()),
]


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of a type from so few that equal ones are common; nulls at every level."""
    if pa.types.is_map(kind):
        return st.none() | st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), max_size=2)
    if pa.types.is_list(kind):
        return st.none() | st.lists(values(kind.value_type), max_size=2)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    if pa.types.is_floating(kind):
        return st.sampled_from([None, 0.5, math.nan])
    return st.sampled_from([None, 0, 1] if pa.types.is_integer(kind) else [None, "", "x"])


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_rows_differ_where_python_says_so(kind: pa.DataType, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(values(kind), values(kind)), max_size=8))
    left, right = (pa.array([pair[side] for pair in pairs], kind) for side in (0, 1))
    # As text, NaN equals NaN.
    wanted = [repr(a) != repr(b) for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)]
    assert differ(pa.table({"v": left}), pa.table({"v": right})).to_pylist() == wanted
    start = data.draw(st.integers(0, len(pairs)))
    part = differ(pa.table({"v": left.slice(start)}), pa.table({"v": right.slice(start)}))
    assert part.to_pylist() == wanted[start:]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, 1, 2]), st.sampled_from([None, "x", "y"])))


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    names = {"k": pa.string(), "n": pa.int64(), "s": pa.string(), "i": pa.int64()}
    columns = {name: [row[at] for row in rows] for at, name in enumerate(list(names)[:3])}
    return pa.table({**columns, "i": range(len(rows))}, schema=pa.schema(list(names.items())))


def age(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (-1 if row[1] is None else row[1], "" if row[2] is None else row[2])


@given(rows=ROWS)
def test_the_newest_of_each_key_is_the_greatest_and_then_the_last(rows: list[tuple[Any, ...]]) -> None:
    wanted: dict[Any, int] = {}
    for position, row in enumerate(rows):
        if row[0] not in wanted or age(row) >= age(rows[wanted[row[0]]]):
            wanted[row[0]] = position
    assert newest(table(rows), ["k"], ["n", "s"])["i"].to_pylist() == sorted(wanted.values())


@given(rows=ROWS)
def test_without_an_order_the_last_is_the_newest(rows: list[tuple[Any, ...]]) -> None:
    wanted = {row[:2]: position for position, row in enumerate(rows)}
    assert newest(table(rows), ["k", "n"], [])["i"].to_pylist() == sorted(wanted.values())


@given(pairs=st.lists(st.tuples(ROWS.map(lambda rows: rows[0] if rows else ("a", 1, "x")), ROWS.filter(bool))))
def test_older_is_less_in_the_order_of_tuples(pairs: list[tuple[tuple[Any, ...], list[tuple[Any, ...]]]]) -> None:
    left, right = [a for a, _ in pairs], [b[0] for _, b in pairs]
    wanted = [age(a) < age(b) for a, b in zip(left, right, strict=True)]
    assert is_older(table(left), table(right), ["n", "s"]).to_pylist() == wanted
    assert is_older(table(left), table(right), []).to_pylist() == [False] * len(left)


@pytest.mark.parametrize("key", [["k"], ["k", "n"], ["n", "k", "s"]])
@given(here=ROWS, there=ROWS)
def test_keys_are_found_where_they_stand(
    key: list[str], here: list[tuple[Any, ...]], there: list[tuple[Any, ...]]
) -> None:
    def keys(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        complete = [row for row in rows if None not in row]
        return list(dict.fromkeys(tuple(row["kns".index(name)] for name in key) for row in complete))

    def keyed(rows: list[tuple[Any, ...]]) -> pa.Table:
        kinds = {"k": pa.string(), "n": pa.int64(), "s": pa.string()}
        return pa.table({name: pa.array([r[at] for r in rows], kinds[name]) for at, name in enumerate(key)})

    mine, theirs = keys(here), keys(there)
    found = KeyIndex(keyed(mine), key).find(keyed(theirs)).to_pylist()
    assert found == [mine.index(one) if one in mine else None for one in theirs]


def test_slices() -> None:
    day = dt.date(2026, 3, 1)
    rows = pa.table(
        {
            "d": pa.array([day, day + dt.timedelta(days=1), None], pa.date32()),
            "t": pa.array([dt.datetime(2026, 3, 1, hour, tzinfo=dt.UTC) for hour in (0, 1, 2)]),
            "s": ["a", "b", None],
        }
    )
    assert in_slice(rows, None).to_pylist() == [True, True, True]
    assert in_slice(rows, Slice("s")).to_pylist() == [False, False, False]
    assert in_slice(rows, Slice("s", ("a", "x"))).to_pylist() == [True, False, False]
    assert in_slice(rows, Slice("d", first=day, before=day + dt.timedelta(days=1))).to_pylist() == [True, False, False]
    midnight = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    assert in_slice(rows, Slice("d", first=midnight)).to_pylist() == [False, True, False]
    one = dt.datetime(2026, 3, 1, 1, tzinfo=dt.UTC)
    assert in_slice(rows, Slice("t", first=one)).to_pylist() == [False, True, True]
    assert in_slice(rows, Slice("t", before=one)).to_pylist() == [True, False, False]
