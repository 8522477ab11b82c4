"""Files read through a schema that is no longer the one they were written in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.expressions import And, EqualTo, GreaterThan, IsNull
from pyiceberg.types import LongType, StringType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import Place, batch, delta

PART = pa.struct([("name", pa.string()), ("size", pa.int32()), ("tags", pa.list_(pa.string()))])
SPEC = TableSpec(
    layer="silver",
    table="old",
    doc="A table that will change.",
    kind="log",
    key=(),
    columns=(
        Column(1, "id", pa.string(), "", True),
        Column(2, "count", pa.int32(), ""),
        Column(3, "parts", pa.list_(PART), ""),
        Column(4, "part", PART, ""),
    ),
)
ROWS: list[dict[str, Any]] = [
    {"id": "full", "count": 1, "parts": [{"name": "a", "size": 1, "tags": ["x"]}, None], "part": None},
    {"id": "null", "count": None, "parts": None, "part": {"name": None, "size": None, "tags": None}},
    {"id": "empty", "count": -5, "parts": [], "part": {"name": "", "size": 0, "tags": []}},
    {"id": "mixed", "count": 7, "parts": [{"name": None, "size": None, "tags": None}], "part": None},
]


@pytest.fixture
def store(local: Place) -> IcebergStore:
    store = local.open()
    manager = TableManager(store)
    manager.ensure(SPEC)
    manager.write(delta(SPEC, ROWS, "append"))
    return store


def read(store: IcebergStore, **how: Any) -> list[dict[str, Any]]:
    return sorted(store.scan(SPEC.name, **how).read().read_all().to_pylist(), key=lambda row: row["id"])


def by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["id"])


def test_nulls_stay_nulls_at_every_level(store: IcebergStore) -> None:
    assert read(store) == by_id(ROWS)
    assert read(store, row_filter=IsNull("count")) == [ROWS[1]]


def test_a_column_that_was_added_renamed_moved_or_widened(store: IcebergStore) -> None:
    with store.load(SPEC.name).update_schema() as update:
        update.add_column("extra", StringType())
        update.update_column("count", LongType())
        update.rename_column("count", "number")
        update.move_first("part")
    wanted = [
        {"part": row["part"], "id": row["id"], "number": row["count"], "parts": row["parts"], "extra": None}
        for row in by_id(ROWS)
    ]
    assert read(store) == wanted
    assert list(read(store)[0]) == ["part", "id", "number", "parts", "extra"]
    assert read(store, columns=["number", "id"], row_filter=GreaterThan("number", 0)) == [
        {"number": 1, "id": "full"},
        {"number": 7, "id": "mixed"},
    ]
    assert len(store.scan(SPEC.name, columns=["extra"], row_filter=IsNull("extra")).read().read_all()) == 4


def test_a_name_given_to_a_new_column_does_not_show_the_old_values(store: IcebergStore) -> None:
    with store.load(SPEC.name).update_schema() as update:
        update.delete_column("count")
    with store.load(SPEC.name).update_schema() as update:
        update.add_column("count", LongType())
    assert {row["count"] for row in read(store)} == {None}


def test_nested_fields_that_were_added_renamed_or_dropped(store: IcebergStore) -> None:
    with store.load(SPEC.name).update_schema() as update:
        update.add_column(("parts", "element", "note"), StringType())
        update.rename_column("parts.element.name", "label")
        update.delete_column("part.tags")
        update.update_column("parts.element.size", LongType())

    def moved(part: dict[str, Any] | None) -> dict[str, Any] | None:
        return part and {"label": part["name"], "size": part["size"], "tags": part["tags"], "note": None}

    def shrunk(part: dict[str, Any] | None) -> dict[str, Any] | None:
        return part and {"name": part["name"], "size": part["size"]}

    wanted = [
        {
            "id": row["id"],
            "count": row["count"],
            "parts": None if row["parts"] is None else [moved(part) for part in row["parts"]],
            "part": shrunk(row["part"]),
        }
        for row in by_id(ROWS)
    ]
    assert read(store) == wanted


def test_old_and_new_files_side_by_side(store: IcebergStore) -> None:
    with store.load(SPEC.name).update_schema() as update:
        update.add_column("extra", StringType())
    manager = TableManager(store)
    grown = manager.spec(SPEC.name)
    assert [column.name for column in grown.columns][-1] == "extra"
    manager.write(delta(grown, [{"id": "zz", "count": 3, "extra": "e"}], "append"))
    assert [row["extra"] for row in read(store)] == [None, None, None, None, "e"]
    assert read(store, columns=["id"], row_filter=EqualTo("extra", "e")) == [{"id": "zz"}]
    assert read(store, columns=["id"], row_filter=And(IsNull("extra"), EqualTo("count", 7))) == [{"id": "mixed"}]


def test_a_file_of_pyicebergs_own_is_read_too(store: IcebergStore) -> None:
    table = store.load(SPEC.name)
    table.append(pa.Table.from_batches([batch(SPEC, [{"id": "own", "count": 9}])]).cast(table.schema().as_arrow()))
    assert [row["count"] for row in read(store) if row["id"] == "own"] == [9]
    assert [row for row in read(store) if row["id"] != "own"] == by_id(ROWS)


def test_a_filter_that_does_not_fit_is_named(store: IcebergStore) -> None:
    with pytest.raises(StoreError, match=r"silver\.old: the filter does not fit.*nope"):
        store.scan(SPEC.name, row_filter=EqualTo("nope", 1))


def test_columns_of_any_name(local: Place) -> None:
    names = ["my column", "größe", "1st", "a-b", "漢字"]
    columns = tuple(Column(number, name, pa.string(), "") for number, name in enumerate(names, start=1))
    spec = replace(SPEC, table="odd", columns=columns)
    manager = TableManager(local.open())
    manager.ensure(spec)
    row = dict.fromkeys(names, "x")
    manager.write(delta(spec, [row, dict.fromkeys(names)], "append"))
    assert manager.read(spec.name, columns=names[::-1], row_filter=EqualTo("größe", "x")).read_all().to_pylist() == [
        row
    ]
    assert manager.iceberg.load(spec.name).scan().to_arrow().num_rows == 2


def test_partitions_that_changed_over_time(local: Place) -> None:
    spec = replace(SPEC, table="moved", partition=(PartitionField("id", "identity"),))
    manager = TableManager(local.open())
    manager.ensure(spec)
    manager.write(delta(spec, ROWS, "append"))
    with manager.iceberg.load(spec.name).update_spec() as update:
        update.remove_field("id")
    manager.write(delta(spec, [{"id": "later", "count": 1}], "append"))
    found = manager.read(spec.name, columns=["id"], row_filter=EqualTo("count", 1)).read_all()
    assert sorted(found["id"].to_pylist()) == ["full", "later"]
