"""Telling a table's newest metadata file from those of commits that never were, when the catalog is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_rebuild import FoundTable, find_tables
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, event, thing, write
from tests.support.warehouses import make_over


class KilledError(Exception):
    """The process ended here."""


@pytest.fixture
def store(tables: TableManager) -> IcebergStore:
    write(tables, LOG, [event("e1")], mode="append")
    write(tables, STATE, [thing("a", 1)])
    write(tables, STATE, [thing("b", 2)])
    return tables.iceberg


def killed_before_the_catalog(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that has written all of its files, and then its process ends before the catalog hears of it."""
    write_metadata = SqlCatalog._write_metadata  # pyright: ignore[reportPrivateUsage]

    def write_and_die(*arguments: object, **named: object) -> None:
        write_metadata(*arguments, **named)  # pyright: ignore[reportArgumentType]
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "_write_metadata", staticmethod(write_and_die))
        with pytest.raises(KilledError):
            write(tables, STATE, [thing("never", 0)])


def state_of(store: IcebergStore, **known: object) -> FoundTable:
    (found,) = [table for table in find_tables(store, **{"known": {}, **known}) if table.name == STATE.name]  # pyright: ignore[reportArgumentType]
    return found


def test_the_newest_file_is_found_and_older_ones_are_not_looked_at(store: IcebergStore) -> None:
    found = find_tables(store, {})
    assert [table.name for table in found] == ["bronze.events", "silver.edges", "silver.things"]
    assert {table.name: table.metadata_location for table in found} == {
        name: store.load(name).metadata_location for name in store.names()
    }
    assert all(len(table.candidates) == 1 for table in found)
    snapshot = store.snapshot_id(STATE.name)
    assert snapshot is not None
    assert not state_of(store).confirmed
    assert state_of(store, known={STATE.name: {snapshot}}).confirmed


def test_one_of_two_that_are_whole_is_a_doubt_until_something_names_it(
    store: IcebergStore, tables: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_catalog(tables, monkeypatch)
    write(tables, STATE, [thing("c", 3)])
    right, snapshot = store.load(STATE.name).metadata_location, store.snapshot_id(STATE.name)
    assert snapshot is not None
    found = state_of(store)
    assert "2 metadata files have the number" in found.doubt
    assert len(found.candidates) == 2
    assert found.metadata_location == ""

    told = state_of(store, known={STATE.name: {snapshot}})
    assert (told.metadata_location, told.confirmed, told.doubt) == (right, True, "")
    chosen = state_of(store, choices={STATE.name: right})
    assert chosen.metadata_location == right
    with pytest.raises(StoreError, match="is none of its candidates"):
        state_of(store, choices={STATE.name: f"{right}.other"})

    write(tables, LOG, [event("e2")], mode="append", watermarks={STATE.name: snapshot})
    # Reading it has pinned it, which is a commit on top: as if that one's file were lost too.
    Path(store.load(STATE.name).metadata_location.removeprefix("file://")).unlink()
    assert state_of(store).metadata_location == right, "another table has read it"


def test_a_commit_on_top_settles_it(store: IcebergStore, tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_before_the_catalog(tables, monkeypatch)
    write(tables, STATE, [thing("c", 3)])
    write(tables, STATE, [thing("d", 4)])
    assert state_of(store).metadata_location == store.load(STATE.name).metadata_location
    assert state_of(store).doubt == ""


def test_a_file_whose_writer_cleaned_up_was_not_taken(
    store: IcebergStore, tables: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = store.load(STATE.name).metadata_location
    killed_before_the_catalog(tables, monkeypatch)
    (lost,) = [one for one in state_of(store).candidates if one.metadata_location != right]
    metadata = json.loads(Path(lost.metadata_location.removeprefix("file://")).read_text())
    (snapshot,) = [one for one in metadata["snapshots"] if one["snapshot-id"] == metadata["current-snapshot-id"]]
    Path(snapshot["manifest-list"].removeprefix("file://")).unlink()
    found = state_of(store)
    assert found.metadata_location == right
    assert [one.why_not != "" for one in found.candidates] == [True, False]


def test_a_torn_file_is_passed_over(store: IcebergStore) -> None:
    right = store.load(STATE.name).metadata_location
    folder = Path(right.removeprefix("file://")).parent
    (folder / "00099-3f2504e0-4f89-11d3-9a0c-0305e82c3301.metadata.json").write_text('{"format-ver')
    found = state_of(store)
    assert found.metadata_location == right
    assert "cannot be read" in found.candidates[0].why_not


def test_files_that_differ_in_a_tag_only_are_no_doubt(
    store: IcebergStore, tables: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = store.snapshot_id(STATE.name)
    assert snapshot is not None
    stale = Path(store.load(STATE.name).metadata_location.removeprefix("file://"))
    tables.tag(STATE.name, "cut-1", snapshot)
    right = store.load(STATE.name).metadata_location
    number = Path(right).name.partition("-")[0]
    (stale.parent / f"{number}-3f2504e0-4f89-11d3-9a0c-0305e82c3301.metadata.json").write_bytes(stale.read_bytes())
    assert state_of(store).metadata_location == right


@pytest.mark.parametrize("commits", [0, 1, 5])
def test_a_table_that_was_made_anew_in_the_same_place_is_noticed(
    store: IcebergStore, tables: TableManager, commits: int
) -> None:
    """Also when it has come further than the other one, whose files are then of lower numbers."""
    old = store.load(STATE.name).metadata_location
    make_over(store, STATE)
    for number in range(commits):
        write(tables, STATE, [thing("new", number, number)])
    found = state_of(store)
    assert "one table was made here after another one" in found.doubt
    right = store.load(STATE.name).metadata_location
    assert {one.metadata_location: one.snapshots for one in found.candidates} == {old: 2, right: commits}
    for one in (old, right):
        assert state_of(store, choices={STATE.name: one}).metadata_location == one


def test_what_a_killed_creation_left_is_no_doubt(store: IcebergStore, tables: TableManager) -> None:
    right = store.load(STATE.name).metadata_location
    make_over(store, STATE)
    left = Path(store.load(STATE.name).metadata_location.removeprefix("file://"))
    then = left.stat().st_mtime - 3600
    os.utime(left, (then, then))
    assert (state_of(store).metadata_location, state_of(store).doubt) == (right, "")


def test_a_warehouse_that_was_copied_by_hand_is_not_registered(store: IcebergStore, work: Path) -> None:
    (work / "warehouse").rename(work / "elsewhere")
    moved = IcebergStore(store.warehouse.__class__((work / "elsewhere").as_uri()), f"sqlite:///{work / 'b.db'}")
    found = state_of(moved)
    assert found.metadata_location == ""
    assert "move the warehouse with pkm" in found.doubt
