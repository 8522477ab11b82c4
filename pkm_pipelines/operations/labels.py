"""The names that users give to tags and branches, and those that the project keeps for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError
from pkm_pipelines.operations.cuts import CUT_TAG
from pkm_pipelines.storage.iceberg_refs import CONSUMER

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores

_OWN = {
    CONSUMER: "the project keeps what a consumer of the table has not read yet",
    CUT_TAG: "the project keeps the moments at which all tables belong together",
}


def check_label(label: str) -> None:
    """Raise `StoreError` for a name that a tag or branch of a user cannot be given."""
    if not label.strip():
        raise StoreError("the name is empty: give it one that says what it is kept for")
    check_not_own(label)


def check_not_own(label: str) -> None:
    """Raise `StoreError` for a name as the project gives to tags."""
    for prefix, why in _OWN.items():
        if label.startswith(prefix):
            raise StoreError(f"{label!r}: under names that begin with {prefix!r} {why}; leave them alone")


def drop_tag(stores: Stores, table: str, tag: str) -> None:
    """Drop a tag; raises `SnapshotNotFoundError` if there is none of that name."""
    found = stores.tables.tags(table)
    if tag not in found:
        raise SnapshotNotFoundError(f"table {table} has no tag {tag!r} ({_there_are(found)})")
    stores.tables.untag(table, tag)


def drop_branch(stores: Stores, table: str, branch: str) -> None:
    """Drop a branch; raises `SnapshotNotFoundError` if there is none of that name, and `StoreError` for `main`."""
    found = stores.tables.branches(table)
    if branch not in found:
        raise SnapshotNotFoundError(f"table {table} has no branch {branch!r} ({_there_are(found)})")
    stores.tables.drop_branch(table, branch)


def _there_are(names: dict[str, int]) -> str:
    return f"there are: {', '.join(sorted(names)) or 'none'}"
