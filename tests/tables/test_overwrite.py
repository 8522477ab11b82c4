"""Rows that match a filter, deleted and replaced: those that a read with the same filter returns, and no other."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode
from pkm_pipelines.tables.manager import TableManager
from tests.support.filters import filters
from tests.support.iceberg import Place, batch, delta, local_place

Parts = tuple[tuple[str, str], ...]

PART = pa.struct([("a", pa.int64()), ("b", pa.string())])
TYPES: dict[str, pa.DataType] = {
    "n": pa.int64(),
    "x": pa.int64(),
    "small": pa.int32(),
    "v": pa.float64(),
    "narrow": pa.float32(),
    "s": pa.string(),
    "d": pa.date32(),
    "part": PART,
    "parts": pa.list_(PART),
}
NAN = math.nan
JUNE = dt.date(2024, 6, 3)


def spec_of(*parts: tuple[str, str]) -> TableSpec:
    """A table without a key; `n` tells its rows apart."""
    return TableSpec(
        layer="silver",
        table="_".join(
            ["rows", *(f"{column}_{transform.strip(']').replace('[', '_')}" for column, transform in parts)]
        ),
        doc="Rows with holes.",
        kind="log",
        key=(),
        partition=tuple(PartitionField(*part) for part in parts),
        columns=tuple(
            Column(number, name, kind, "", name == "n") for number, (name, kind) in enumerate(TYPES.items(), 1)
        ),
    )


def table_of(tables: TableManager, rows: Iterable[Mapping[str, Any]], *parts: tuple[str, str]) -> str:
    """The name of a new table that holds `rows`."""
    spec = spec_of(*parts)
    tables.create(spec)
    tables.write(delta(spec, [{"n": number, **row} for number, row in enumerate(rows)], "append"))
    return spec.name


def numbers(tables: TableManager, name: str, **how: Any) -> list[int]:
    return sorted(tables.read(name, columns=["n"], **how).read_all()["n"].to_pylist())


def deleted(tables: TableManager, name: str, where: str) -> list[int]:
    """The rows that a delete takes away."""
    before = numbers(tables, name)
    result = tables.delete(name, where=where)
    after = numbers(tables, name)
    assert result.rows_deleted == len(before) - len(after)
    return sorted(set(before) - set(after))


XS: list[dict[str, Any]] = [{"x": 1, "s": "a"}, {"x": None, "s": "b"}, {"x": 5, "s": None}]
BY_X: tuple[Parts, ...] = ((), (("x", "identity"),), (("x", "bucket[4]"),), (("x", "truncate[2]"),))


@pytest.mark.parametrize("parts", BY_X)
@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("x != 5", [0]),
        ("not (x = 5)", [0]),
        ("x not in (5)", [0]),
        ("x not in (5, 6)", [0]),
        ("not (x in (5, 6))", [0]),
        ("x is null", [1]),
        ("x is not null", [0, 2]),
        ("x > 3 or s = 'a'", [0, 2]),
        ("x is null or x > 3", [1, 2]),
        ("not (x > 3)", [0]),
        ("x is not nan", [0, 2]),
        ("x < 99999999999999999999", [0, 2]),
    ],
)
def test_null_is_only_found_as_null(tables: TableManager, parts: Parts, where: str, found: list[int]) -> None:
    name = table_of(tables, XS, *parts)
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


@pytest.mark.parametrize(
    ("parts", "where", "found"),
    [
        ((("d", "month"),), "d < '2024-06-01' or s = 'zzz'", [0]),
        ((("d", "month"),), "d != '2024-06-03'", [0]),
        ((("s", "identity"),), "s != 'a'", [1]),
        ((("s", "truncate[1]"),), "s not like 'a%'", [1]),
    ],
)
def test_what_other_partitions_tell_of_null(tables: TableManager, parts: Parts, where: str, found: list[int]) -> None:
    rows = [{"d": dt.date(2024, 5, 9), "s": "a"}, {"d": None, "s": "b"}, {"d": JUNE, "s": None}]
    name = table_of(tables, rows, *parts)
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


def test_a_part_that_is_replaced_leaves_null_alone(tables: TableManager) -> None:
    name = table_of(tables, XS, ("s", "identity"))
    new = pa.table({"n": [9], "s": ["new"]})
    assert tables.replace(name, new, where="s != 'a'").rows_deleted == 1
    assert numbers(tables, name) == [0, 2, 9]


@pytest.mark.parametrize("parts", [(), (("v", "identity"),)])
@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("v != 5.0", [1]),
        ("v not in (5.0, 6.0)", [1]),
        ("v is nan", [1]),
        ("v is not nan", [0, 2]),
        ("v > 1.0", [0, 2]),
        ("not (v > 9.0)", [0, 2]),
    ],
)
def test_nan_differs_from_every_number(tables: TableManager, parts: Parts, where: str, found: list[int]) -> None:
    """A file of 5 and NaN has only 5 in its statistics."""
    name = table_of(tables, [{"v": 5.0}, {"v": NAN}, {"v": 5.0}, {"v": None}], *parts)
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


@pytest.mark.parametrize("parts", [(), (("v", "identity"),)])
@pytest.mark.parametrize(
    ("where", "found"), [("v = 0.0", [0, 1]), ("v in (0.0, 1.0)", [0, 1, 2]), ("v not in (0.0, 1.0)", [3])]
)
def test_the_zeros_are_equal(tables: TableManager, parts: Parts, where: str, found: list[int]) -> None:
    name = table_of(tables, [{"v": -0.0}, {"v": 0.0}, {"v": 1.0}, {"v": 2.0}], *parts)
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


@pytest.mark.parametrize("parts", [(), (("narrow", "identity"),)])
def test_a_number_of_32_bits_is_compared_with_as_many(tables: TableManager, parts: Parts) -> None:
    name = table_of(tables, [{"narrow": 0.1}, {"narrow": 0.2}], *parts)
    assert numbers(tables, name, row_filter="narrow = 0.1") == [0]
    assert deleted(tables, name, "narrow != 0.1") == [1]


def test_a_number_that_is_too_large_is_not_the_largest(tables: TableManager) -> None:
    name = table_of(tables, [{"small": 2**31 - 1}, {"small": 1}, {"small": None}])
    assert numbers(tables, name, row_filter="small in (99999999999, 1)") == [1]
    assert numbers(tables, name, row_filter="small not in (99999999999, 1)") == [0]
    assert deleted(tables, name, "small not in (99999999999, 99999999998)") == [0, 1]


@pytest.mark.parametrize(("where", "found"), [("n is null", []), ("false", []), ("n is not null", [0, 1, 2])])
def test_a_filter_that_needs_no_column(tables: TableManager, where: str, found: list[int]) -> None:
    name = table_of(tables, XS)
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("part.a = 1", [0]),
        ("part.a != 1", [3]),
        ("part.a is null", [1, 2]),
        ("part is null", [1]),
        ("part.b like 'q%' and x = 1", [0]),
    ],
)
def test_fields_of_a_struct(tables: TableManager, where: str, found: list[int]) -> None:
    parts = [{"a": 1, "b": "qu"}, None, {"a": None, "b": "r"}, {"a": 2, "b": None}]
    name = table_of(tables, [{"x": 1, "part": part} for part in parts])
    assert numbers(tables, name, row_filter=where) == found
    assert deleted(tables, name, where) == found


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("q = 1", "no column 'q'"),
        ("part.q = 1", r"no column 'part\.q'"),
        ("x = 'abc'", "abc"),
        ("x > 1.5", "whole numbers, and 1.5 is none"),
        ("x like '1%'", "like is for text"),
        ("s = 5", "string"),
        ("d > 'soon'", "soon"),
        ("parts.element.a = 1", "inside of a list"),
        ("part = 1", "struct"),
    ],
)
def test_a_filter_that_does_not_fit_is_named(tables: TableManager, where: str, told: str) -> None:
    name = table_of(tables, XS)
    with pytest.raises(StoreError, match=told) as caught:
        tables.delete(name, where=where)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=told):
        tables.replace(name, pa.table({"n": [9]}), where=where)
    with pytest.raises(StoreError, match=told):
        tables.read(name, row_filter=where)
    assert numbers(tables, name) == [0, 1, 2]


# Few values of each column, so that rows are alike and files have one value only; days of before 1970 among them.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "x": st.sampled_from([-2, -1, 0, 1, 5]),
    "v": st.sampled_from([-1.5, 0.0, 5.0]),
    "s": st.sampled_from(["", "a", "ab", "abc", "b"]),
    "d": st.sampled_from([dt.date(1969, 12, 31), dt.date(1970, 1, 1), dt.date(2024, 5, 31), dt.date(2024, 6, 1), JUNE]),
}
ROWS = st.lists(
    st.fixed_dictionaries(
        {name: st.none() | values for name, values in VALUES.items()} | {"v": st.none() | st.just(NAN) | VALUES["v"]}
    ),
    max_size=5,
)
PARTS: list[Parts] = [
    (),
    (("x", "identity"),),
    (("x", "bucket[3]"),),
    (("x", "truncate[2]"),),
    (("v", "identity"),),
    (("s", "identity"),),
    (("s", "truncate[1]"),),
    (("s", "bucket[2]"),),
    (("d", "identity"),),
    (("d", "day"),),
    (("d", "month"),),
    (("d", "year"),),
    (("d", "bucket[2]"),),
    (("d", "month"), ("s", "identity")),
]


def test_deletes_and_replacements_by_any_filter(ram_folder: Path, budget: int) -> None:
    """A filter means the same in a read, in a delete and in a replacement, and that is what it means in SQL."""
    place = local_place(Path(tempfile.mkdtemp(dir=ram_folder)))
    steps = st.lists(st.tuples(filters(VALUES), st.booleans(), ROWS), min_size=1, max_size=3)

    @settings(max_examples=20 * budget, database=None)
    @given(st.sampled_from(PARTS), st.sampled_from(TABLE_MODES), ROWS, ROWS, steps)
    def check(parts: Parts, mode: TableMode, first: list[Any], second: list[Any], steps: list[Any]) -> None:
        _check_steps(place, parts, mode, [first, second], steps)

    check()


def _check_steps(place: Place, parts: Parts, mode: TableMode, writes: Sequence[Any], steps: Sequence[Any]) -> None:
    tables, number = TableManager(place.open()), itertools.count()
    spec = replace(spec_of(*parts), table=f"rows_{uuid.uuid4().hex}")
    tables.create(spec)
    tables.set_mode(spec.name, mode)

    def numbered(rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [{**dict.fromkeys(TYPES), "n": next(number), **row} for row in rows]

    rows = {}
    for part in writes:
        new = numbered(part)
        tables.write(delta(spec, new, "append"))
        rows |= {row["n"]: row for row in new}
    for step, is_replaced, rest in steps:
        found = [n for n, row in rows.items() if step.matches(row)]
        assert numbers(tables, spec.name, row_filter=step.expression) == found
        new = numbered(rest) if is_replaced else []
        if is_replaced:
            result = tables.replace(spec.name, pa.table(batch(spec, new)), where=step.expression)
        else:
            result = tables.delete(spec.name, where=step.expression)
        assert (result.rows_added, result.rows_deleted) == (len(new), len(found))
        rows = {n: row for n, row in rows.items() if n not in found} | {row["n"]: row for row in new}
        left = tables.read(spec.name).read_all().to_pylist()
        assert sorted(map(repr, left)) == sorted(map(repr, rows.values()))
