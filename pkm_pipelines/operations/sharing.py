"""Our tables in the catalogs of others, so that engines which know only those can read them.

A catalog holds one thing for each table: the URL of its newest metadata file. So an entry elsewhere shows the table as
it was when it was made, for ever, until it is made again. Ours stays the catalog that is written through; what somebody
wrote through the other one is never overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.urls import redacted

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores


@dataclass(frozen=True)
class Shared:
    """The entry of a table in another catalog; `catalog` is its URL without a password."""

    table: str
    catalog: str
    metadata_location: str
    outcome: Literal["new", "moved on", "up to date"]


def share_table(stores: Stores, name: str, catalog_url: str) -> Shared:
    """Enter a table in another catalog as it is now, or bring its entry there up to date.

    A catalog that is no SQL one is without the entry for a moment while it is replaced; if that is interrupted, the
    next call enters it anew.

    Raises `TableNotFoundError`, `SettingsError` for a URL of no catalog, and `StoreError` if the other catalog is ours,
    has another table of that name, or if the table was written to through it.
    """
    from pkm_pipelines.storage.iceberg import IcebergStore
    from pkm_pipelines.storage.iceberg_register import put, repoint

    table = stores.iceberg.load(name)
    location, shown = table.metadata_location, redacted(catalog_url)
    if catalog_url == stores.iceberg.catalog_url:
        raise StoreError(f"{shown}: is the catalog of this warehouse; name another one")
    other = IcebergStore(stores.iceberg.warehouse, catalog_url)
    try:
        there = other.load(name)
    except TableNotFoundError:
        put(other, name, location)
        return Shared(name, shown, location, "new")
    if there.metadata.table_uuid != table.metadata.table_uuid:
        raise StoreError(f"table {name}: {shown} has another table of that name")
    if there.metadata_location == location:
        return Shared(name, shown, location, "up to date")
    known = {entry.metadata_file for entry in table.metadata.metadata_log}
    newest = there.metadata.current_snapshot_id
    if there.metadata_location not in known and table.metadata.snapshot_by_id(newest or 0) is None:
        raise StoreError(
            f"table {name}: what {shown} has of it is not part of it here: it was written to through that catalog, or"
            " that snapshot has expired. If nobody writes there, drop it from that catalog and call again"
        )
    repoint(other, name, there.metadata_location, location, announce=lambda: None)
    return Shared(name, shown, location, "moved on")
