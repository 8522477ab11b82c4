"""Orphans are found and deleted, and nothing else is."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg_listing import References, TableFolder, store_path
from pkm_pipelines.tables import orphans
from pkm_pipelines.tables.expire import Keeping, expire
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.orphans import Orphans
from tests.support.iceberg import LOG, STATE, Place, contents, event, thing, write
from tests.support.maintenance import assert_whole, stored
from tests.support.position_deletes import delete_positions
from tests.support.warehouses import make_over

NOW = dt.timedelta(0)


@pytest.fixture
def manager(place: Place) -> TableManager:
    found = TableManager(place.open())
    for spec in (STATE, LOG):
        found.ensure(spec)
    for number in range(4):
        write(found, STATE, [thing("id1", number, number), thing(f"more{number}")])
    return found


def put(table: Table, name: str) -> str:
    """A file in a table's folder that nothing refers to."""
    url = f"{table.location()}/{name}"
    with table.io.new_output(url).create() as stream:
        stream.write(b"nobody's")
    return store_path(table.io, url)


def remove(tables: TableManager, age: dt.timedelta = NOW, spared: tuple[str, ...] = ()) -> set[str]:
    """Remove the orphans of the state table; returns their paths."""
    time.sleep(0.01)
    found = Orphans(tables.iceberg, STATE.name, age, spared)
    return {file.path for file in found.find() if found.delete(file)}


def test_what_nothing_refers_to_goes(manager: TableManager) -> None:
    table = manager.iceberg.load(STATE.name)
    delete_positions(manager, STATE, "id", {"more1"})
    wanted = {put(table, name) for name in ("data/left.parquet", "metadata/snap-1.avro", "data/a b=c%2Fd/é?.parquet")}
    before = contents(manager, STATE)
    assert remove(manager) >= wanted
    table = manager.iceberg.load(STATE.name)
    assert_whole(table)
    assert contents(manager, STATE) == before
    known = References(table, table.metadata.snapshots)
    assert all(path in known for path in stored(table))
    assert remove(manager) == set()


def test_young_files_may_be_in_use(manager: TableManager) -> None:
    put(manager.iceberg.load(STATE.name), "data/young.parquet")
    assert remove(manager, dt.timedelta(hours=1)) == set()


def test_only_old_ones_of_several(local: Place, tables: TableManager) -> None:
    table = tables.iceberg.load(STATE.name)
    write(tables, STATE, [thing("id1")])
    old, young = put(table, "data/old.parquet"), put(table, "data/young.parquet")
    then = time.time() - 7200
    os.utime(old, (then, then))
    assert remove(tables, dt.timedelta(hours=1)) == {old}
    assert Path(young).exists()


def test_what_an_interrupted_expiry_left_is_found(manager: TableManager) -> None:
    gone = expire(manager.iceberg, STATE.name, lambda _: Keeping())
    assert gone.snapshots
    table = manager.iceberg.load(STATE.name)
    paths = {store_path(table.io, file.path) for part in gone.files for file in part}
    assert remove(manager) == paths
    assert_whole(manager.iceberg.load(STATE.name))


def test_files_in_their_time_of_grace_are_spared(tables: TableManager) -> None:
    table = tables.iceberg.load(STATE.name)
    write(tables, STATE, [thing("id1")])
    put(table, "data/doomed.parquet")
    assert remove(tables, spared=(f"{table.location()}/data/doomed.parquet",)) == set()


def test_other_tables_are_not_touched(tables: TableManager) -> None:
    """Also not where one lies inside the folder of another."""
    write(tables, STATE, [thing("id1")])
    write(tables, LOG, [event("c1")], "append")
    outer = tables.iceberg.load(STATE.name)
    catalog = tables.iceberg.catalog
    inner = catalog.create_table("silver.inner", outer.schema(), location=f"{outer.location()}/inner")
    kept = put(inner, "data/mine.parquet"), put(tables.iceberg.load(LOG.name), "data/mine.parquet")
    gone = put(outer, "innermost/data/left.parquet")
    assert remove(tables) == {gone}
    assert all(Path(path).exists() for path in kept)
    with pytest.raises(StoreError, match=r"does not lie in .*things; it is not deleted"):
        TableFolder(outer).delete(kept[1])


def test_files_of_another_table_in_the_folder_are_no_orphans(manager: TableManager) -> None:
    """One that the catalog has lost, and in whose folder a new one was made."""
    store = manager.iceberg
    lost = store.load(STATE.name)
    make_over(store, STATE)
    write(manager, STATE, [thing("new")])
    for age in (NOW, dt.timedelta(hours=1)):  # its metadata may be younger than most of its data
        with pytest.raises(StoreError, match=r"another table lies in its folder .*rebuild-catalog"):
            remove(manager, age)
    assert_whole(lost)
    assert_whole(store.load(STATE.name))


def test_what_a_creation_left_that_lost_is_an_orphan(manager: TableManager) -> None:
    table = manager.iceberg.load(LOG.name)
    make_over(manager.iceberg, LOG)
    time.sleep(0.01)
    found = Orphans(manager.iceberg, LOG.name, NOW).find()
    assert [file.path for file in found] == [store_path(table.io, table.metadata_location)]


def test_a_file_that_is_committed_while_files_are_listed(
    manager: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer commits after the snapshots were read, and before the folder is listed."""
    late: list[Callable[[], Any]] = [lambda: write(manager, STATE, [thing("late")])]
    plain = TableFolder.files

    def files(self: TableFolder) -> Any:
        if late:
            late.pop()()
            time.sleep(0.01)
        yield from plain(self)

    monkeypatch.setattr(orphans.TableFolder, "files", files)
    remove(manager, dt.timedelta(days=-1))  # so that its files count as old
    assert_whole(manager.iceberg.load(STATE.name))
    assert "late" in contents(manager, STATE)


def test_a_whole_store_is_no_tables_folder(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables.iceberg.load(STATE.name)
    monkeypatch.setattr(type(table), "location", lambda self: "s3://bucket")
    with pytest.raises(StoreError, match="is the whole of a store"):
        TableFolder(table)
