"""Tables that another engine made: unusual partitions and types, format 1, identifier fields, no properties of ours."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import BucketTransform, IdentityTransform, Transform, TruncateTransform, VoidTransform
from pyiceberg.types import (
    BinaryType,
    DecimalType,
    FixedType,
    IcebergType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimeType,
    UUIDType,
)

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.model.schema import PartitionField as Part
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode, merge_key_of
from pkm_pipelines.tables.distinct import count_distinct, countable
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import local_place
from tests.tables.test_compact import compact

NAME = "user.made"
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=1 << 100)
PERSON = StructType(NestedField(10, "id", StringType()), NestedField(11, "size", LongType()))
NO_PARTITIONS = UNPARTITIONED_PARTITION_SPEC


@pytest.fixture
def tables(work: Path) -> TableManager:
    found = TableManager(local_place(work).open())
    found.iceberg.catalog.create_namespace("user")
    return found


def make(
    tables: TableManager,
    kinds: Mapping[str, IcebergType],
    partition: PartitionSpec = NO_PARTITIONS,
    *,
    key: tuple[str, ...] = (),
    **properties: str,
) -> None:
    """A table with these columns, those of the key being required, as pyiceberg makes it."""
    fields = [NestedField(i, name, kind, required=name in key) for i, (name, kind) in enumerate(kinds.items(), 1)]
    ids = [field.field_id for field in fields if field.name in key]
    schema = Schema(*fields, identifier_field_ids=ids)
    named = {name.replace("_", "-"): value for name, value in properties.items()}
    tables.iceberg.catalog.create_table(NAME, schema, partition_spec=partition, properties=named)


def rows_of(tables: TableManager) -> list[dict[str, Any]]:
    return sorted(tables.read(NAME).read_all().to_pylist(), key=lambda row: (repr(row["id"]), repr(row)))


def everything(tables: TableManager) -> None:
    """What people do with a table that they registered."""
    before = rows_of(tables)
    assert tables.spec(NAME).name == NAME
    assert tables.changes(NAME, None, net=True).read_all().num_rows == len(before)
    assert tables.stats(NAME).rows == len(before)
    compact(tables, tables.spec(NAME))
    assert rows_of(tables) == before
    assert tables.iceberg.load(NAME).scan().to_arrow().num_rows == len(before)
    table = tables.iceberg.load(NAME)
    count_distinct(table, countable(table), NullProgress())
    assert len(live_files(table, table.current_snapshot())) <= len(before)


PEOPLE = pa.table(
    {
        "id": pa.array([1, 2, 3, 4], pa.int64()),
        "person": pa.array(
            [{"id": "abc", "size": 1}, {"id": "z", "size": 2}, None, {"id": None, "size": 3}],
            pa.struct([("id", pa.string()), ("size", pa.int64())]),
        ),
    }
)


@pytest.mark.parametrize(
    ("transform", "partitions"), [(IdentityTransform(), 3), (BucketTransform(4), 3), (TruncateTransform(1), 3)], ids=str
)
def test_a_partition_by_a_nested_field(tables: TableManager, transform: Transform[Any, Any], partitions: int) -> None:
    # Iceberg numbers the fields of a new table anew: the first inside the struct is 3.
    make(tables, {"id": LongType(), "person": PERSON}, PartitionSpec(PartitionField(10, 1000, transform, "who")))
    assert tables.spec(NAME).partition == (Part("person.id", str(transform)),)
    for _ in range(2):
        tables.append(NAME, PEOPLE)
    assert rows_of(tables) == sorted(PEOPLE.to_pylist() * 2, key=lambda row: row["id"])
    everything(tables)
    table = tables.iceberg.load(NAME)
    assert len({file.partition for file in live_files(table, table.current_snapshot())}) == partitions
    tables.delete(NAME, where="id = 2")
    assert [row["id"] for row in rows_of(tables)] == [1, 1, 3, 3, 4, 4]


def test_a_nested_field_that_is_called_as_the_key_does_not_tell_where_a_key_lies(tables: TableManager) -> None:
    spec = PartitionSpec(PartitionField(10, 1000, IdentityTransform(), "who"))
    make(tables, {"id": LongType(), "person": PERSON}, spec, key=("id",))
    tables.merge(NAME, PEOPLE)
    first = tables.iceberg.snapshot_id(NAME)
    moved = pa.table({"id": [1], "person": pa.array([{"id": "z", "size": 1}], PEOPLE.schema.field("person").type)})
    tables.merge(NAME, moved)
    assert rows_of(tables)[0]["person"] == {"id": "z", "size": 1}
    assert len(rows_of(tables)) == 4
    changes = tables.changes(NAME, first).read_all().column("_change_type").to_pylist()
    assert changes == ["UPDATE_BEFORE", "UPDATE_AFTER"]


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_partition_field_that_was_dropped(tables: TableManager, version: str) -> None:
    spec = PartitionSpec(
        PartitionField(2, 1000, VoidTransform(), "gone"), PartitionField(1, 1001, IdentityTransform(), "id_part")
    )
    make(tables, {"id": LongType(), "text": StringType()}, spec, format_version=version)
    assert tables.spec(NAME).partition == (Part("id", "identity"),)
    for _ in range(2):
        tables.append(NAME, pa.table({"id": [1, 2], "text": ["a", None]}))
    everything(tables)
    assert [(row["id"], row["text"]) for row in rows_of(tables)] == [(1, "a"), (1, "a"), (2, None), (2, None)]


def test_nothing_but_a_dropped_partition_field(tables: TableManager) -> None:
    spec = PartitionSpec(PartitionField(2, 1000, VoidTransform(), "gone"))
    make(tables, {"id": LongType(), "text": StringType()}, spec, key=("id",))
    tables.merge(NAME, pa.table({"id": [1, 2], "text": ["a", "b"]}))
    tables.merge(NAME, pa.table({"id": [2], "text": ["c"]}))
    everything(tables)
    assert [row["text"] for row in rows_of(tables)] == ["a", "c"]


TYPES: dict[str, tuple[IcebergType, pa.DataType, list[Any]]] = {
    "uuid": (UUIDType(), pa.binary(16), [ONE.bytes, TWO.bytes, None]),
    "fixed": (FixedType(3), pa.binary(3), [b"abc", b"xyz", None]),
    "binary": (BinaryType(), pa.binary(), [b"a", b"", None]),
    "time": (TimeType(), pa.time64("us"), [dt.time(1, 2, 3, 4), dt.time(0), None]),
    "decimal": (DecimalType(10, 2), pa.decimal128(10, 2), [Decimal("1.10"), Decimal("-2.00"), None]),
    "timestamp": (TimestampType(), pa.timestamp("us"), [dt.datetime(2026, 1, 1), dt.datetime(1, 1, 1), None]),  # noqa: DTZ001
    "map": (
        MapType(20, StringType(), 21, LongType(), value_required=False),
        pa.map_(pa.string(), pa.int64()),
        [[("a", 1)], [], None],
    ),
    "uuids": (ListType(20, UUIDType(), element_required=False), pa.list_(pa.binary(16)), [[ONE.bytes, None], [], None]),
    "nested": (
        StructType(NestedField(20, "a", StructType(NestedField(21, "b", UUIDType())))),
        pa.struct([("a", pa.struct([("b", pa.binary(16))]))]),
        [{"a": {"b": ONE.bytes}}, {"a": None}, None],
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_unusual_types(tables: TableManager, name: str) -> None:
    kind, arrow, values = TYPES[name]
    make(tables, {"id": LongType(), "value": kind})
    rows = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "value": pa.array(values, arrow)})
    for _ in range(2):
        tables.append(NAME, rows)
    assert rows_of(tables) == sorted(rows.to_pylist() * 2, key=lambda row: row["id"])
    everything(tables)
    tables.delete(NAME, where="id = 3")
    tables.replace(NAME, rows)
    assert rows_of(tables) == rows.to_pylist()


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_a_uuid_is_a_key(tables: TableManager, mode: TableMode) -> None:
    make(tables, {"id": UUIDType(), "text": StringType()}, key=("id",))
    tables.set_mode(NAME, mode)
    tables.merge(NAME, pa.table({"id": pa.array([ONE.bytes, TWO.bytes], pa.uuid()), "text": ["a", "b"]}))
    tables.merge(NAME, pa.table({"id": pa.array([TWO.bytes], pa.binary(16)), "text": ["c"]}))
    assert [(row["id"], row["text"]) for row in rows_of(tables)] == [(ONE.bytes, "a"), (TWO.bytes, "c")]
    tables.delete(NAME, pa.table({"id": pa.array([ONE.bytes], pa.binary(16))}))
    everything(tables)
    assert [row["text"] for row in rows_of(tables)] == ["c"]
    table = tables.iceberg.load(NAME)
    for file in live_files(table, table.current_snapshot()):
        with table.io.new_input(file.path).open() as stream:
            stored = pq.ParquetFile(stream).schema.column(0)
        assert str(stored.logical_type) == "UUID", "other engines ask for it"


@pytest.mark.parametrize(
    ("kind", "transform", "value"),
    [
        (UUIDType(), IdentityTransform(), pa.array([ONE.bytes], pa.uuid())),
        (TimeType(), BucketTransform(4), [dt.time(1)]),
    ],
    ids=["identity of uuid", "bucket of time"],
)
def test_a_partition_that_cannot_be_worked_out_is_refused(
    tables: TableManager, kind: IcebergType, transform: Transform[Any, Any], value: Any
) -> None:
    make(tables, {"id": LongType(), "value": kind}, PartitionSpec(PartitionField(2, 1000, transform, "part")))
    with pytest.raises(StoreError, match=r"table user\.made: its partition by (part|value) cannot be worked out here"):
        tables.append(NAME, pa.table({"id": [1], "value": value}))
    assert rows_of(tables) == []


@pytest.mark.parametrize("mode", ["merge-on-read", "hybrid"])
def test_format_1_has_no_deletes_of_rows(tables: TableManager, mode: TableMode) -> None:
    make(tables, {"id": LongType(), "text": StringType()}, format_version="1", key=("id",))
    with pytest.raises(
        StoreError, match=rf"user\.made has Iceberg's format 1.* cannot be {mode}; upgrade it to format 2"
    ):
        tables.set_mode(NAME, mode)
    tables.set_mode(NAME, "copy-on-write")
    tables.merge(NAME, pa.table({"id": [1, 2], "text": ["a", "b"]}))
    tables.delete(NAME, where="id = 2")
    tables.delete(NAME, pa.table({"id": [3]}))
    everything(tables)
    assert [row["id"] for row in rows_of(tables)] == [1]
    with tables.iceberg.load(NAME).transaction() as transaction:
        transaction.upgrade_table_version(2)
    tables.set_mode(NAME, mode)
    tables.merge(NAME, pa.table({"id": [1], "text": ["c"]}))
    tables.delete(NAME, pa.table({"id": [1]}))
    assert rows_of(tables) == []


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_identifier_fields_are_the_key(tables: TableManager, mode: TableMode) -> None:
    make(tables, {"text": StringType(), "id": LongType(), "part": LongType()}, key=("id", "part"))
    spec = tables.spec(NAME)
    assert (spec.kind, spec.key, merge_key_of(tables.iceberg.load(NAME))) == ("state", ("id", "part"), ["id", "part"])
    tables.set_mode(NAME, mode)
    tables.merge(NAME, pa.table({"id": [1, 1, 2], "part": [1, 2, 1], "text": ["a", "b", "c"]}))
    tables.merge(NAME, pa.table({"id": [1], "part": [2], "text": ["d"]}))
    tables.delete(NAME, pa.table({"id": [2], "part": [1]}))
    everything(tables)
    assert [row["text"] for row in rows_of(tables)] == ["a", "d"]
    with pytest.raises(StoreError, match=r"has one row for each id and part: rows are merged, not appended"):
        tables.append(NAME, pa.table({"id": [1], "part": [1]}))


def test_identifier_fields_inside_a_struct_are_no_key(tables: TableManager) -> None:
    inner = StructType(NestedField(10, "id", LongType(), required=True))
    schema = Schema(
        NestedField(1, "id", LongType()), NestedField(2, "of", inner, required=True), identifier_field_ids=[10]
    )
    tables.iceberg.catalog.create_table(NAME, schema)
    assert (tables.spec(NAME).kind, tables.spec(NAME).key) == ("log", ())
    tables.append(NAME, pa.table({"id": [1], "of": [{"id": 1}]}))
    everything(tables)


@pytest.mark.parametrize(
    ("field", "column"),
    [
        (SortField(11, IdentityTransform()), "person.size"),
        (SortField(1, IdentityTransform(), SortDirection.DESC, NullOrder.NULLS_LAST), "id"),
    ],
    ids=["nested", "downwards"],
)
def test_files_do_not_claim_an_order_that_they_have_not(tables: TableManager, field: SortField, column: str) -> None:
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "person", PERSON))
    tables.iceberg.catalog.create_table(NAME, schema, sort_order=SortOrder(field))
    assert tables.spec(NAME).sort == (column,)
    for _ in range(2):
        tables.append(NAME, PEOPLE)
    everything(tables)
    table = tables.iceberg.load(NAME)
    assert {file.file.sort_order_id for file in live_files(table, table.current_snapshot())} == {None}
