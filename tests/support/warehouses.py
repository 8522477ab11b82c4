"""Lakehouses over each kind of catalog, and a table with a history that a move must not change."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage import pyiceberg_private
from pkm_pipelines.storage.cache import RecentlyUsed
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_schema import iceberg_schema, partition_spec, sort_order, table_properties
from pkm_pipelines.storage.location import Location
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, Place, contents, event, thing, write
from tests.support.position_deletes import delete_positions
from tests.support.state import end_services

Moments = dict[int, dict[Any, dict[str, Any]]]


@contextmanager
def lakehouse(home: Path, place: Place) -> Generator[Stores]:
    """The stores of a lakehouse at `home` whose warehouse is `place`; its state is local."""
    settings = Settings(home=home, warehouse=place.warehouse, catalog=place.catalog, runtime_dir=home / "run")
    with Stores(settings) as stores:
        yield stores
    end_services(home / "run")


def with_history(tables: TableManager) -> Moments:
    """Make two tables; what `STATE` held at each of its snapshots. One is tagged `cut-1`, one pinned by a consumer."""
    for spec in (STATE, LOG):
        tables.ensure(spec)
    log = write(tables, LOG, [event(f"e{number}", number) for number in range(5)], mode="append")
    assert log.snapshot_id is not None
    moments: Moments = {}

    def note() -> int:
        snapshot = tables.iceberg.snapshot_id(STATE.name)
        assert snapshot is not None
        moments[snapshot] = contents(tables, STATE)
        return snapshot

    write(tables, STATE, [thing(f"t{number}", number) for number in range(20)], watermarks={LOG.name: log.snapshot_id})
    tables.tag(STATE.name, "cut-1", note())
    delete_positions(tables, STATE, "id", {"t3", "t4"})
    note()
    write(tables, STATE, [thing("t5", 500, lsn=9), thing("new", 1)])
    note()
    tables.set_mode(STATE.name, "merge-on-read")
    write(tables, STATE, delete_keys=pa.table({"id": ["t7"]}))
    note()
    return moments


def check_history(store: IcebergStore, moments: Moments) -> None:
    """The tables hold what they held, at every snapshot, for our reader and for pyiceberg's own."""
    tables = TableManager(store)
    for snapshot, rows in moments.items():
        assert contents(tables, STATE, snapshot_id=snapshot) == rows
    table = store.load(STATE.name)
    newest = moments[list(moments)[-1]]
    assert {row["id"]: row["value"] for row in table.scan().to_arrow().to_pylist()} == {
        key: row["value"] for key, row in newest.items()
    }
    assert tables.tags(STATE.name)["cut-1"] == next(iter(moments))
    assert tables.watermark(STATE.name, LOG.name) == store.snapshot_id(LOG.name)
    assert len(contents(tables, LOG)) == 5


def forget_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the metadata files that this process has read, as if it had begun anew."""
    monkeypatch.setattr(pyiceberg_private, "_METADATA", RecentlyUsed(32, lambda _: 1))


def make_over(store: IcebergStore, spec: TableSpec) -> None:
    """Let the catalog lose a table, and make an empty one in its folder: any engine that asks a catalog only does."""
    if store.exists(spec.name):
        store.catalog.drop_table(spec.name)
    store.catalog.create_namespace_if_not_exists(spec.layer)
    store.catalog.create_table(
        spec.name,
        schema=iceberg_schema(spec),
        partition_spec=partition_spec(spec),
        sort_order=sort_order(spec),
        properties=table_properties(spec),
    )


def remove(warehouse: str) -> None:
    """Remove a local warehouse, or every object of one on S3."""
    location = Location(warehouse)
    if location.is_local:
        shutil.rmtree(location.path)
        return
    import obstore

    from pkm_pipelines.storage.endpoint import open_store

    store = open_store(location)
    for page in store.list():
        obstore.delete(store, [entry["path"] for entry in page])
