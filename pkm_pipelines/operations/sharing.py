"""Our tables in the catalogs of others, so that engines which know only those can read them.

A catalog holds one thing for each table: the URL of its newest metadata file. So an entry elsewhere shows the table as
it was when it was made, until it is made again. It can be read for the next 20 commits at most, for then the table lets
that file go (`write.metadata.previous-versions-max`). It can be made again however old it is. Ours stays the catalog
that is written through; what somebody wrote through the other one is never overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.urls import redacted

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.storage.iceberg import IcebergStore


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
    from pkm_pipelines.storage.iceberg_register import entry_of, put, repoint

    table = stores.iceberg.load(name)
    location, shown = table.metadata_location, redacted(catalog_url)
    if catalog_url == stores.iceberg.catalog_url:
        raise StoreError(f"{shown}: is the catalog of this warehouse; name another one")
    other = IcebergStore(stores.iceberg.warehouse, catalog_url)
    try:
        entry = entry_of(other, name)
    except TableNotFoundError:
        put(other, name, location)
        return Shared(name, shown, location, "new")
    except StoreError as error:
        raise _unreadable(name, shown, error) from None
    if entry == location:
        return Shared(name, shown, location, "up to date")
    if not _is_earlier(table, entry):
        _check_part_of(table, other, shown)
    repoint(other, name, entry, location, announce=lambda: None)
    return Shared(name, shown, location, "moved on")


def _is_earlier(table: Table, entry: str) -> bool:
    """Whether a metadata file was the table's own: one of its log, or one of its folder that is let go and gone."""
    from pkm_pipelines.storage.iceberg_move import plain

    if plain(entry) in {plain(earlier.metadata_file) for earlier in table.metadata.metadata_log}:
        return True
    folder = f"{plain(table.location())}/metadata/"
    return plain(entry).startswith(folder) and not table.io.new_input(entry).exists()


def _check_part_of(table: Table, other: IcebergStore, shown: str) -> None:
    """Raise `StoreError` unless what another catalog has is a state of the table."""
    name = ".".join(table.name())
    try:
        there = other.load(name)
    except StoreError as error:
        raise _unreadable(name, shown, error) from None
    if there.metadata.table_uuid != table.metadata.table_uuid:
        raise StoreError(f"table {name}: {shown} has another table of that name")
    if table.metadata.snapshot_by_id(there.metadata.current_snapshot_id or 0) is None:
        raise StoreError(
            f"table {name}: what {shown} has of it is not part of it here: it was written to through that catalog, or"
            " that snapshot has expired. If nobody writes there, drop it from that catalog and call again"
        )


def _unreadable(name: str, shown: str, error: StoreError) -> StoreError:
    return StoreError(
        f"table {name}: {shown} has one of that name that cannot be read, so it may be another one ({error}). If it is"
        " not, drop it from that catalog and call again"
    )
