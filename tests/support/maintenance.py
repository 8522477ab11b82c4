"""A lakehouse for tests of maintenance: real tables, a dictionary as the state; and what must be true of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pyiceberg.manifest import DataFileContent
from pyiceberg.table import Table

from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.operations.maintain_tables import maintain_table, plan_table
from pkm_pipelines.operations.maintenance import Plan, Report
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage.iceberg_listing import References, TableFolder
from pkm_pipelines.tables.manager import TableManager
from tests.support.dict_state import DictState
from tests.support.iceberg import Place

# Everything at once, and nothing is young.
EAGER = {"keep_snapshots": 1, "file_grace_minutes": 0, "orphan_age_hours": 0, "orphans_hours": 1e-9}


def stores_at(place: Place, folder: Path, tables: TableManager | None = None, **maintenance: Any) -> Stores:
    """Stores over a warehouse, with these settings of maintenance over eager ones."""
    settings = Settings(
        home=folder,
        warehouse=place.warehouse,
        catalog=place.catalog,
        maintenance=cast(Any, {**EAGER, **maintenance}),
    )
    stores = Stores(settings)
    stores.__dict__["state"] = DictState()
    if tables is not None:
        stores.__dict__["tables"], stores.__dict__["iceberg"] = tables, tables.iceberg
    return stores


def run(stores: Stores, operation: str, table: str) -> Report:
    """Carry out an operation, without a lease."""
    return maintain_table(stores, operation, table, progress=NullProgress(), run_id="run")


def planned(stores: Stores, operation: str, table: str) -> Plan:
    """What it would do."""
    return plan_table(stores, operation, table)


def data_files(table: Table, snapshot_id: int | None = None) -> list[str]:
    """The data files of a snapshot, by pyiceberg's own planning."""
    return sorted(task.file.file_path for task in table.scan(snapshot_id=snapshot_id).plan_files())


def delete_file_count(table: Table) -> int:
    """The delete files that the current snapshot has, whether they apply to anything or not."""
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return sum(
        entry.data_file.content == DataFileContent.POSITION_DELETES
        for manifest in snapshot.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io)
    )


def stored(table: Table) -> set[str]:
    """Every file in the table's folder."""
    return {file.path for file in TableFolder(table).files()}


def unreferenced(table: Table) -> set[str]:
    """The files in the table's folder that neither a snapshot nor the metadata refers to."""
    known = References(table, table.metadata.snapshots)
    return {path for path in stored(table) if path not in known}


def assert_whole(table: Table) -> None:
    """Every file that a living snapshot needs is there."""
    present = stored(table)
    for snapshot in table.metadata.snapshots:
        wanted = {snapshot.manifest_list}
        for manifest in snapshot.manifests(table.io):
            wanted.add(manifest.manifest_path)
            wanted |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io)}
        missing = {url for url in wanted if not any(url.endswith(path.lstrip("/")) for path in present)}
        assert not missing, f"snapshot {snapshot.snapshot_id} lacks {missing}"
