"""Tags and branches of snapshots, the pins of consumers, and rolling back: commits that change no row.

A tag keeps its snapshot from expiring. Each consumer of a table has two, `pkm-consumer-<output>` and
`pkm-consumer-<output>.next`, set together in one catalog commit before the output's own: the first to the mark
that the output has at that moment, the second to the mark that its commit will carry. So whichever of the two
is the output's mark when a process is killed, it is pinned; and a consumer never holds more than two snapshots.

A branch is a line of its own that starts at a snapshot. It becomes `main` only where `main` has not moved since, so
publishing one never loses a commit.
"""

from __future__ import annotations

from collections.abc import Callable

from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.update import RemoveSnapshotRefUpdate, SetSnapshotRefUpdate

from pkm_pipelines.model.errors import CommitConflictError, SnapshotNotFoundError, StoreError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_history import ancestors, find_snapshot, is_ancestor
from pkm_pipelines.storage.iceberg_snapshot import assert_ref, seen_from, set_ref
from pkm_pipelines.storage.iceberg_update import Change, update_table

CONSUMER = "pkm-consumer-"
NEXT = ".next"

RefUpdate = SetSnapshotRefUpdate | RemoveSnapshotRefUpdate


def tags(store: IcebergStore, name: str) -> dict[str, int]:
    """The tags of a table: tag to snapshot id."""
    refs = store.load(name).metadata.refs
    return {tag: ref.snapshot_id for tag, ref in refs.items() if ref.snapshot_ref_type.value == "tag"}


def tag(store: IcebergStore, name: str, tag: str, snapshot_id: int) -> None:
    """Set a tag to a snapshot, wherever it was before; raises `SnapshotNotFoundError`."""

    def change(table: Table) -> list[RefUpdate]:
        find_snapshot(table, snapshot_id)
        if _is_branch(table, tag):
            raise StoreError(f"table {name}: {tag!r} is a branch, and a tag cannot have its name")
        return [] if _target(table, tag) == snapshot_id else [set_ref(tag, snapshot_id)]

    _update_refs(store, name, change)


def untag(store: IcebergStore, name: str, tag: str) -> None:
    """Drop a tag; nothing happens if there is none of that name."""

    def change(table: Table) -> list[RefUpdate]:
        return [] if _is_branch(table, tag) or _target(table, tag) is None else [_remove(tag)]

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
        return [_remove(tag) for tag in (mark, mark + NEXT) if _target(table, tag) is not None]

    _update_refs(store, name, change)


def claim(store: IcebergStore, name: str, consumer: str, *, current: int | None, upcoming: int) -> int:
    """Pin as `pin` does, unless the consumer has begun to read up to another snapshot; returns how far it is to read.

    What it has begun, here or in a process that died, is to be ended first: then the same changes are read again, and
    what was written of them already is recognised.
    """
    mark = CONSUMER + consumer
    begun = upcoming

    def change(table: Table) -> list[RefUpdate]:
        nonlocal begun
        open_until = _target(table, mark + NEXT)
        begun = upcoming if open_until is None or open_until == current else open_until
        find_snapshot(table, begun)
        wanted = {mark + NEXT: begun}
        if current is not None and table.metadata.snapshot_by_id(current) is not None:
            wanted[mark] = current
        return [set_ref(tag, snapshot) for tag, snapshot in wanted.items() if _target(table, tag) != snapshot]

    _update_refs(store, name, change)
    return begun


def pinned(table: Table) -> dict[str, tuple[int | None, int | None]]:
    """What each consumer of a table holds: the snapshot that it had read to, and the one it was to read to next."""
    names = {ref.removeprefix(CONSUMER).removesuffix(NEXT) for ref in table.metadata.refs if ref.startswith(CONSUMER)}
    return {one: (_target(table, CONSUMER + one), _target(table, CONSUMER + one + NEXT)) for one in sorted(names)}


def branches(table: Table) -> dict[str, int]:
    """The branches of a table: branch to the snapshot that is its head."""
    return {name: ref.snapshot_id for name, ref in table.metadata.refs.items() if _is_branch(table, name)}


def branch(store: IcebergStore, name: str, branch: str, snapshot_id: int | None = None) -> int:
    """Start a branch at a snapshot, the current one by default; returns where it starts.

    Raises `SnapshotNotFoundError` if there is no such snapshot, and `StoreError` if there is such a branch or tag.
    """
    start = snapshot_id
    asked = False

    def change(table: Table) -> list[RefUpdate]:
        nonlocal start, asked
        start = table.metadata.current_snapshot_id if snapshot_id is None else snapshot_id
        if start is None:
            raise SnapshotNotFoundError(f"table {name} has no snapshot yet that a branch could start from")
        find_snapshot(table, start)
        found = _target(table, branch)
        if asked and found == start:  # the answer to the attempt before was lost
            return []
        if found is not None:
            raise StoreError(f"table {name} has a branch or tag {branch!r} already; choose another name or drop it")
        asked = True
        return [set_ref(branch, start, SnapshotRefType.BRANCH)]

    _update_refs(store, name, change)
    assert start is not None
    return start


def drop_branch(store: IcebergStore, name: str, branch: str) -> None:
    """Drop a branch and what was written to it alone; nothing happens if there is none.

    Raises `StoreError` for `main`.
    """
    if branch == MAIN_BRANCH:
        raise StoreError(f"table {name}: {MAIN_BRANCH} is what the table is and cannot be dropped")

    def change(table: Table) -> list[RefUpdate]:
        return [_remove(branch)] if _is_branch(table, branch) else []

    _update_refs(store, name, change)


def publish(store: IcebergStore, name: str, branch: str) -> int:
    """Make the head of a branch the table's current snapshot, as a fast-forward; returns it.

    Raises `SnapshotNotFoundError` for no such branch, and `CommitConflictError` if `main` has commits that the branch
    has not: nothing is changed then.
    """
    head = 0

    def change(table: Table) -> list[RefUpdate]:
        nonlocal head
        found = seen_from(table, branch).metadata.current_snapshot_id
        assert found is not None
        head, current = found, table.metadata.current_snapshot_id
        if current == head:
            return []
        if current is not None and all(one.snapshot_id != current for one in ancestors(table, head)):
            raise CommitConflictError(
                f"table {name}: {MAIN_BRANCH} has moved since branch {branch!r} left it, to snapshot {current}, so the"
                " branch cannot be published; start another branch from there and write its changes to that"
            )
        return [set_ref(MAIN_BRANCH, head)]

    # The branch must still end where it was looked at, too.
    update_table(
        store,
        name,
        lambda table: _change(table, change(table), [branch]),
        what="its branch was published",
    )
    return head


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


def _update_refs(store: IcebergStore, name: str, decide: Callable[[Table], list[RefUpdate]]) -> None:
    """Apply what `decide` wants of the refs; it says what a ref shall be, so doing it twice does no harm."""
    update_table(store, name, lambda table: _change(table, decide(table)), what="its tags were set")


def _change(table: Table, updates: list[RefUpdate], unmoved: list[str] | None = None) -> Change:
    names = dict.fromkeys([*(update.ref_name for update in updates), *(unmoved or ())])
    return Change(updates, [assert_ref(table, name) for name in names])


def _remove(ref: str) -> RemoveSnapshotRefUpdate:
    return RemoveSnapshotRefUpdate.model_validate({"ref-name": ref})


def _is_branch(table: Table, ref: str) -> bool:
    found = table.metadata.refs.get(ref)
    return ref == MAIN_BRANCH or (found is not None and found.snapshot_ref_type == SnapshotRefType.BRANCH)


def _target(table: Table, ref: str) -> int | None:
    found = table.metadata.refs.get(ref)
    return found.snapshot_id if found else None
