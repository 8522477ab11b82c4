"""Catalog commits that change no row: refs, properties, the schema.

Like a write, such a change is decided on the table as it is, and decided anew from the start whenever the table has
moved or the catalog's answer was lost. So `decide` must see for itself whether what it wants is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.table import Table
from pyiceberg.table.update import RemovePropertiesUpdate, SetPropertiesUpdate, TableRequirement, TableUpdate

from pkm_pipelines.model.errors import CommitConflictError, StoreError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import UNREACHABLE, pause
from pkm_pipelines.storage.iceberg_snapshot import ask_catalog
from pkm_pipelines.storage.iceberg_turn import Turn

_ATTEMPTS = 16


@dataclass(frozen=True)
class Change:
    """What to ask of the catalog, and what must still be true of the table then; no update is nothing to do."""

    updates: Sequence[TableUpdate] = ()
    requirements: Sequence[TableRequirement] = ()


def set_properties(store: IcebergStore, name: str, wanted: Mapping[str, str | None], *, what: str) -> None:
    """Set properties of the table `name`, and remove those that are to be None; see `update_table`."""

    update_table(store, name, lambda table: Change(property_updates(table.properties, wanted)), what=what)


def property_updates(known: Mapping[str, str], wanted: Mapping[str, str | None]) -> list[TableUpdate]:
    """What makes the properties `known` as they are `wanted`, None being gone; those that are not named stay."""
    new = {key: value for key, value in wanted.items() if value is not None and known.get(key) != value}
    old = [key for key, value in wanted.items() if value is None and key in known]
    updates: list[TableUpdate] = [SetPropertiesUpdate(updates=new)] if new else []
    return [*updates, RemovePropertiesUpdate(removals=old)] if old else updates


def update_table(store: IcebergStore, name: str, decide: Callable[[Table], Change], *, what: str) -> None:
    """Carry out what `decide` wants of the table `name`; `what` says it in an error (`its tags were set`).

    Raises `TableNotFoundError`, `CommitConflictError` if the table kept changing, `StoreError` if a store fails, and
    whatever `decide` raises.
    """
    with Turn(store.catalog_url, name) as turn:
        for attempt in range(_ATTEMPTS):
            table = store.load(name)
            change = decide(table)
            if not change.updates:
                return
            turn.take()
            try:
                ask_catalog(table, change.updates, change.requirements)
            except (CommitFailedException, CommitStateUnknownException, *UNREACHABLE):
                pause(attempt)
            except OSError as error:
                raise StoreError(f"table {name}: a store failed while {what}: {error}; try again") from error
            else:
                return
    raise CommitConflictError(f"table {name} kept changing while {what}, {_ATTEMPTS} times; try again")
