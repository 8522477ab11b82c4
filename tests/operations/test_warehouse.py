"""Owning one's warehouse: moved, registered and rebuilt, over each kind of catalog, and killed in the middle of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.model.errors import (
    CancelledError,
    CommitConflictError,
    SettingsError,
    StoreError,
    TableNotFoundError,
)
from pkm_pipelines.model.progress import CountingProgress
from pkm_pipelines.operations import warehouse
from pkm_pipelines.operations.rebuild import rebuild_catalog
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.operations.warehouse import (
    move_warehouse,
    register_table,
    set_warehouse,
    unregister_table,
)
from pkm_pipelines.storage import iceberg_register
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.location import Location
from tests.support.iceberg import LOG, STATE, Place, contents, local_place, thing, write
from tests.support.s3 import S3Endpoint
from tests.support.warehouses import Moments, check_history, forget_metadata, lakehouse, remove, with_history


@pytest.fixture
def stores(place: Place, work: Path) -> Iterator[Stores]:
    with lakehouse(work, place) as stores:
        yield stores


@pytest.fixture
def local_stores(work: Path) -> Iterator[Stores]:
    with lakehouse(work, local_place(work)) as stores:
        yield stores


@pytest.fixture
def target(place: Place, work: Path, request: pytest.FixtureRequest) -> str:
    """Another warehouse of the same kind."""
    if place.warehouse.startswith("file://"):
        return (work / "moved here").as_uri()
    endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
    return endpoint.location().url


def opened(stores: Stores, url: str) -> IcebergStore:
    """The moved warehouse, as it is after the setting was changed."""
    return IcebergStore(Location(url), stores.settings.catalog)


def test_a_moved_warehouse_is_the_same_without_the_old_one(stores: Stores, target: str) -> None:
    moments = with_history(stores.tables)
    plan = move_warehouse(stores, target, dry_run=True)
    assert [table.table for table in plan.tables] == [LOG.name, STATE.name]
    check_history(stores.iceberg, moments)

    report = move_warehouse(stores, target)
    assert [(table.table, table.rows) for table in report.tables] == [(LOG.name, 5), (STATE.name, 18)]
    assert [(table.files, table.rows) for table in plan.tables] == [
        (table.files, table.rows) for table in report.tables
    ]
    for planned, moved in zip(plan.tables, report.tables, strict=True):
        # The new paths in manifests and delete files are of another length.
        assert moved.bytes / 2 < planned.bytes < moved.bytes * 2
    assert report.tables[1].snapshots >= 2
    assert report.setting == f'warehouse = "{target}"'
    remove(stores.settings.warehouse)
    moved = opened(stores, target)
    check_history(moved, moments)
    with lakehouse(
        stores.settings.home / "after", Place(target, stores.settings.catalog)
    ) as after:  # it goes on where it is
        write(after.tables, STATE, [thing("later", 7, lsn=10)])
        assert contents(after.tables, STATE)["later"]["value"] == 7
        again = move_warehouse(after, f"{target}-2")
        assert len(again.tables) == 2
    check_history(opened(stores, f"{target}-2"), {**moments, **newest(opened(stores, f"{target}-2"))})


def newest(store: IcebergStore) -> Moments:
    snapshot = store.snapshot_id(STATE.name)
    assert snapshot is not None
    from pkm_pipelines.tables.manager import TableManager

    return {snapshot: contents(TableManager(store), STATE)}


def test_from_local_disk_to_s3(local_stores: Stores, s3_endpoint: S3Endpoint) -> None:
    moments = with_history(local_stores.tables)
    target = s3_endpoint.location().url
    move_warehouse(local_stores, target)
    remove(local_stores.settings.warehouse)
    check_history(opened(local_stores, target), moments)


def test_a_move_that_was_stopped_goes_on(stores: Stores, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = with_history(stores.tables)
    stop = threading.Event()

    class StopInTheMiddle(CountingProgress):
        def advance(self, n: int = 1, **counts: int) -> None:
            super().advance(n, **counts)
            stop.set()

    with pytest.raises(CancelledError):
        move_warehouse(stores, target, progress=StopInTheMiddle(stop))
    check_history(stores.iceberg, moments)
    planned = {table.table: table.files for table in move_warehouse(stores, target, dry_run=True).tables}

    class KilledError(Exception):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    # Where a catalog cannot swap the file in one step: after the table was taken out, before it is entered.
    step = "put" if stores.settings.catalog.startswith(("http", "glue")) else "_update"
    with monkeypatch.context() as patch:
        patch.setattr(iceberg_register, step, die)
        with pytest.raises(KilledError):
            move_warehouse(stores, target)
    report = move_warehouse(stores, target)
    assert {*report.already, *(table.table for table in report.tables)} == set(planned)
    copied = {table.table: table.copied_files for table in report.tables}
    assert all(count < report.tables[0].files for name, count in copied.items() if name == report.tables[0].table)
    remove(stores.settings.warehouse)
    check_history(opened(stores, target), moments)


def test_what_is_written_while_it_is_copied_is_moved_too(
    local_stores: Stores, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_history(local_stores.tables)
    target = (work / "moved").as_uri()
    switch = warehouse._try_switch  # pyright: ignore[reportPrivateUsage]
    written: list[str] = []

    def write_and_switch(*arguments: object) -> object:
        if not written:
            written.append("late")
            write(local_stores.tables, STATE, [thing("late", 1, lsn=20)])
        return switch(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(warehouse, "_try_switch", write_and_switch)
    move_warehouse(local_stores, target)
    remove(local_stores.settings.warehouse)
    assert newest(opened(local_stores, target)).popitem()[1]["late"]["value"] == 1


def test_a_table_that_moves_on_at_the_last_moment_is_not_switched(local_stores: Stores, work: Path) -> None:
    with_history(local_stores.tables)
    store = local_stores.iceberg
    old = store.load(STATE.name).metadata_location
    write(local_stores.tables, STATE, [thing("late", 1, lsn=20)])
    with pytest.raises(CommitConflictError, match="written to"):
        iceberg_register.repoint(store, STATE.name, old, f"{old}.other", announce=lambda: None)
    assert "late" in contents(local_stores.tables, STATE)


def test_a_copy_that_is_not_the_same_is_found_before_anything_is_switched(
    local_stores: Stores, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = with_history(local_stores.tables)
    target = (work / "moved").as_uri()
    monkeypatch.setattr(warehouse, "_switch", lambda *_: None)
    move_warehouse(local_stores, target)
    monkeypatch.undo()
    victim = next((work / "moved" / "bronze").rglob("*.parquet"))
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(bytes(damaged))
    with pytest.raises(StoreError, match="is not the same as"):
        move_warehouse(local_stores, target)
    check_history(local_stores.iceberg, moments)
    victim.unlink()
    move_warehouse(local_stores, target)
    check_history(opened(local_stores, target), moments)


def test_the_setting_is_changed_and_nothing_else(work: Path) -> None:
    file = work / "pkm.toml"
    file.write_text('# mine\nhome = "x"\n\n[embedder]\nmodel = "hashing"\nwarehouse = "not this"\n')
    set_warehouse(file, "s3://bucket/lake")
    set_warehouse(file, "s3://bucket/lake2")
    assert file.read_text() == (
        'warehouse = "s3://bucket/lake2"\n# mine\nhome = "x"\n\n[embedder]\nmodel = "hashing"\nwarehouse = "not this"\n'
    )
    odd = 'sources = [\n[1],\n]\n"warehouse" = "x"\n'
    file.write_text(odd)
    with pytest.raises(SettingsError, match="cannot be changed safely"):
        set_warehouse(file, "s3://bucket/lake")
    assert file.read_text() == odd
    with pytest.raises(SettingsError, match="put this into it"):
        set_warehouse(work / "absent.toml", "s3://b/l")


def test_a_target_inside_of_the_warehouse_is_refused(local_stores: Stores) -> None:
    with pytest.raises(SettingsError, match="beside the warehouse"):
        move_warehouse(local_stores, f"{local_stores.settings.warehouse}/inner")


def test_a_table_goes_out_of_a_catalog_and_into_another_one(stores: Stores, work: Path) -> None:
    moments = with_history(stores.tables)
    location = unregister_table(stores, STATE.name)
    assert stores.iceberg.names() == [LOG.name]
    with pytest.raises(StoreError, match="one of that name already"):
        register_table(stores, LOG.name, location)
    other = Place(stores.settings.warehouse, f"sqlite:///{work / 'other.db'}")
    with lakehouse(work / "other", other) as theirs:
        assert register_table(theirs, STATE.name, location) == list(moments)[-1]
        with pytest.raises(StoreError, match="under two names"):
            register_table(theirs, "silver.twice", location)
        write(theirs.tables, STATE, [thing("theirs", 3, lsn=30)])
        back = unregister_table(theirs, STATE.name)
    register_table(stores, STATE.name, back)
    assert contents(stores.tables, STATE)["theirs"]["value"] == 3
    moments |= newest(stores.iceberg)
    check_history(stores.iceberg, moments)


def test_a_table_whose_files_are_gone_goes_out_of_a_catalog(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.tables.ensure(STATE)
    location = stores.iceberg.load(STATE.name).metadata_location
    remove(stores.settings.warehouse)
    forget_metadata(monkeypatch)
    is_told = not stores.settings.catalog.startswith("http")  # a REST catalog reads the file before it names it
    assert unregister_table(stores, STATE.name) == (location if is_told else "")
    assert stores.iceberg.names() == []
    for name in (STATE.name, "things"):
        with pytest.raises(TableNotFoundError, match="there is no table"):
            unregister_table(stores, name)


def test_what_is_no_table_is_not_registered(local_stores: Stores, work: Path) -> None:
    with_history(local_stores.tables)
    (work / "x.metadata.json").write_text('{"some": "json"}')
    with pytest.raises(StoreError, match="no metadata file of Iceberg"):
        register_table(local_stores, "silver.x", str(work / "x.metadata.json"))
    with pytest.raises(StoreError, match="no such file"):
        register_table(local_stores, "silver.x", str(work / "absent.metadata.json"))
    with pytest.raises(StoreError, match="a table is called"):
        register_table(local_stores, "x", str(work / "x.metadata.json"))
    location = unregister_table(local_stores, LOG.name)
    next((work / "warehouse" / "bronze").rglob("*.parquet")).unlink()
    with pytest.raises(StoreError, match="cannot be read from here"):
        register_table(local_stores, LOG.name, location)


def test_a_lost_catalog_is_rebuilt(stores: Stores, work: Path) -> None:
    moments = with_history(stores.tables)
    locations = {name: stores.iceberg.load(name).metadata_location for name in stores.iceberg.names()}
    lost = Place(stores.settings.warehouse, f"sqlite:///{work / 'anew.db'}")
    with lakehouse(work / "anew", lost) as anew:
        plan = rebuild_catalog(anew, dry_run=True)
        assert {table.name: table.metadata_location for table in plan.registered} == locations
        assert anew.iceberg.names() == []
        report = rebuild_catalog(anew)
        assert report.registered == plan.registered
        assert not report.doubtful
        # The log is confirmed by the watermark of the other table.
        assert {table.name: table.confirmed for table in report.registered} == {LOG.name: True, STATE.name: False}
        check_history(anew.iceberg, moments)
        again = rebuild_catalog(anew)
        assert (again.registered, set(again.present)) == ((), set(locations))
