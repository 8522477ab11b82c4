"""Specs as Iceberg schemas."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.types import ListType, StructType, TimestamptzType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.model.tables import ICEBERG_TABLES, KNOWLEDGE_GRAPH, PROCESSED_NOTES
from pkm_pipelines.storage.iceberg_schema import (
    TABLE_MODES,
    WRITE_MODE,
    arrow_schema,
    check_table,
    iceberg_schema,
    next_field_id,
    partition_spec,
    read_spec,
    table_properties,
    write_mode_of,
    write_mode_properties,
)
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, Place

ALL = pytest.mark.parametrize("spec", ICEBERG_TABLES, ids=lambda spec: spec.name)


@ALL
def test_ids_are_those_of_the_spec_and_those_that_a_catalog_gives(spec: TableSpec) -> None:
    schema = iceberg_schema(spec)
    assert [(f.field_id, f.name) for f in schema.fields] == [(c.id, c.name) for c in spec.columns]
    fresh = assign_fresh_schema_ids(schema)
    assert fresh == schema
    assert fresh.identifier_field_ids == schema.identifier_field_ids


@ALL
def test_docs_and_the_key_are_in_the_schema(spec: TableSpec) -> None:
    schema = iceberg_schema(spec)
    assert [field.doc for field in schema.fields] == [column.doc for column in spec.columns]
    assert [schema.find_column_name(i) for i in schema.identifier_field_ids] == list(spec.key)


@ALL
def test_arrow_types_survive(spec: TableSpec) -> None:
    back = arrow_schema(iceberg_schema(spec))
    assert back.equals(spec.arrow)
    assert [field.nullable for field in back] == [field.nullable for field in spec.arrow]


@ALL
def test_a_created_table_tells_its_spec(spec: TableSpec, local: Place) -> None:
    table = local.open().ensure(spec)
    found = read_spec(table)
    for name in ("name", "doc", "kind", "key", "order", "determined", "partition", "sort", "columns"):
        assert getattr(found, name) == getattr(spec, name), name
    assert table.spec() == partition_spec(spec)
    assert table.properties.items() >= {**table_properties(spec)}.items() - {("format-version", "2")}


def test_a_column_added_later_takes_the_next_free_id_and_moves_no_other(local: Place) -> None:
    new = next_field_id(PROCESSED_NOTES)
    assert new > max(column.id for column in PROCESSED_NOTES.columns)
    kind = pa.list_(pa.struct([("a", pa.string()), ("b", pa.int64())]))
    grown = replace(PROCESSED_NOTES, columns=(*PROCESSED_NOTES.columns, Column(new, "extra", kind, "Something new")))
    before, after = iceberg_schema(PROCESSED_NOTES), iceberg_schema(grown)
    assert after.fields[:-1] == before.fields
    table = local.open().ensure(PROCESSED_NOTES)
    extra = after.fields[-1].field_type
    with table.update_schema() as update:
        update.add_column("extra", extra, doc="Something new")
    assert table.schema().find_field("extra").field_id == new
    check_table(table, grown)


def test_nested_types() -> None:
    schema = iceberg_schema(STATE)
    parts = schema.find_type("parts")
    assert isinstance(parts, ListType)
    assert isinstance(parts.element_type, StructType)
    assert isinstance(schema.find_type("changed"), TimestamptzType)


def test_a_type_that_iceberg_lacks_is_refused() -> None:
    spec = replace(STATE, columns=(*STATE.columns, Column(8, "raw", pa.uint64(), "Unsigned")))
    with pytest.raises(StoreError, match=r"silver\.things\.raw.*uint64"):
        iceberg_schema(spec)


def test_bounds_are_kept_only_where_something_prunes_by_them() -> None:
    properties = table_properties(PROCESSED_NOTES)
    prefix = "write.metadata.metrics.column."
    kept = {name.removeprefix(prefix) for name in properties if name.startswith(prefix)}
    assert {"note_id", "changed_at", "deleted_at", "lsn"} <= kept
    assert not kept & {"content", "text", "headings", "title"}
    assert properties["write.metadata.metrics.default"] == "none"


def test_pyicebergs_own_retries_are_off() -> None:
    assert table_properties(PROCESSED_NOTES)["commit.retry.num-retries"] == "0"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column(9, "value", pa.int64(), ""), "value has field id 3 and not 9"),
        (Column(3, "value", pa.string(), ""), "value is long and not string"),
        (Column(3, "worth", pa.int64(), ""), "worth is missing"),
    ],
)
def test_a_table_with_other_columns_is_refused(column: Column, message: str, local: Place) -> None:
    local.open().ensure(STATE)
    other = replace(STATE, columns=tuple(column if c.id == 3 else c for c in STATE.columns))
    with pytest.raises(StoreError, match=message):
        local.open().ensure(other)


@pytest.mark.parametrize(
    ("found", "message"), [(7, "a newer version of the project made it"), (0, "run `pkm warehouse migrate`")]
)
def test_a_table_of_another_format_is_refused(found: int, message: str, local: Place) -> None:
    store = local.open()
    store.ensure(replace(STATE, format_version=found))
    with pytest.raises(StoreError, match=rf"silver\.things has format {found}.*format 1: {message}"):
        local.open().ensure(STATE)


def test_an_edge_is_found_by_the_bucket_of_its_source() -> None:
    assert {part.column for part in KNOWLEDGE_GRAPH.partition} <= {*KNOWLEDGE_GRAPH.key, *KNOWLEDGE_GRAPH.determined}


def test_the_write_mode_is_a_property_that_other_engines_understand(tables: TableManager) -> None:
    def mode() -> str:
        return write_mode_of(tables.iceberg.load(STATE.name))

    assert mode() == "copy-on-write"
    for wanted in TABLE_MODES:
        with tables.iceberg.load(STATE.name).transaction() as transaction:
            transaction.set_properties(write_mode_properties(wanted))
        assert mode() == wanted
    assert tables.iceberg.load(STATE.name).properties["write.merge.mode"] == "merge-on-read"
    with tables.iceberg.load(STATE.name).transaction() as transaction:
        transaction.set_properties({WRITE_MODE: "sideways"})
    with pytest.raises(StoreError, match=r"silver\.things: its property pkm\.write-mode is 'sideways', and must be"):
        mode()
