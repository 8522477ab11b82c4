"""The manager's own interface: what writing, reading and the verbs on versions say and refuse."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.expressions import GreaterThan

from pkm_pipelines.model.errors import (
    CommitConflictError,
    SnapshotNotFoundError,
    StoreError,
    TableNotFoundError,
)
from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.storage import iceberg_update
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import DAY, LOG, STATE, Place, contents, event, file_paths, thing, write
from tests.support.position_deletes import delete_positions

# A user's own table: no key, a name of their own.
OWN = TableSpec(
    layer="gold",
    table="own",
    doc="Somebody's own table.",
    kind="log",
    key=(),
    partition=(PartitionField("day", "identity"),),
    columns=(
        Column(1, "day", pa.date32(), "When"),
        Column(2, "n", pa.int64(), "A number"),
        Column(3, "at", pa.timestamp("us", tz="UTC"), "A moment"),
    ),
)
DAYS = [DAY + dt.timedelta(days=number) for number in range(4)]


@pytest.fixture
def own(tables: TableManager) -> TableManager:
    tables.create(OWN)
    tables.append(OWN.name, pa.table({"day": [day for day in DAYS for _ in range(3)], "n": list(range(12))}))
    return tables


def numbers(tables: TableManager, **how: Any) -> list[int]:
    return sorted(tables.read(OWN.name, columns=["n"], **how).read_all()["n"].to_pylist())


def things(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), STATE.arrow)


def test_a_table_is_created_once(tables: TableManager) -> None:
    tables.create(OWN)
    with pytest.raises(StoreError, match=r"there is a table gold\.own already"):
        tables.create(OWN)
    with pytest.raises(TableNotFoundError):
        tables.append("gold.nothing", pa.table({"n": [1]}))


def test_a_users_table_is_what_it_says_of_itself(own: TableManager, local: Place) -> None:
    another = TableManager(local.open())
    assert another.spec(OWN.name) == OWN
    assert another.append(OWN.name, pl.DataFrame({"n": [100]})).rows_added == 1
    assert another.merge(STATE.name, things(thing("a", 1))).rows_added == 1
    assert another.delete(STATE.name, pa.table({"id": ["a"]})).rows_deleted == 1


def test_frames_of_all_kinds_are_taken(own: TableManager) -> None:
    own.append(OWN.name, pl.LazyFrame({"n": [100]}))
    own.append(OWN.name, pa.table({"n": [101]}).to_reader())
    own.append(OWN.name, pa.table({"n": [102]}).to_batches()[0])
    assert numbers(own, row_filter="n >= 100") == [100, 101, 102]
    with pytest.raises(StoreError, match="a table is an Arrow table"):
        own.append(OWN.name, [1, 2])


def test_reading(own: TableManager) -> None:
    first = own.iceberg.snapshot_id(OWN.name)
    assert first is not None
    own.tag(OWN.name, "then", first)
    own.append(OWN.name, pa.table({"n": [100]}))
    assert len(numbers(own)) == 13
    assert len(numbers(own, snapshot_id=first)) == len(numbers(own, tag="then")) == 12
    assert len(numbers(own, as_of=own.history(OWN.name)[1].committed_at)) == 12
    assert numbers(own, row_filter="n > 9 and n < 50") == [10, 11]
    assert numbers(own, row_filter=GreaterThan("n", 99)) == [100]
    assert len(numbers(own, limit=5)) == 5
    with pytest.raises(StoreError, match=r"the filter 'n >' cannot be read at character"):
        numbers(own, row_filter="n >")
    with pytest.raises(StoreError, match="the filter does not fit"):
        numbers(own, row_filter="m > 5")
    with pytest.raises(SnapshotNotFoundError, match="of one of them"):
        numbers(own, tag="then", snapshot_id=first)


def test_a_lazy_frame_stays_at_its_snapshot(own: TableManager) -> None:
    frame = own.lazy(OWN.name)
    own.append(OWN.name, pa.table({"n": [100]}))
    assert frame.select(pl.len()).collect().item() == 12
    assert frame.filter(pl.col("n") > 9).select("n").collect()["n"].to_list() == [10, 11]
    assert own.lazy(OWN.name, columns=["n"], row_filter="n = 100").collect().to_dict(as_series=False) == {"n": [100]}
    assert own.lazy(OWN.name, columns=["n"]).collect().columns == ["n"]


def test_deleting_by_a_filter(own: TableManager) -> None:
    before = own.iceberg.snapshot_id(OWN.name)
    files = file_paths(own, OWN)
    assert own.delete(OWN.name, where="n = 4 or n = 5").rows_deleted == 2
    assert len(file_paths(own, OWN) & files) == 3, "only the file that holds them is written again"
    assert own.delete(OWN.name, where=Slice("day", first=DAYS[2])).rows_deleted == 6
    assert numbers(own) == [0, 1, 2, 3]
    assert own.delete(OWN.name, where="n > 1000").written is False
    assert len(numbers(own, snapshot_id=before)) == 12
    with pytest.raises(StoreError, match="say which rows"):
        own.delete(OWN.name)
    with pytest.raises(StoreError, match="no key to merge or delete by"):
        own.delete(OWN.name, pa.table({"n": [1]}))


def test_rows_without_a_value_match_no_filter(own: TableManager) -> None:
    own.append(OWN.name, pa.table({"day": pa.array([DAYS[0]]), "n": pa.nulls(1, pa.int64())}))
    own.delete(OWN.name, where="n >= 0")
    assert own.read(OWN.name).read_all()["n"].to_pylist() == [None]


def test_a_partition_goes_without_being_read(own: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in file_paths(own, OWN):
        own.iceberg.load(OWN.name).io.delete(path)
    assert own.delete(OWN.name, where=Slice("day", first=DAYS[1], before=DAYS[2])).rows_deleted == 3


def test_deletes_by_position_are_not_counted_twice(own: TableManager) -> None:
    delete_positions(own, OWN, "n", {3, 4})  # pyright: ignore[reportArgumentType] # the helper compares values of any kind
    assert own.delete(OWN.name, where="n <= 5").rows_deleted == 4
    assert numbers(own) == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_deleting_as_the_table_is_set(own: TableManager, mode: Any) -> None:
    own.set_mode(OWN.name, mode)
    files = file_paths(own, OWN)
    for n in (3, 4, 9):
        assert own.delete(OWN.name, where=f"n = {n}").rows_deleted == 1
    assert numbers(own) == [0, 1, 2, 5, 6, 7, 8, 10, 11]
    left = file_paths(own, OWN) & files
    found = own.explain(OWN.name)
    assert (len(left), found.delete_files) == {"copy-on-write": (2, 0), "merge-on-read": (4, 3)}.get(
        mode, (len(left), found.delete_files)
    )
    assert own.delete(OWN.name, where="n = 5").rows_deleted == 1
    if mode == "merge-on-read":
        assert own.explain(OWN.name).decisions[0].reason.endswith("0 marked, 1 dropped whole")
    assert own.stats(OWN.name).rows == 8


def test_replacing_in_one_snapshot(own: TableManager) -> None:
    snapshots = len(own.history(OWN.name))
    result = own.replace(OWN.name, pa.table({"day": [DAYS[0]], "n": [50]}), "n < 4")
    assert (result.rows_added, result.rows_deleted) == (1, 4)
    assert len(own.history(OWN.name)) == snapshots + 1
    assert numbers(own) == [4, 5, 6, 7, 8, 9, 10, 11, 50]
    own.replace(OWN.name, pa.table({"day": [DAYS[1]], "n": [60]}), Slice("day", first=DAYS[1], before=DAYS[2]))
    assert numbers(own) == [6, 7, 8, 9, 10, 11, 50, 60]
    own.replace(OWN.name, pa.table({"n": [1]}))
    assert numbers(own) == [1]


def test_replacing_where_there_is_a_key(tables: TableManager) -> None:
    tables.merge(STATE.name, things(thing("a", 1, group="g"), thing("b", 1, group="g"), thing("c", 1, group="h")))
    tables.replace(STATE.name, things(thing("a", 2, group="g")), Slice("group", ("g",)))
    assert {key: row["value"] for key, row in contents(tables, STATE).items()} == {"a": 2, "c": 1}
    with pytest.raises(StoreError, match="must be a Slice of one column"):
        tables.replace(STATE.name, things(), "value = 1")


def test_deleting_what_was_logged_adds_nothing(tables: TableManager) -> None:
    first = write(tables, LOG, [event("a"), event("b", 1)], "append").snapshot_id
    write(tables, LOG, [event("c", 2)], "append")
    tables.delete(LOG.name, where="value = 1")
    assert tables.added(LOG.name, first).read_all()["change_id"].to_pylist() == ["c"]


def test_branches(store: IcebergStore) -> None:
    tables = TableManager(store)
    tables.create(STATE)
    with pytest.raises(SnapshotNotFoundError, match="no snapshot yet"):
        tables.branch(STATE.name, "try")
    first = tables.merge(STATE.name, things(thing("a", 1))).snapshot_id
    assert tables.branch(STATE.name, "try") == first
    tables.merge(STATE.name, things(thing("b", 1)), branch="try")
    tables.delete(STATE.name, where="id = 'a'", branch="try")
    assert set(contents(tables, STATE)) == {"a"}
    assert set(contents(tables, STATE, tag="try")) == {"b"}
    head = tables.branches(STATE.name)["try"]
    assert tables.publish(STATE.name, "try") == tables.publish(STATE.name, "try") == head
    assert set(contents(tables, STATE)) == {"b"}

    tables.branch(STATE.name, "late", first)
    tables.merge(STATE.name, things(thing("c", 1)), branch="late")
    before = tables.iceberg.snapshot_id(STATE.name)
    with pytest.raises(CommitConflictError, match=r"main has moved since branch 'late' left it"):
        tables.publish(STATE.name, "late")
    assert tables.iceberg.snapshot_id(STATE.name) == before

    for name in ("late", "main"):
        with pytest.raises(StoreError, match="already"):
            tables.branch(STATE.name, name)
    with pytest.raises(StoreError, match="is a branch, and a tag cannot"):
        tables.tag(STATE.name, "late", before or 0)
    tables.untag(STATE.name, "late")
    assert set(tables.branches(STATE.name)) == {"main", "try", "late"}
    tables.drop_branch(STATE.name, "late")
    tables.drop_branch(STATE.name, "late")
    assert set(tables.branches(STATE.name)) == {"main", "try"}
    with pytest.raises(StoreError, match="cannot be dropped"):
        tables.drop_branch(STATE.name, "main")
    with pytest.raises(SnapshotNotFoundError, match="no branch 'late'"):
        tables.publish(STATE.name, "late")


def test_a_branch_that_grows_while_it_is_published(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.merge(STATE.name, things(thing("a", 1)))
    tables.branch(STATE.name, "try")
    tables.merge(STATE.name, things(thing("b", 1)), branch="try")
    monkeypatch.setattr(iceberg_update, "pause", lambda _: None)
    catalog = tables.iceberg.catalog
    commit = catalog.commit_table

    def grow_first(*args: Any) -> Any:
        monkeypatch.setattr(catalog, "commit_table", commit)
        tables.merge(STATE.name, things(thing("c", 1)), branch="try")
        return commit(*args)

    monkeypatch.setattr(catalog, "commit_table", grow_first)
    tables.publish(STATE.name, "try")
    assert set(contents(tables, STATE)) == {"a", "b", "c"}


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_the_mode_is_the_tables_own(tables: TableManager, mode: Any) -> None:
    flat = replace(STATE, table="flat", partition=())
    tables.create(flat)
    tables.set_mode(flat.name, mode)
    tables.set_mode(flat.name, mode)
    for lsn in (0, 1):
        tables.merge(flat.name, things(*(thing(f"t{i}", lsn, lsn=lsn) for i in range(100 if not lsn else 3))))
    found = tables.explain(flat.name)
    assert found.mode == mode
    assert {row["value"] for row in contents(tables, flat).values()} == {0, 1}
    assert len(found.decisions) == 2
    assert found.decisions[0].rows == 3
    assert found.decisions[0].reason
    assert (found.delete_files > 0) == (found.decisions[0].mode == "merge-on-read")
    assert tables.explain(flat.name, 1).decisions == found.decisions[:1]
    assert tables.history(flat.name)[0].total_rows == 100
    properties = tables.iceberg.load(flat.name).properties
    assert (properties["write.merge.mode"] == "copy-on-write") == (mode == "copy-on-write")


def test_stats(own: TableManager) -> None:
    moment = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
    own.append(OWN.name, pa.table({"day": [DAYS[0]], "n": pa.nulls(1, pa.int64()), "at": [moment]}))
    delete_positions(own, OWN, "n", {3, 4})  # pyright: ignore[reportArgumentType] # the helper compares values of any kind
    stats = own.stats(OWN.name)
    assert (stats.rows, stats.deleted_rows, stats.files, stats.delete_files) == (11, 2, 5, 1)
    assert stats.rows == own.read(OWN.name).read_all().num_rows
    assert (stats.snapshots, stats.snapshot_id) == (3, own.iceberg.snapshot_id(OWN.name))
    assert stats.bytes > 0
    assert stats.metadata_bytes > 0
    parts = {part.values["day"]: (part.rows, part.files, part.delete_files) for part in stats.partitions}
    assert parts == {
        DAYS[0].isoformat(): (4, 2, 0),
        DAYS[1].isoformat(): (3, 1, 1),
        DAYS[2].isoformat(): (3, 1, 0),
        DAYS[3].isoformat(): (3, 1, 0),
    }
    columns = {one.name: one for one in stats.columns}
    assert (columns["day"].lower, columns["day"].upper, columns["day"].nulls) == (DAYS[0], DAYS[3], 0)
    assert (columns["at"].lower, columns["at"].upper, columns["at"].nulls) == (moment, moment, 12)
    assert (columns["n"].lower, columns["n"].upper, columns["n"].nulls) == (None, None, None), "nothing is kept of it"


def test_stats_of_an_empty_table(tables: TableManager) -> None:
    stats = tables.stats(STATE.name)
    assert (stats.rows, stats.files, stats.partitions, stats.snapshot_id) == (0, 0, (), None)
    assert tables.explain(STATE.name).decisions == ()
