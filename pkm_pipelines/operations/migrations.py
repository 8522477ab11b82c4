"""Migrations: how tables of an older format of this project become those of the present one.

Each table carries the format that it was made with (`pkm.format-version`), and each `TableSpec` the one that this
version of the project writes. Whoever raises a spec's `format_version` adds one `Migration` here for the step from the
version before: a named function, forward only, kept for ever, tested on a small table that is made with the old spec.

A migration runs under the table's lease, so no writer of the project sees it half done. It may be killed at any
moment and is then run again from the start, so it must find out what of it is done already: adding a column that is
there, say, is nothing to do. What is costly can be noted (`save`) and skipped the next time. The format in the table is
raised by its last commit, after the function has returned; until then the table says that it is an old one.

There is none yet: every table is of the first format.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pkm_pipelines.model.errors import CommitConflictError, StoreError
from pkm_pipelines.model.evolution import Evolution
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.model.records import CommitResult
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import ICEBERG_TABLES
from pkm_pipelines.operations.maintenance import Plan, Record, Report, Work, save_progress, saved_progress

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.storage.iceberg_snapshot import Writes
    from pkm_pipelines.storage.slate_client import Lease

OPERATION = "migrate"
WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Migration:
    """One step of one table, from a format version to the next. `run` may be called again after it was killed."""

    table: str
    from_version: int
    doc: str
    run: Callable[[Step], None]

    @property
    def name(self) -> str:
        """What it is called in plans and reports."""
        return f"{self.run.__name__} (format {self.from_version} to {self.from_version + 1})"


@dataclass(frozen=True)
class Registry:
    """The migrations there are, and the tables they are for."""

    specs: Sequence[TableSpec]
    migrations: Sequence[Migration]

    def __post_init__(self) -> None:
        steps = [(one.table, one.from_version) for one in self.migrations]
        if len(steps) != len(set(steps)):
            raise ValueError("two migrations start from one format of a table")

    def path(self, table: str, found: int) -> list[Migration]:
        """The steps from a format to the present one, in order; none for a table that is not the project's.

        Raises `StoreError` for a format that there is no way from: one of a newer version, or a step is missing.
        """
        spec = next((spec for spec in self.specs if spec.name == table), None)
        if spec is None or found == spec.format_version:
            return []
        if found > spec.format_version:
            raise StoreError(
                f"table {table} has format {found}, made by a newer version of the project (this one writes "
                f"{spec.format_version}): there is no way back; install that version again"
            )
        steps = {one.from_version: one for one in self.migrations if one.table == table}
        wanted = range(found, spec.format_version)
        missing = [version for version in wanted if version not in steps]
        if missing:
            raise StoreError(f"table {table} has format {found}, and no migration starts from format {missing[0]}")
        return [steps[version] for version in wanted]


MIGRATIONS: tuple[Migration, ...] = ()
PROJECT = Registry(ICEBERG_TABLES, MIGRATIONS)


class Step:
    """What a migration works with: the table as it is, and ways to change it that survive being killed."""

    def __init__(self, stores: Stores, migration: Migration, lease: Lease, progress: Progress) -> None:
        self.stores = stores
        self.progress = progress
        self._migration = migration
        self._lease = lease

    @property
    def table(self) -> Table:
        """The table as it is now."""
        return self.stores.iceberg.load(self._migration.table)

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return [field.name for field in self.table.schema().fields]

    def evolve(self, *changes: Evolution) -> None:
        """Change columns or partitions in one commit, also of the project's own tables."""
        from pkm_pipelines.storage.iceberg_evolve import evolve

        self._lease.check()
        evolve(self.stores.iceberg, self._migration.table, changes)

    def rewrite(self, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> CommitResult:
        """Make each row what `change` makes of it, in one commit and in bounded memory; the marks stay.

        It happens once, however often it is asked for, as long as its snapshot has not expired.
        """
        from pkm_pipelines.storage.iceberg_commit import commit
        from pkm_pipelines.storage.iceberg_schema import FORMAT_VERSION

        name = self._migration.table
        table = self.table
        op_id = uuid.uuid5(table.metadata.table_uuid, f"{FORMAT_VERSION} {self._migration.name}")
        memory = self.stores.settings.tables.memory_mb << 20
        plan = _Rewriting(self.stores, name, change, memory)
        return commit(self.stores.iceberg, name, plan, op_id=str(op_id), before_commit=self._lease.check)

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write down how far it is, as JSON."""
        save_progress(self.stores, OPERATION, self._migration.table, progress)

    @property
    def saved(self) -> dict[str, Any]:
        """What was written down by a run that was killed; empty at the first."""
        return saved_progress(self.stores, OPERATION, self._migration.table)


class _Rewriting:
    """Overwrites a table with what becomes of its own rows, if what was read is still the present when it lands."""

    def __init__(
        self, stores: Stores, name: str, change: Callable[[pa.RecordBatch], pa.RecordBatch], memory_bytes: int
    ) -> None:
        from pkm_pipelines.storage.iceberg_manifests import EVERYTHING
        from pkm_pipelines.tables.overwrite import OverwritePlan

        self._stores = stores
        self._name = name
        self._change = change
        self._read_at: int | None = None
        self._plan = OverwritePlan(self._rows(), EVERYTHING, memory_bytes)

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._plan.paths

    def __call__(self, table: Table) -> Writes | None:
        """What to write to the table as it is."""
        now = table.metadata.current_snapshot_id
        if now is None:
            return None
        if self._read_at not in (None, now):
            raise CommitConflictError(f"table {self._name} was written to while it was migrated; run it again")
        self._read_at = now
        return self._plan(table)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        for batch in self._stores.iceberg.scan(self._name, snapshot_id=self._read_at).read():
            yield self._change(batch)


def format_of(table: Table) -> int | None:
    """The format of a table; None for one that is not the project's."""
    from pkm_pipelines.storage.iceberg_schema import FORMAT_VERSION

    found = table.properties.get(FORMAT_VERSION)
    return None if found is None else int(found)


def plan_migrations(stores: Stores, registry: Registry = PROJECT) -> list[Plan]:
    """What is due, table by table; nothing for tables that are of the present format.

    Raises `StoreError` for a table of a format that there is no way from.
    """
    present = set(stores.iceberg.names())
    plans: list[Plan] = []
    for spec in registry.specs:
        if spec.name in present:
            table = stores.iceberg.load(spec.name)
            steps = registry.path(spec.name, _or_present(format_of(table), spec))
            if steps:
                work = (Work(spec.name, f"{step.name}: {step.doc}") for step in steps)
                plans.append(Plan(OPERATION, spec.name, tuple(work)))
    return plans


def migrate(
    stores: Stores,
    table: str,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    run_id: str = "",
    registry: Registry = PROJECT,
) -> Report:
    """Bring one table to the present format, step by step, under its lease; nothing happens to one that is.

    A migration that was killed is run again. Raises `TableNotFoundError`, `StoreError` if there is no way,
    `LeaseHeldError`, `LeaseLostError`, `CancelledError` between steps, and what a migration raises: the steps before
    it stay.
    """
    began = time.monotonic()
    progress = progress or NullProgress()
    if dry_run:
        plans = [plan for plan in plan_migrations(stores, registry) if plan.table == table]
        work = plans[0].work if plans else ()
        return Report(OPERATION, table, work, time.monotonic() - began, dry_run=True)
    stores.iceberg.load(table)
    ttl = stores.settings.lease_seconds
    done: list[Work] = []
    with stores.state.acquire(f"table:{table}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS) as lease:
        for step in _path(stores, table, registry):
            progress.check_cancelled()
            progress.stage(step.name, unit="steps")
            record = Record.begin(stores, OPERATION, table, run_id)
            try:
                step.run(Step(stores, step, lease, progress))
                lease.check()
                _raise_format(stores, table, step.from_version)
            except BaseException as error:
                record.fail(stores, error)
                raise
            done.append(Work(table, f"{step.name}: {step.doc}"))
            record.end(stores, Report(OPERATION, table, tuple(done), time.monotonic() - began))
            progress.done()
    return Report(OPERATION, table, tuple(done), time.monotonic() - began)


def _path(stores: Stores, table: str, registry: Registry) -> list[Migration]:
    found = format_of(stores.iceberg.load(table))
    return [] if found is None else registry.path(table, found)


def _or_present(found: int | None, spec: TableSpec) -> int:
    return spec.format_version if found is None else found


def _raise_format(stores: Stores, name: str, before: int) -> None:
    """Write the next format into the table, if it still has the one before."""
    from pyiceberg.table.update import SetPropertiesUpdate

    from pkm_pipelines.storage.iceberg_schema import FORMAT_VERSION
    from pkm_pipelines.storage.iceberg_update import Change, update_table

    def decide(table: Table) -> Change:
        found = format_of(table)
        if found == before + 1:
            return Change()
        if found != before:
            raise StoreError(f"table {name} had format {before} when its migration began, and has {found} now")
        return Change([SetPropertiesUpdate(updates={FORMAT_VERSION: str(before + 1)})])

    update_table(stores.iceberg, name, decide, what="its format was raised")
