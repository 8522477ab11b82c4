"""Values become what a table has for them, or are refused: nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.storage.arrow_cast import REFUSED, cast
from pkm_pipelines.tables.manager import TableManager

PERSON = pa.struct([("name", pa.string()), ("size", pa.int64())])
SPEC = TableSpec(
    layer="gold",
    table="kinds",
    doc="Columns of some types.",
    kind="log",
    key=(),
    columns=(
        Column(1, "number", pa.int64(), "A number"),
        Column(2, "text", pa.string(), "A text"),
        Column(3, "texts", pa.list_(pa.string()), "Texts"),
        Column(4, "person", PERSON, "A person"),
        Column(5, "at", pa.timestamp("us", tz="UTC"), "A moment"),
    ),
)
VIEWS = pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.uint32()), pa.array(["a", "b"], pa.string_view()))


@pytest.fixture
def kinds(tables: TableManager) -> TableManager:
    tables.ensure(SPEC)
    return tables


@pytest.mark.parametrize(
    "values",
    [
        VIEWS,
        pa.chunked_array([VIEWS, VIEWS.slice(1)]),
        pa.array(["b", "a", None]).dictionary_encode(),
        pa.array(["b", "a", None], pa.large_string()).dictionary_encode(),
        pa.array(["b", "a", None], pa.string_view()),
    ],
    ids=lambda values: str(values.type),
)
def test_texts_of_every_kind(values: Any) -> None:
    found = cast(values, pa.string())
    assert (found.type, found.to_pylist()) == (pa.string(), values.to_pylist())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([{"name": "a", "age": 1}]), PERSON),
        (pa.array([[{"name": "a", "age": 1}]]), pa.list_(PERSON)),
        (pa.array([{"of": {"age": 1}}]), pa.struct([("of", PERSON)])),
        (pa.array([["a"]], pa.list_view(pa.string())), pa.list_(pa.string())),
        (pa.array([1.5]), pa.int64()),
    ],
    ids=str,
)
def test_what_would_be_lost_is_refused(values: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises(REFUSED):
        cast(values, kind)


def test_a_struct_may_lack_fields_and_have_them_in_another_order() -> None:
    found = cast(pa.array([{"size": 1, "name": "a"}, {"size": 2, "name": None}, None]), PERSON)
    assert found.to_pylist() == [{"name": "a", "size": 1}, {"name": None, "size": 2}, None]
    assert cast(pa.array([{"size": 1}]), PERSON).to_pylist() == [{"name": None, "size": 1}]


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"text": ["b", "a", None]}, schema={"text": pl.Categorical}),
        pl.DataFrame({"text": ["b", "a", None]}, schema={"text": pl.Enum(["a", "b"])}),
        pl.DataFrame({"text": ["b", "a", None]}, schema={"text": pl.Categorical}).lazy(),
    ],
    ids=["categorical", "enum", "lazy"],
)
def test_categories_of_polars_are_texts(kinds: TableManager, frame: Any) -> None:
    kinds.append(SPEC.name, frame)
    assert kinds.read(SPEC.name, columns=["text"]).read_all().column(0).to_pylist() == ["b", "a", None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pa.table({"number": pa.array([1 << 63], pa.uint64())}), "'number': Integer value 9223372036854775808 not in"),
        (
            pa.table([[1], [2]], names=["number", "number"]),
            "the rows have column 'number' more than once",
        ),
        (pa.table({"at": pa.array([1 << 60], pa.timestamp("s"))}), "'at': .* out of bounds"),
        (pa.table({"at": pa.array([1001], pa.timestamp("ns"))}), "'at': .* would lose data"),
        (pa.table({"person": [{"name": "a", "age": 1}]}), r"gold\.kinds, column person: it has no field 'age'"),
        (pa.table({"texts": pa.array([["a"]], pa.list_view(pa.string()))}), "column texts: list views .* cast it to a"),
        (pl.DataFrame({"texts": [["a"]]}, schema={"texts": pl.List(pl.Categorical)}), "column 'texts'|'texts': "),
        (pa.table({"number": ["x"]}), r"gold\.kinds, column number: Failed to parse string: 'x'"),
    ],
)
def test_rows_that_do_not_fit(kinds: TableManager, rows: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        kinds.append(SPEC.name, rows)
    assert kinds.stats(SPEC.name).rows == 0


def test_a_delta_that_came_past_the_frames(kinds: TableManager) -> None:
    """As a consumer's function makes one."""
    batch = pa.RecordBatch.from_arrays([VIEWS], names=["text"])
    kinds.write(Delta(SPEC.name, [batch], "append", "one"))
    assert kinds.read(SPEC.name, columns=["text"]).read_all().column(0).to_pylist() == ["b", "a", None]
    twice = pa.RecordBatch.from_arrays([VIEWS, VIEWS], names=["text", "text"])
    with pytest.raises(StoreError, match="column 'text' more than once"):
        kinds.write(Delta(SPEC.name, [twice], "append", "two"))
    large = pa.RecordBatch.from_arrays([pa.array([1 << 63], pa.uint64())], names=["number"])
    with pytest.raises(StoreError, match=r"gold\.kinds, column number: Integer value"):
        kinds.write(Delta(SPEC.name, [large], "append", "three"))
