"""Tables by name, over every kind of catalog."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import And, EqualTo, GreaterThan, In
from pyiceberg.io import FileIO
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.types import StringType

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError, TableNotFoundError
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.model.tables import PROCESSED_NOTES
from pkm_pipelines.query.sql import load_extension
from pkm_pipelines.storage import iceberg
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_register import put
from pkm_pipelines.storage.iceberg_schema import ROW_GROUP_BYTES, TARGET_FILE_BYTES
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, Place, contents, event, thing, write


@pytest.fixture
def manager(store: IcebergStore) -> TableManager:
    manager = TableManager(store)
    manager.ensure(STATE)
    manager.ensure(LOG)
    return manager


def test_a_table_is_made_once_and_found_again(store: IcebergStore) -> None:
    assert not store.exists(STATE.name)
    assert store.names() == []
    first = store.ensure(STATE)
    second = store.ensure(STATE)
    assert first.metadata.table_uuid == second.metadata.table_uuid
    assert store.exists(STATE.name)
    assert not store.exists("silver.others")
    assert not store.exists("elsewhere.things")
    store.ensure(LOG)
    assert store.names() == [LOG.name, STATE.name]


def test_no_table_is_made_over_one_that_the_catalog_has_lost(manager: TableManager) -> None:
    store = manager.iceberg
    write(manager, STATE, [thing("a", 1)])
    location = store.load(STATE.name).metadata_location
    store.catalog.drop_table(STATE.name)
    with pytest.raises(StoreError, match="`pkm warehouse rebuild-catalog` takes it back") as refused:
        store.ensure(STATE)
    assert location in str(refused.value)
    assert store.names() == [LOG.name]
    put(store, STATE.name, location)
    assert contents(manager, STATE)["a"]["value"] == 1


def test_an_empty_table_that_was_dropped_is_made_again(store: IcebergStore) -> None:
    first = store.ensure(STATE).metadata.table_uuid
    store.catalog.drop_table(STATE.name)
    assert store.ensure(STATE).metadata.table_uuid != first


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_creation_that_was_killed_is_made_up_for(
    local: Place, monkeypatch: pytest.MonkeyPatch, is_torn: bool
) -> None:
    """It had written its metadata file, or begun to, and the catalog has not heard of it."""
    write_metadata = SqlCatalog._write_metadata  # pyright: ignore[reportPrivateUsage]

    def write_and_die(metadata: TableMetadata, io: FileIO, location: str) -> None:
        write_metadata(metadata, io, location)
        if is_torn:
            Path(location.removeprefix("file://")).write_text('{"location":')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "_write_metadata", staticmethod(write_and_die))
        with pytest.raises(KeyboardInterrupt):
            local.open().ensure(STATE)
    assert local.open().names() == []
    manager = TableManager(local.open())
    manager.ensure(STATE)
    write(manager, STATE, [thing("a", 1)])
    assert contents(manager, STATE).keys() == {"a"}


def test_a_slow_creator_finds_the_table_of_a_quick_one(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked for the table, and only then the other one makes it and writes to it."""
    quick = TableManager(local.open())
    left = iceberg.table_left

    def look(*arguments: Any) -> str | None:
        monkeypatch.undo()
        quick.ensure(STATE)
        write(quick, STATE, [thing("a", 1)])
        return left(*arguments)

    monkeypatch.setattr(iceberg, "table_left", look)
    found = local.open().ensure(STATE)
    assert found.metadata.table_uuid == quick.iceberg.load(STATE.name).metadata.table_uuid


TEXT = Column(1, "id", pa.string(), "")
NUMBER = Column(2, "n", pa.int64(), "")
LIST = Column(3, "l", pa.list_(pa.string()), "")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"table": "a.b"}, "'a.b' is no name for a table"),
        ({"table": ".."}, "'..' is no name for a table"),
        ({"table": ""}, "'' is no name for a table"),
        ({"table": "a#b"}, "'a#b' is no name for a table"),
        ({"layer": ""}, "'' is no name for a layer"),
        ({"key": ("nope",)}, r"no column 'nope' for its key \(there are id, n, l\)"),
        ({"order": ("nope",)}, "no column 'nope' for its order"),
        ({"determined": ("nope",)}, "no column 'nope' for its determined columns"),
        ({"sort": ("nope",)}, "no column 'nope' for its sort order"),
        ({"partition": (PartitionField("nope", "identity"),)}, "no column 'nope' for its partitioning"),
        ({"key": ("id", "id")}, "its key names column 'id' twice"),
        ({"key": ("l",)}, "values of list<string> have no order, so it cannot be in its key"),
        ({"columns": (TEXT, Column(2, "a,b", pa.string(), "")), "key": ("a,b",)}, "'a,b' cannot be in its key with a"),
        ({"columns": (TEXT, Column(2, "id", pa.string(), ""))}, "two columns have the name 'id'"),
        ({"columns": (TEXT, Column(1, "n", pa.string(), ""))}, "two columns have the id 1"),
        ({"columns": (TEXT, Column(0, "n", pa.string(), ""))}, "column n has the id 0; ids begin at 1"),
        ({"columns": (), "key": ()}, "it has no columns"),
        ({"partition": (PartitionField("id", "month"),)}, "column id: it is string and cannot be partitioned by month"),
        ({"partition": (PartitionField("id", "quarter"),)}, "'quarter' is no partitioning; there are identity, bucket"),
        ({"partition": (PartitionField("id", "bucket"),)}, "'bucket' is no partitioning"),
        ({"partition": (PartitionField("id", "bucket[0]"),)}, "'bucket.0.' is no partitioning"),
        ({"partition": (PartitionField("id", "truncate[0]"),)}, "'truncate.0.' is no partitioning"),
        ({"partition": (PartitionField("id", "void"),)}, "'void' is no partitioning"),
        (
            {"partition": (PartitionField("id", "bucket[2]"), PartitionField("id", "bucket[4]"))},
            r"partitioned by bucket\[2\] and by bucket\[4\]; one of them is enough",
        ),
        (
            {
                "columns": (TEXT, Column(2, "id_bucket", pa.string(), "")),
                "partition": (PartitionField("id", "bucket[2]"),),
            },
            "is called id_bucket, as a column is",
        ),
    ],
)
def test_a_table_that_could_not_be_written_to_is_not_made(local: Place, wrong: dict[str, Any], words: str) -> None:
    spec = TableSpec("silver", "odd", "", "state", (TEXT, NUMBER, LIST), ("id",))
    manager = TableManager(local.open())
    with pytest.raises(StoreError, match=words):
        manager.create(replace(spec, **wrong))
    assert manager.iceberg.names() == []
    manager.create(spec)


def test_a_missing_table_is_named(store: IcebergStore) -> None:
    for ask in (store.load, store.snapshot_id, store.scan):
        with pytest.raises(TableNotFoundError, match=r"silver\.things"):
            ask(STATE.name)


def test_an_empty_table_is_read_as_no_rows(manager: TableManager) -> None:
    assert manager.iceberg.snapshot_id(STATE.name) is None
    found = manager.read(STATE.name).read_all()
    assert found.num_rows == 0
    assert found.schema.equals(STATE.arrow)


def test_rows_come_back_as_they_were_written(manager: TableManager) -> None:
    rows = [
        thing(
            "a", 1, group="g", names=["x", "ÿ", None], parts=[{"name": "p", "size": 0.5}, {"name": None, "size": None}]
        ),
        thing("b", None, group=None, names=[], parts=[]),
        thing("c", -(2**63), names=None, parts=None),
    ]
    write(manager, STATE, rows)
    found = manager.read(STATE.name).read_all()
    assert found.schema.equals(STATE.arrow)
    assert [field.nullable for field in found.schema] == [field.nullable for field in STATE.arrow]
    wanted = {row["id"]: {name: row.get(name) for name in STATE.arrow.names} for row in rows}
    assert contents(manager, STATE) == wanted


def test_columns_come_in_the_order_asked_for(manager: TableManager) -> None:
    write(manager, STATE, [thing("a", 1, lsn=7, names=["n"])])
    found = manager.read(STATE.name, columns=["lsn", "names", "id"]).read_all()
    assert found.column_names == ["lsn", "names", "id"]
    assert found.to_pylist() == [{"lsn": 7, "names": ["n"], "id": "a"}]
    with pytest.raises(StoreError, match="no column 'nope'"):
        manager.read(STATE.name, columns=["id", "nope"])


def test_filters_and_limits(manager: TableManager) -> None:
    write(manager, STATE, [thing(f"t{i:03}", i, group="even" if i % 2 == 0 else "odd") for i in range(200)])

    def values(**how: object) -> list[int]:
        return sorted(manager.read(STATE.name, columns=["value"], **how).read_all()["value"].to_pylist())  # type: ignore[arg-type] # any of them

    assert values(row_filter=EqualTo("group", "even")) == list(range(0, 200, 2))
    assert values(row_filter=In("id", {"t003", "t150", "none"})) == [3, 150]
    assert values(row_filter=And(GreaterThan("value", 190), EqualTo("group", "odd"))) == [191, 193, 195, 197, 199]
    assert len(values(limit=7)) == 7
    assert len(values(limit=1000)) == 200
    assert values(limit=0) == []
    assert len(values(row_filter=EqualTo("group", "even"), limit=3)) == 3


def test_every_state_of_the_past_can_be_read(manager: TableManager) -> None:
    before = dt.datetime.now(dt.UTC)
    time.sleep(0.002)
    moments: list[tuple[int, dt.datetime, int]] = []
    for value in range(4):
        result = write(manager, STATE, [thing("a", value, lsn=value)])
        committed = manager.history(STATE.name)[0].committed_at
        assert result.snapshot_id is not None
        moments.append((result.snapshot_id, committed, value))
    for snapshot_id, committed, value in moments:
        assert contents(manager, STATE, snapshot_id=snapshot_id)["a"]["value"] == value
        assert contents(manager, STATE, as_of=committed)["a"]["value"] == value
    assert contents(manager, STATE, as_of=dt.datetime.now(dt.UTC))["a"]["value"] == 3
    with pytest.raises(SnapshotNotFoundError, match="no snapshot as of"):
        manager.read(STATE.name, as_of=before)
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 12345"):
        manager.read(STATE.name, snapshot_id=12345)
    with pytest.raises(ValueError, match="no time zone"):
        manager.read(STATE.name, as_of=committed.replace(tzinfo=None))


def test_moments_of_snapshots_increase_however_quick_they_come(manager: TableManager) -> None:
    for value in range(12):
        write(manager, STATE, [thing("a", value, lsn=value)])
    times = [version.committed_at for version in manager.history(STATE.name)]
    assert times == sorted(set(times), reverse=True)


def test_as_of_says_so_when_the_state_of_that_moment_has_expired(manager: TableManager) -> None:
    for value in range(4):
        write(manager, STATE, [thing("a", value, lsn=value)])
    history = manager.history(STATE.name)[::-1]
    table = manager.iceberg.load(STATE.name)
    table.maintenance.expire_snapshots().by_id(history[1].snapshot_id).commit()
    assert contents(manager, STATE, as_of=history[0].committed_at)["a"]["value"] == 0
    assert contents(manager, STATE, as_of=history[2].committed_at)["a"]["value"] == 2
    manager.tag(STATE.name, "keep", history[2].snapshot_id)
    with pytest.raises(SnapshotNotFoundError, match="has expired"):
        manager.read(STATE.name, as_of=history[1].committed_at)
    with pytest.raises(SnapshotNotFoundError, match="has expired"):
        manager.read(STATE.name, as_of=history[0].committed_at + dt.timedelta(milliseconds=1))


def test_as_of_follows_rollbacks(manager: TableManager) -> None:
    for value in range(3):
        write(manager, STATE, [thing("a", value, lsn=value)])
    first, _, last = (version.snapshot_id for version in manager.history(STATE.name)[::-1])
    at_last = manager.history(STATE.name)[0].committed_at
    time.sleep(0.005)
    manager.rollback(STATE.name, first)
    assert contents(manager, STATE)["a"]["value"] == 0
    assert contents(manager, STATE, as_of=at_last)["a"]["value"] == 2
    assert contents(manager, STATE, snapshot_id=last)["a"]["value"] == 2
    assert contents(manager, STATE, as_of=dt.datetime.now(dt.UTC))["a"]["value"] == 0


def test_a_read_holds_one_file_at_a_time(tables: TableManager) -> None:
    text = "x" * 100_000
    rows = [thing(f"t{i:04}", i, names=[text]) for i in range(900)]
    write(tables, STATE, rows)
    assert sum(len(row["names"][0]) for row in rows) > TARGET_FILE_BYTES
    before = pa.total_allocated_bytes()
    peak = count = 0
    for batch in tables.read(STATE.name):
        peak = max(peak, pa.total_allocated_bytes() - before)
        count += batch.num_rows
    assert count == 900
    assert peak < 3 * ROW_GROUP_BYTES


def test_a_schema_that_grew_reads_old_files_and_projects_new_columns(tables: TableManager) -> None:
    write(tables, STATE, [thing("old", 1)])
    with tables.iceberg.load(STATE.name).update_schema() as update:
        update.add_column("extra", StringType())
    write(tables, STATE, [thing("new", 2)])
    found = tables.read(STATE.name, columns=["id", "extra", "parts"]).read_all()
    assert sorted(found.to_pylist(), key=lambda row: row["id"]) == [
        {"id": "new", "extra": None, "parts": None},
        {"id": "old", "extra": None, "parts": None},
    ]
    assert contents(tables, STATE, columns=STATE.arrow.names).keys() == {"old", "new"}


def test_other_engines_read_the_same_rows(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    write(tables, STATE, [thing(f"t{i}", i, names=[str(i)]) for i in range(300)])
    write(tables, STATE, [thing("t1", 1000, lsn=1), thing("new", 5)])
    write(tables, STATE, delete_keys=pa.table({"id": ["t7"]}))
    wanted = {key: (row["value"], row["names"]) for key, row in contents(tables, STATE).items()}
    assert len(wanted) == 300
    table = tables.iceberg.load(STATE.name)

    frame = pl.scan_iceberg(table).select("id", "value", "names").collect()
    assert {row[0]: row[1:] for row in frame.rows()} == wanted

    own = table.scan().to_arrow().to_pylist()
    assert {row["id"]: (row["value"], row["names"]) for row in own} == wanted

    with duckdb.connect() as connection:
        for extension in ("avro", "iceberg"):
            load_extension(connection, extension)
        query = "SELECT id, value, names FROM iceberg_scan(?)"
        found = connection.execute(query, [table.metadata_location]).fetchall()
    assert {row[0]: row[1:] for row in found} == wanted


def test_a_store_is_opened_anew_in_a_child_process(tables: TableManager) -> None:
    store = tables.iceberg
    catalog = store.catalog
    assert store.catalog is catalog
    store._process -= 1  # as after a fork
    assert store.catalog is not catalog


def test_the_projects_own_tables_are_made_on_demand(store: IcebergStore) -> None:
    manager = TableManager(store)
    assert manager.spec(PROCESSED_NOTES.name) == PROCESSED_NOTES
    assert store.exists(PROCESSED_NOTES.name)
    with pytest.raises(TableNotFoundError):
        manager.spec("silver.nothing")


def test_events_of_a_log_are_partitioned_by_month(manager: TableManager) -> None:
    days = [dt.date(2026, 1, 31), dt.date(2026, 2, 1), dt.date(2026, 2, 28)]
    write(manager, LOG, [event(f"c{i}", day=day) for i, day in enumerate(days)], "append")
    tasks = list(manager.iceberg.load(LOG.name).scan().plan_files())
    assert sorted(task.file.record_count for task in tasks) == [1, 2]
