"""Changing a table's columns and partitions: what reads then, what is refused, and what a lost answer does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException

from pkm_pipelines.model.errors import CommitConflictError, StoreError
from pkm_pipelines.model.evolution import (
    AddColumn,
    ClusterBy,
    DropColumn,
    Evolution,
    MakeOptional,
    PartitionBy,
    PromoteColumn,
    RenameColumn,
)
from pkm_pipelines.model.schema import TIMESTAMP, Column, PartitionField, TableSpec
from pkm_pipelines.model.tables import NOTE_METRICS
from pkm_pipelines.storage import iceberg_update
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_schema import KEY, ORDER, ZORDER
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import EPOCH, STATE, Place

SPEC = TableSpec(
    layer="silver",
    table="goods",
    doc="Goods.",
    kind="state",
    key=("id",),
    order=("version",),
    partition=(PartitionField("id", "bucket[2]"),),
    sort=("id",),
    columns=(
        Column(1, "id", pa.int32(), "Which", True),
        Column(2, "version", pa.int32(), "Newest wins", True),
        Column(3, "price", pa.float32(), "In euros"),
        Column(4, "names", pa.list_(pa.struct([("text", pa.string()), ("language", pa.string())])), "Names"),
    ),
)


@pytest.fixture
def goods(local: Place) -> TableManager:
    manager = TableManager(local.open())
    manager.create(SPEC)
    manager.merge(SPEC.name, rows(pa.int32(), [1, 2, 3], [1, 1, 1]))
    return manager


def rows(kind: pa.DataType, ids: list[int], versions: list[int], **columns: Any) -> pa.Table:
    return pa.table({"id": pa.array(ids, kind), "version": pa.array(versions, pa.int32()), **columns})


def column(tables: TableManager, name: str, **how: Any) -> list[Any]:
    """The values of a column, in the order of the key."""
    (key,) = tables.spec(SPEC.name).key
    columns = list(dict.fromkeys([key, name]))
    return tables.read(SPEC.name, columns=columns, **how).read_all().sort_by(key)[name].to_pylist()


def test_added_columns_are_null_in_what_is_there(goods: TableManager) -> None:
    kind = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])
    goods.evolve(SPEC.name, AddColumn("stock", pa.int64(), "How many"), AddColumn("extra", kind, after="id"))
    goods.merge(SPEC.name, rows(pa.int32(), [3, 4], [2, 1], stock=[7, 8]))
    assert column(goods, "stock") == [None, None, 7, 8]
    spec = goods.spec(SPEC.name)
    assert [one.name for one in spec.columns] == ["id", "extra", "version", "price", "names", "stock"]
    assert spec.column("stock").doc == "How many"
    assert spec.column("extra").type == kind
    ids = goods.iceberg.load(SPEC.name).schema().field_ids
    assert len(ids) == len(set(ids))


def test_an_id_is_never_given_twice(goods: TableManager) -> None:
    goods.evolve(SPEC.name, AddColumn("first", pa.string()))
    goods.merge(SPEC.name, rows(pa.int32(), [9], [1], first=["old"]))
    number = goods.spec(SPEC.name).column("first").id
    goods.evolve(SPEC.name, DropColumn("first"))
    goods.evolve(SPEC.name, AddColumn("first", pa.string()))
    assert goods.spec(SPEC.name).column("first").id > number
    assert set(column(goods, "first")) == {None}


def test_the_columns_that_rows_are_laid_out_by(goods: TableManager) -> None:
    def laid_out_by() -> str | None:
        return goods.iceberg.load(SPEC.name).properties.get(ZORDER)

    goods.evolve(SPEC.name, ClusterBy(("id", "price")))
    assert laid_out_by() == "id,price"
    goods.evolve(SPEC.name, RenameColumn("price", "cost"))
    assert laid_out_by() == "id,cost", "a rename takes it along"
    with pytest.raises(StoreError, match="lays rows out by: change that first"):
        goods.evolve(SPEC.name, DropColumn("cost"))
    with pytest.raises(StoreError, match="no column 'price'"):
        goods.evolve(SPEC.name, ClusterBy(("price",)))
    with pytest.raises(StoreError, match=r"column names: values of list<.* have no order"):
        goods.evolve(SPEC.name, ClusterBy(("names",)))
    assert laid_out_by() == "id,cost", "what was refused changed nothing"
    goods.evolve(SPEC.name, AddColumn("weight", pa.float64()), ClusterBy(("weight", "id", "weight")))
    assert laid_out_by() == "weight,id"
    goods.evolve(SPEC.name, ClusterBy())
    assert laid_out_by() is None
    goods.evolve(SPEC.name, DropColumn("cost"))


def test_a_renamed_key_stays_the_key(goods: TableManager) -> None:
    before = goods.history(SPEC.name)[0].snapshot_id
    goods.evolve(SPEC.name, RenameColumn("id", "key"), RenameColumn("version", "age"))
    loaded = goods.iceberg.load(SPEC.name)
    assert (loaded.properties[KEY], loaded.properties[ORDER]) == ("key", "age")
    bounds = {name.rsplit(".", 1)[1] for name in loaded.properties if name.startswith("write.metadata.metrics.column.")}
    assert bounds == {"key", "age"}
    assert loaded.schema().identifier_field_names() == {"key"}
    spec = goods.spec(SPEC.name)
    assert (spec.key, spec.order, spec.sort) == (("key",), ("age",), ("key",))
    assert spec.partition == (PartitionField("key", "bucket[2]"),)
    new = pa.table({"key": pa.array([1, 5], pa.int32()), "age": pa.array([0, 1], pa.int32())})
    result = goods.merge(SPEC.name, new)
    assert (result.rows_added, result.rows_updated) == (1, 0), "an older row does not replace a newer one"
    assert column(goods, "key", snapshot_id=before) == [1, 2, 3]
    changes = goods.changes(SPEC.name, before).read_all()
    assert changes["key"].to_pylist() == [5]
    assert goods.delete(SPEC.name, pa.table({"key": pa.array([1], pa.int32())})).rows_deleted == 1


def test_another_process_sees_the_new_columns(goods: TableManager, local: Place) -> None:
    other = TableManager(local.open())
    other.ensure(SPEC)
    goods.evolve(SPEC.name, RenameColumn("id", "key"), AddColumn("stock", pa.int64()))
    new = pa.table({"key": pa.array([1], pa.int32()), "version": pa.array([5], pa.int32()), "stock": [3]})
    assert other.merge(SPEC.name, new).rows_updated == 1
    assert other.diff(SPEC.name, None, columns=["stock"]).read_all().num_rows == 3


def test_a_dropped_column_is_no_change(goods: TableManager) -> None:
    goods.merge(SPEC.name, rows(pa.int32(), [1], [2], price=[2.5]))
    since = goods.history(SPEC.name)[0].snapshot_id
    goods.merge(SPEC.name, rows(pa.int32(), [2], [1], price=[3.5]))
    assert goods.changes(SPEC.name, since).read_all().num_rows == 2
    goods.evolve(SPEC.name, DropColumn("price"))
    assert goods.changes(SPEC.name, since).read_all().num_rows == 0
    with pytest.raises(StoreError, match="has no column 'price'"):
        goods.merge(SPEC.name, rows(pa.int32(), [1], [3], price=[1.0]))


def test_promoted_columns_are_found_by_old_bounds(goods: TableManager) -> None:
    goods.merge(SPEC.name, rows(pa.int32(), [7], [1], price=[0.5]))
    goods.evolve(SPEC.name, PromoteColumn("id", pa.int64()), PromoteColumn("price", pa.float64()))
    big = 2**40
    result = goods.merge(SPEC.name, rows(pa.int64(), [1, big], [2, 1]))
    assert (result.rows_added, result.rows_updated) == (1, 1)
    assert column(goods, "id") == [1, 2, 3, 7, big]
    assert goods.read(SPEC.name, row_filter="id = 7").read_all()["price"].to_pylist() == [0.5]
    stats = {one.name: one for one in goods.stats(SPEC.name).columns}
    assert (stats["id"].lower, stats["id"].upper) == (1, big)


def test_another_partitioning_holds_for_what_comes(goods: TableManager) -> None:
    first = goods.history(SPEC.name)[0].snapshot_id
    goods.evolve(SPEC.name, PartitionBy((PartitionField("id", "bucket[8]"),)))
    assert goods.spec(SPEC.name).partition == (PartitionField("id", "bucket[8]"),)
    assert goods.merge(SPEC.name, rows(pa.int32(), [1, 10], [2, 1])).rows_updated == 1
    goods.evolve(SPEC.name, PartitionBy())
    goods.merge(SPEC.name, rows(pa.int32(), [2, 11], [2, 1]))
    goods.evolve(SPEC.name, PartitionBy((PartitionField("id", "bucket[2]"), PartitionField("version", "identity"))))
    goods.merge(SPEC.name, rows(pa.int32(), [3, 12], [2, 1]))
    assert column(goods, "version") == [2, 2, 2, 1, 1, 1]
    assert goods.changes(SPEC.name, first).read_all().num_rows == 9
    assert len({part.spec_id for part in goods.stats(SPEC.name).partitions}) > 1


def test_a_new_column_may_partition(goods: TableManager) -> None:
    goods.evolve(
        SPEC.name,
        AddColumn("seen", TIMESTAMP),
        PartitionBy((PartitionField("seen", "month"),)),
        RenameColumn("id", "key"),
    )
    assert goods.spec(SPEC.name).partition == (PartitionField("seen", "month"),)


def test_an_optional_column(goods: TableManager) -> None:
    goods.evolve(SPEC.name, MakeOptional("version"))
    new = pa.table({"id": pa.array([20], pa.int32()), "version": pa.array([None], pa.int32())})
    assert goods.merge(SPEC.name, new).rows_added == 1


REFUSED: list[tuple[Evolution, str]] = [
    (AddColumn("stock", pa.int64(), required=True), "cannot be required"),
    (AddColumn("price", pa.int64()), "already exists"),
    (AddColumn("_change_type", pa.string()), "no name for a column"),
    (AddColumn("a.b", pa.string()), "no name for a column"),
    (AddColumn("stock", pa.uint64()), "cannot hold the type uint64"),
    (AddColumn("stock", pa.int64(), after="nothing"), "nothing"),
    (DropColumn("id"), "part of the table's key or order"),
    (DropColumn("version"), "part of the table's key or order"),
    (DropColumn("nothing"), "has no column 'nothing'"),
    (RenameColumn("price", "id"), "id"),
    (RenameColumn("nothing", "something"), "has no column 'nothing'"),
    (PromoteColumn("price", pa.int64()), "price"),
    (PromoteColumn("names", pa.int64()), "not a primitive"),
    (MakeOptional("id"), "a key is never null"),
    (PartitionBy((PartitionField("nothing", "identity"),)), "has no column 'nothing'"),
    (AddColumn(" ", pa.string()), "no name for a column"),
    (RenameColumn("price", "cost "), "no name for a column: .*blanks around it"),
    (PartitionBy((PartitionField("id", "bucket"),)), r"'bucket' is no partitioning; there are identity, bucket\[N\]"),
    (PartitionBy((PartitionField("id", "bucket[0]"),)), "is no partitioning"),
    (PartitionBy((PartitionField("id", "truncate[0]"),)), "is no partitioning"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_refused(goods: TableManager, change: Evolution, message: str) -> None:
    before = goods.iceberg.load(SPEC.name).metadata_location
    with pytest.raises(StoreError, match=message):
        goods.evolve(SPEC.name, AddColumn("fine", pa.string()), change)
    assert goods.iceberg.load(SPEC.name).metadata_location == before, "all of it or nothing"


def test_what_a_table_was_partitioned_or_sorted_by_stays(local: Place) -> None:
    manager = TableManager(local.open())
    spec = replace(SPEC, partition=(PartitionField("price", "identity"),), sort=("names",), order=())
    spec = replace(spec, columns=(*spec.columns[:3], Column(4, "names", pa.string(), "Names")))
    manager.create(spec)
    manager.evolve(spec.name, PartitionBy())
    for name, message in (("price", "partitioned by"), ("names", "sorted by")):
        with pytest.raises(StoreError, match=message):
            manager.evolve(spec.name, DropColumn(name))


def test_the_projects_own_columns_stay(local: Place) -> None:
    manager = TableManager(local.open())
    manager.ensure(NOTE_METRICS)
    with pytest.raises(StoreError, match="the project's own"):
        manager.evolve(NOTE_METRICS.name, RenameColumn("title", "name"))
    manager.evolve(NOTE_METRICS.name, AddColumn("mine", pa.string()))
    manager.evolve(NOTE_METRICS.name, RenameColumn("mine", "my_own"))
    manager.ensure(NOTE_METRICS)
    row = {"note_id": "a", "source": "s", "path": "p", "my_own": "x", "changed_at": EPOCH}
    assert manager.merge(NOTE_METRICS.name, pa.table({k: [v] for k, v in row.items()})).rows_added == 1
    assert manager.read(NOTE_METRICS.name, columns=["my_own"]).read_all()["my_own"].to_pylist() == ["x"]


def test_on_every_catalog(store: IcebergStore) -> None:
    manager = TableManager(store)
    manager.create(STATE)
    manager.evolve(STATE.name, AddColumn("note", pa.string()), RenameColumn("id", "key"), DropColumn("names"))
    spec = manager.spec(STATE.name)
    assert spec.key == ("key",)
    assert {"note", "key"} <= set(spec.arrow.names)


@pytest.mark.parametrize(
    ("lands", "error"),
    [
        (True, CommitStateUnknownException("lost")),
        (False, CommitStateUnknownException("lost")),
        (False, CommitFailedException("stale")),
    ],
)
def test_a_change_is_made_once(
    goods: TableManager, monkeypatch: pytest.MonkeyPatch, lands: bool, error: Exception
) -> None:
    catalog = goods.iceberg.catalog
    commit, answers = catalog.commit_table, [error]
    monkeypatch.setattr(iceberg_update, "pause", lambda _: None)

    def answer(*args: Any) -> Any:
        if not answers:
            return commit(*args)
        if lands:
            commit(*args)
        raise answers.pop()

    monkeypatch.setattr(catalog, "commit_table", answer)
    goods.evolve(SPEC.name, AddColumn("stock", pa.int64()))
    assert goods.spec(SPEC.name).arrow.names.count("stock") == 1
    monkeypatch.setattr(catalog, "commit_table", lambda *_: (_ for _ in ()).throw(CommitFailedException("stale")))
    with pytest.raises(CommitConflictError, match="kept changing while its columns were changed"):
        goods.evolve(SPEC.name, AddColumn("more", pa.int64()))


def test_a_write_that_the_columns_changed_under_fails(goods: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = goods.iceberg.catalog
    commit = catalog.commit_table

    def evolve_first(*args: Any) -> Any:
        monkeypatch.setattr(catalog, "commit_table", commit)
        goods.evolve(SPEC.name, RenameColumn("price", "cost"))
        raise CommitFailedException("stale")

    monkeypatch.setattr(catalog, "commit_table", evolve_first)
    with pytest.raises(
        CommitConflictError, match="its columns or partitions were changed while rows were being written"
    ):
        goods.merge(SPEC.name, rows(pa.int32(), [1], [9]))
    assert column(goods, "version") == [1, 1, 1]


def test_old_files_are_read_through_the_new_shape(goods: TableManager, work: Path) -> None:
    goods.evolve(SPEC.name, RenameColumn("price", "cost"))
    goods.merge(
        SPEC.name, pa.table({"id": pa.array([1], pa.int32()), "version": pa.array([2], pa.int32()), "cost": [1.5]})
    )
    assert goods.lazy(SPEC.name).sort("id").collect()["cost"].to_list() == [1.5, None, None]
