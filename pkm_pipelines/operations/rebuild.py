"""A lost catalog made anew from the metadata files in the warehouse, and one that has the wrong files put right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.operations.cuts import list_cuts
from pkm_pipelines.operations.warehouse import alone

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.storage.iceberg_rebuild import FoundTable


@dataclass(frozen=True)
class RebuildReport:
    """What a rebuild of the catalog found. `registered` are in the catalog now, or would be (`dry_run`).

    `present` were there already; `doubtful` were left as they are, because what is right cannot be told from the files.
    """

    registered: tuple[FoundTable, ...]
    present: tuple[str, ...]
    doubtful: tuple[FoundTable, ...]
    dry_run: bool = False


def rebuild_catalog(
    stores: Stores, *, dry_run: bool = False, choices: Mapping[str, str] | None = None
) -> RebuildReport:
    """Register every table whose metadata files lie in the warehouse and that the catalog does not have.

    How the newest file is told from one of a commit that lost a race is written down in `storage/iceberg_rebuild.py`.
    The state, where it still exists, helps: a snapshot that a cut or a watermark names was committed. `choices` name
    the metadata file of a table that is doubtful. Tables that were dropped on purpose, but whose files were kept, come
    back: take them out with `unregister_table`.

    A table that the catalog has is doubtful if its entry cannot be read, or if another table lies in its folder, made
    over it or before it; a choice lets the entry name that one.

    Raises `StoreError` if a choice is none of the table's candidates, and `CommitConflictError` if a table that is
    there was written to while its entry was to be changed.
    """
    from pkm_pipelines.storage.iceberg_rebuild import find_tables

    wanted = dict(choices or {})
    present = stores.iceberg.names()
    found = find_tables(stores.iceberg, _known_snapshots(stores), wanted)
    unknown = sorted(set(wanted) - {table.name for table in found})
    if unknown:
        raise StoreError(f"the warehouse holds no files of a table {', '.join(unknown)}")
    registered: list[FoundTable] = []
    doubtful: list[FoundTable] = []
    for table in found:
        is_present = table.name in present
        entry = _entry(stores, table.name) if is_present else ""
        if is_present and table.name not in wanted:
            doubt = _doubt(stores, table, entry)
            doubtful += [replace(table, metadata_location="", doubt=doubt)] if doubt else []
        elif table.doubt:
            doubtful.append(table)
        elif table.metadata_location != entry:
            registered.append(table)
            if not dry_run:
                _enter(stores, table, entry, is_present=is_present)
    changed = {table.name for table in (*registered, *doubtful)}
    untouched = tuple(name for name in present if name not in changed)
    return RebuildReport(tuple(registered), untouched, tuple(doubtful), dry_run=dry_run)


def _entry(stores: Stores, name: str) -> str:
    """The metadata file that the catalog names for a table; empty for one of a REST catalog that cannot read it."""
    from pkm_pipelines.storage.iceberg_register import entry_of

    try:
        return entry_of(stores.iceberg, name)
    except StoreError:
        return ""


def _enter(stores: Stores, table: FoundTable, entry: str, *, is_present: bool) -> None:
    """Let the catalog have the file that was found."""
    from pkm_pipelines.storage.iceberg_register import put, repoint, unregister

    if not is_present:
        put(stores.iceberg, table.name, table.metadata_location)
        return
    with alone(stores, table.name):
        if entry:
            repoint(stores.iceberg, table.name, entry, table.metadata_location, announce=lambda: None)
        else:
            unregister(stores.iceberg, table.name)
            put(stores.iceberg, table.name, table.metadata_location)


def _doubt(stores: Stores, table: FoundTable, entry: str) -> str:
    """Why the catalog may have the wrong table; empty if nothing speaks for it."""
    try:
        own = str(stores.iceberg.load(table.name).metadata.table_uuid)
    except StoreError:
        return f"the catalog has {entry or 'a file'}, which cannot be read; name the metadata file of the right one"
    if any(one.snapshots and not one.why_not and one.table_uuid != own for one in table.candidates):
        return f"the catalog has {entry}, and another table lies there; name the metadata file of the right one"
    return ""


def _known_snapshots(stores: Stores) -> dict[str, set[int]]:
    """The snapshots that the state knows to have been committed, by table."""
    known: dict[str, set[int]] = {}
    for cut in list_cuts(stores):
        for table, snapshot in cut.snapshots.items():
            known.setdefault(table, set()).add(snapshot)
    for key, value in stores.state.scan(keys.WATERMARK):
        table = key.rpartition(":")[2]
        if value.isdigit():
            known.setdefault(table, set()).add(int(value))
    return known
