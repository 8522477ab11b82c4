"""Going back to an earlier snapshot of a table, with what depends on it.

Tables that are derived from others follow by themselves: their watermarks are no ancestors any more. What sources told
bronze does not come back by itself, for their indexes in the state say that it was told; so these are mended first.
A crash between the two makes the sources tell something twice, and loses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

from pkm_pipelines.model.tables import RAW_MEDIA, RAW_NOTES
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.operations.write import WAIT_SECONDS
from pkm_pipelines.sources.retell import Content, retell_folder, retell_git

# The log, and the column by which what it tells of is known.
_TOLD: dict[str, tuple[Content, str]] = {RAW_NOTES.name: ("notes", "note_id"), RAW_MEDIA.name: ("media", "path")}
_AT_ONCE = 1000


def roll_back(stores: Stores, table: str, snapshot_id: int) -> int:
    """Make `snapshot_id`, an ancestor, the table's present state; the next update brings what follows it up to date.

    Returns how many notes or files their sources will tell of again. Raises `StoreError` for another snapshot, and
    `LeaseHeldError` if a writer holds the table for hours.
    """
    ttl = stores.settings.lease_seconds
    with stores.state.acquire(f"table:{table}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS) as lease:
        is_told = table in _TOLD and stores.tables.is_ancestor(table, snapshot_id)
        told = _retell(stores, table, snapshot_id) if is_told else 0
        lease.check()
        stores.tables.rollback(table, snapshot_id)
    return told


def _retell(stores: Stores, table: str, snapshot_id: int) -> int:
    content, name = _TOLD[table]
    undone: dict[str, dict[str, str]] = defaultdict(dict)
    for batch in stores.tables.added(table, snapshot_id, columns=sorted({"source", "path", name})):
        for source, key, path in zip(*(batch[column].to_pylist() for column in ("source", name, "path")), strict=True):
            undone[source][key] = path
    kinds = {source.name: source.kind for source in stores.settings.sources}
    for source, names in undone.items():
        if source not in kinds:
            continue  # nobody looks at it any more
        is_git = kinds[source] == "git"
        found = retell_git(source, content, names) if is_git else retell_folder(stores.state, source, content, names)
        while part := list(islice(found, _AT_ONCE)):
            stores.state.apply(part)
    return sum(len(names) for source, names in undone.items() if source in kinds)
