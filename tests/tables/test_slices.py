"""Parts of tables by one column, filters in text, and keys: what they take away, and what is not understood."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.view import IcebergView
from tests.support.iceberg import STATE, contents, delta, thing, write

DAY = dt.date(2026, 1, 1)
LINES = TableSpec(
    layer="silver",
    table="lines",
    doc="Rows without a key.",
    kind="log",
    key=(),
    columns=(
        Column(1, "n", pa.int64(), ""),
        Column(2, "s", pa.string(), ""),
        Column(3, "d", pa.date32(), ""),
        Column(4, "part", pa.struct([("a", pa.int64())]), ""),
    ),
)
NOTHING = (Slice("s", ()), Slice("n"), Slice("d"))
MISFITS = [
    (Slice("q", ("a",)), "no column 'q'"),
    (Slice("n", ("abc",)), "'n' holds int64"),
    (Slice("n", first=DAY), "'n' holds int64"),
    (Slice("s", before=DAY), "'s' holds string"),
    (Slice("part", ("a",)), "'part' holds struct"),
]


@pytest.fixture
def lines(tables: TableManager) -> TableManager:
    tables.create(LINES)
    tables.write(delta(LINES, [{"n": 1, "s": "a", "d": DAY}, {"n": 2}], "append"))
    return tables


def numbers(tables: TableManager) -> list[int]:
    return sorted(tables.read(LINES.name).read_all()["n"].to_pylist())


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_empty_slice_is_nothing(lines: TableManager, nothing: Slice) -> None:
    assert not lines.delete(LINES.name, where=nothing).written
    result = lines.replace(LINES.name, pa.table({"n": [3]}), nothing)
    assert (result.rows_added, result.rows_deleted) == (1, 0)
    assert numbers(lines) == [1, 2, 3]
    assert IcebergView(lines, LINES.name).scan(part=nothing).read_all().num_rows == 0


def test_an_empty_slice_of_a_table_with_a_key_is_nothing(tables: TableManager) -> None:
    write(tables, STATE, [thing("a", group="g"), thing("b")])
    result = write(tables, STATE, [thing("c")], "replace", replace_where=Slice("group", ()))
    assert (result.rows_added, result.rows_deleted) == (1, 0)
    assert set(contents(tables, STATE)) == {"a", "b", "c"}


@pytest.mark.parametrize(("part", "told"), MISFITS)
def test_a_slice_that_a_column_cannot_have_is_named(lines: TableManager, part: Slice, told: str) -> None:
    with pytest.raises(StoreError, match=rf"silver\.lines.*{told}") as caught:
        lines.delete(LINES.name, where=part)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=told):
        lines.replace(LINES.name, pa.table({"n": [3]}), part)
    with pytest.raises(StoreError, match=told):
        IcebergView(lines, LINES.name).scan(part=part)
    assert numbers(lines) == [1, 2]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (Slice("q", ("a",)), "no column 'q'"),
        (Slice("value", ("abc",)), "'value' holds int64"),
        (Slice("value", first=DAY), "'value' holds int64"),
    ],
)
def test_so_is_one_of_a_table_with_a_key(tables: TableManager, part: Slice, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        write(tables, STATE, [thing("a")], "replace", replace_where=part)


@pytest.mark.parametrize(
    "keys", [pa.table({"id": [["a"]]}), pa.table({"id": pa.array([None], pa.string())}), pa.table({"id": [{"a": 1}]})]
)
def test_keys_that_do_not_fit_are_named(tables: TableManager, keys: pa.Table) -> None:
    with pytest.raises(StoreError, match=r"silver\.things: keys to delete .*do not fit"):
        tables.delete(STATE.name, keys)


@pytest.mark.parametrize(("where", "told"), [("s like '%a'", "LIKE"), ("n = 1 and true", "true and false")])
def test_a_filter_that_cannot_be_read_is_named(lines: TableManager, where: str, told: str) -> None:
    with pytest.raises(StoreError, match=told) as caught:
        lines.delete(LINES.name, where=where)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=told):
        lines.read(LINES.name, row_filter=where)
