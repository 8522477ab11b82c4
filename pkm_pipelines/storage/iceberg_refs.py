"""Tags of snapshots, the pins of consumers, and rolling back: commits that change no row.

A tag keeps its snapshot from expiring. Each consumer of a table has two, `pkm-consumer-<output>` and
`pkm-consumer-<output>.next`, set together in one catalog commit before the output's own: the first to the mark
that the output has at that moment, the second to the mark that its commit will carry. So whichever of the two
is the output's mark when a process is killed, it is pinned; and a consumer never holds more than two snapshots.
"""

from __future__ import annotations

from collections.abc import Callable

from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update import RemoveSnapshotRefUpdate, SetSnapshotRefUpdate

from pkm_pipelines.model.errors import CommitConflictError, SnapshotNotFoundError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import UNREACHABLE, pause
from pkm_pipelines.storage.iceberg_history import find_snapshot, is_ancestor
from pkm_pipelines.storage.iceberg_snapshot import ask_catalog, assert_ref, set_ref

CONSUMER = "pkm-consumer-"
NEXT = ".next"
_ATTEMPTS = 16

RefUpdate = SetSnapshotRefUpdate | RemoveSnapshotRefUpdate


def tags(store: IcebergStore, name: str) -> dict[str, int]:
    """The tags of a table: tag to snapshot id."""
    refs = store.load(name).metadata.refs
    return {tag: ref.snapshot_id for tag, ref in refs.items() if ref.snapshot_ref_type.value == "tag"}


def tag(store: IcebergStore, name: str, tag: str, snapshot_id: int) -> None:
    """Set a tag to a snapshot, wherever it was before; raises `SnapshotNotFoundError`."""

    def change(table: Table) -> list[RefUpdate]:
        find_snapshot(table, snapshot_id)
        return [] if _target(table, tag) == snapshot_id else [set_ref(tag, snapshot_id)]

    _update_refs(store, name, change)


def untag(store: IcebergStore, name: str, tag: str) -> None:
    """Drop a tag; nothing happens if there is none of that name."""

    def change(table: Table) -> list[RefUpdate]:
        if tag == MAIN_BRANCH or _target(table, tag) is None:
            return []
        return [RemoveSnapshotRefUpdate.model_validate({"ref-name": tag})]

    _update_refs(store, name, change)


def pin(store: IcebergStore, name: str, consumer: str, *, current: int | None, upcoming: int) -> None:
    """Keep the snapshots that `consumer` has read up to, and will have with its next commit, from expiring.

    At most one catalog commit, none if both are pinned already. Raises `SnapshotNotFoundError` if `upcoming` has
    expired in the meantime.
    """
    mark = CONSUMER + consumer

    def change(table: Table) -> list[RefUpdate]:
        find_snapshot(table, upcoming)
        wanted = {mark + NEXT: upcoming}
        if current is not None and table.metadata.snapshot_by_id(current) is not None:
            wanted[mark] = current
        return [set_ref(tag, snapshot) for tag, snapshot in wanted.items() if _target(table, tag) != snapshot]

    _update_refs(store, name, change)


def unpin(store: IcebergStore, name: str, consumer: str) -> None:
    """Drop the pins of a consumer that is no more."""
    mark = CONSUMER + consumer

    def change(table: Table) -> list[RefUpdate]:
        held = [tag for tag in (mark, mark + NEXT) if _target(table, tag) is not None]
        return [RemoveSnapshotRefUpdate.model_validate({"ref-name": tag}) for tag in held]

    _update_refs(store, name, change)


def rollback(store: IcebergStore, name: str, snapshot_id: int) -> None:
    """Make an ancestor of the current snapshot current again; the table's watermarks go back with it.

    Raises `SnapshotNotFoundError` if it is unknown or no ancestor: then commits would be lost that nobody named.
    """

    def change(table: Table) -> list[RefUpdate]:
        find_snapshot(table, snapshot_id)
        if not is_ancestor(table, snapshot_id):
            raise SnapshotNotFoundError(
                f"table {name}: snapshot {snapshot_id} is no ancestor of the current one, so there is no way back to it"
            )
        return [] if _target(table, MAIN_BRANCH) == snapshot_id else [set_ref(MAIN_BRANCH, snapshot_id)]

    _update_refs(store, name, change)


def _update_refs(store: IcebergStore, name: str, change: Callable[[Table], list[RefUpdate]]) -> None:
    """Apply what `change` wants of the table as it is, again from the start whenever the table has moved.

    All of it says what a ref shall be and not how it moves, so doing it twice does no harm.
    """
    for attempt in range(_ATTEMPTS):
        table = store.load(name)
        updates = change(table)
        if not updates:
            return
        asserted = [assert_ref(table, update.ref_name) for update in updates]
        try:
            ask_catalog(table, updates, asserted)
        except (CommitFailedException, CommitStateUnknownException, *UNREACHABLE):
            pause(attempt)
        else:
            return
    raise CommitConflictError(f"table {name} kept changing while its tags were set, {_ATTEMPTS} times; try again")


def _target(table: Table, ref: str) -> int | None:
    found = table.metadata.refs.get(ref)
    return found.snapshot_id if found else None
