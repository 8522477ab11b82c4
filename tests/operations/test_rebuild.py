"""A catalog that has lost its tables, or has the wrong ones, over each kind of catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.operations.rebuild import rebuild_catalog
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_register import put
from tests.support.iceberg import LOG, STATE, Place, contents, local_place, thing, write
from tests.support.warehouses import check_history, forget_metadata, lakehouse, make_over, with_history


@pytest.fixture
def stores(place: Place, work: Path) -> Iterator[Stores]:
    with lakehouse(work, place) as stores:
        yield stores


@pytest.fixture
def local_stores(work: Path) -> Iterator[Stores]:
    with lakehouse(work, local_place(work)) as stores:
        yield stores


def test_a_table_that_was_made_over_another_is_named_and_exchanged(stores: Stores) -> None:
    moments = with_history(stores.tables)
    right = stores.iceberg.load(STATE.name).metadata_location
    make_over(stores.iceberg, STATE)
    wrong = stores.iceberg.load(STATE.name).metadata_location

    report = rebuild_catalog(stores)
    assert (report.registered, report.present) == ((), (LOG.name,))
    (found,) = report.doubtful
    assert found.name == STATE.name
    assert f"the catalog has {wrong}, and another table lies there" in found.doubt
    assert right in {one.metadata_location for one in found.candidates}
    assert stores.iceberg.load(STATE.name).metadata_location == wrong

    plan = rebuild_catalog(stores, choices={STATE.name: right}, dry_run=True)
    assert [table.metadata_location for table in plan.registered] == [right]
    assert stores.iceberg.load(STATE.name).metadata_location == wrong
    report = rebuild_catalog(stores, choices={STATE.name: right})
    assert [table.metadata_location for table in report.registered] == [right]
    check_history(stores.iceberg, moments)
    again = rebuild_catalog(stores, choices={STATE.name: right})
    assert (again.registered, again.doubtful, again.present) == ((), (), (LOG.name, STATE.name))


def test_the_newer_one_is_kept_by_choosing_it(local_stores: Stores) -> None:
    with_history(local_stores.tables)
    make_over(local_stores.iceberg, STATE)
    write(local_stores.tables, STATE, [thing("new")])
    newer = local_stores.iceberg.load(STATE.name).metadata_location
    assert [table.name for table in rebuild_catalog(local_stores).doubtful] == [STATE.name]
    report = rebuild_catalog(local_stores, choices={STATE.name: newer})
    assert (report.registered, report.doubtful, set(report.present)) == ((), (), {LOG.name, STATE.name})
    assert contents(local_stores.tables, STATE).keys() == {"new"}


def test_an_entry_whose_file_is_gone_is_named_and_exchanged(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an old catalog has it that was put back."""
    stores.tables.ensure(STATE)
    old = stores.iceberg.load(STATE.name)
    for number in range(3):
        write(stores.tables, STATE, [thing("a", number, number)])
    newest = stores.iceberg.load(STATE.name).metadata_location
    stores.iceberg.catalog.drop_table(STATE.name)
    put(stores.iceberg, STATE.name, old.metadata_location)
    old.io.delete(old.metadata_location)
    forget_metadata(monkeypatch)

    (found,) = rebuild_catalog(stores).doubtful
    assert "which cannot be read" in found.doubt
    assert newest in {one.metadata_location for one in found.candidates}
    assert rebuild_catalog(stores, choices={STATE.name: newest}).registered
    assert contents(stores.tables, STATE)["a"]["value"] == 2
