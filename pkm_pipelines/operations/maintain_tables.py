"""Maintenance of the Iceberg tables: the mechanics of `tables/` with the settings and the records of a lakehouse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.operations.debt import Debt
from pkm_pipelines.operations.maintenance import Plan, Report

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores


def plan_table(stores: Stores, operation: str, table: str) -> Plan:
    """What an operation would do to a table."""
    return Plan(operation, table)


def maintain_table(stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
    """Carry out an operation on a table."""
    return Report(operation, table)


def table_debt(stores: Stores, table: str) -> Debt:
    """The debt of a table, from its metadata and the list of its manifests."""
    from pkm_pipelines.storage.iceberg_manifests import manifests_of

    loaded = stores.iceberg.load(table)
    snapshot = loaded.metadata.current_snapshot()
    return Debt(table, snapshots=len(loaded.metadata.snapshots), manifests=len(manifests_of(loaded, snapshot)))
