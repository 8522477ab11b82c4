"""A table of ours in another catalog: entered, brought up to date, and never overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.operations.sharing import share_table
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_register import unregister
from pkm_pipelines.storage.iceberg_update import set_properties
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, Place, contents, local_place, thing, write
from tests.support.maintenance import stores_at
from tests.support.rest_catalog import serve
from tests.support.warehouses import forget_metadata


@pytest.fixture(params=["sqlite", "rest", "glue"])
def shared(request: pytest.FixtureRequest, work: Path) -> Iterator[tuple[Stores, Place]]:
    """A lakehouse, and its warehouse as another catalog sees it."""
    place = local_place(work)
    other = f"sqlite:///{work / 'other.db'}"
    if request.param == "glue":
        glue: Place = request.getfixturevalue("glue")
        yield stores_at(Place(glue.warehouse, place.catalog), work), glue
    elif request.param == "rest":
        with serve(Place(place.warehouse, other).open().catalog) as url:
            yield stores_at(place, work), Place(place.warehouse, url)
    else:
        yield stores_at(place, work), Place(place.warehouse, other)


def test_an_entry_is_made_brought_up_to_date_and_never_overwritten(shared: tuple[Stores, Place]) -> None:
    ours, place = shared
    ours.tables.ensure(STATE)
    write(ours.tables, STATE, [thing("a", 1)])
    assert share_table(ours, STATE.name, place.catalog).outcome == "new"
    theirs = TableManager(place.open())
    assert contents(theirs, STATE) == contents(ours.tables, STATE)

    for number in range(2, 5):
        write(ours.tables, STATE, [thing("a", number, lsn=number)])
    assert contents(theirs, STATE)["a"]["value"] == 1
    assert share_table(ours, STATE.name, place.catalog).outcome == "moved on"
    assert share_table(ours, STATE.name, place.catalog).outcome == "up to date"
    assert contents(TableManager(place.open()), STATE)["a"]["value"] == 4

    write(TableManager(place.open()), STATE, [thing("b", 1)])
    write(ours.tables, STATE, [thing("c", 1)])
    with pytest.raises(StoreError, match="written to through that catalog"):
        share_table(ours, STATE.name, place.catalog)
    assert contents(TableManager(place.open()), STATE).keys() == {"a", "b"}


def test_an_entry_is_brought_up_to_date_however_old_it_is(
    shared: tuple[Stores, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table keeps 20 earlier metadata files, so the one that the entry names is gone."""
    ours, place = shared
    ours.tables.ensure(STATE)
    share_table(ours, STATE.name, place.catalog)
    old = ours.iceberg.load(STATE.name)
    for number in range(22):
        set_properties(ours.iceberg, STATE.name, {"number": str(number)}, what="it is counted")
    assert not old.io.new_input(old.metadata_location).exists()
    if place.catalog.startswith("http"):  # a server that still has it in memory; one that has not says only so
        assert share_table(ours, STATE.name, place.catalog).outcome == "moved on"
        return
    forget_metadata(monkeypatch)
    assert share_table(ours, STATE.name, place.catalog).outcome == "moved on"
    assert place.open().load(STATE.name).properties["number"] == "21"


def test_an_entry_that_a_server_cannot_read_is_not_replaced(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not tell which file it has, so that may be of another table."""
    place, other = local_place(work), f"sqlite:///{work / 'other.db'}"
    with serve(Place(place.warehouse, other).open().catalog) as url:
        ours = stores_at(place, work)
        ours.tables.ensure(STATE)
        share_table(ours, STATE.name, url)
        old = ours.iceberg.load(STATE.name).metadata_location
        write(ours.tables, STATE, [thing("a", 1)])
        Path(old.removeprefix("file://")).unlink()
        forget_metadata(monkeypatch)
        with pytest.raises(StoreError, match=r"cannot be read, .*drop it from that catalog and call again"):
            share_table(ours, STATE.name, url)
        unregister(Place(place.warehouse, url).open(), STATE.name)
        assert share_table(ours, STATE.name, url).outcome == "new"


def test_what_cannot_be_shared(shared: tuple[Stores, Place]) -> None:
    ours, place = shared
    ours.tables.ensure(STATE)
    with pytest.raises(TableNotFoundError):
        share_table(ours, LOG.name, place.catalog)
    with pytest.raises(StoreError, match="is the catalog of this warehouse"):
        share_table(ours, STATE.name, ours.iceberg.catalog_url)
    # Another table of that name, which lies elsewhere.
    elsewhere = Place(f"{place.warehouse}/elsewhere", place.catalog).open()
    elsewhere.ensure(STATE)
    with pytest.raises(StoreError, match="another table of that name"):
        share_table(ours, STATE.name, place.catalog)
