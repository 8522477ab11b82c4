"""The one function by which rows of a table change (decision 0003).

Data, the watermarks of the inputs it was made from and the id of the operation become current in one atomic step
of the catalog, or not at all. Whenever somebody else was quicker the **whole** operation is planned again on the
table as it then is; nothing of a plan is carried over to another parent. The operation's id stands in the
snapshot, so an attempt whose outcome is unknown is looked up and never repeated blindly, in this process or in the
one that takes over after a crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, ValidationException
from pyiceberg.io import FileIO
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.model.errors import CommitConflictError, StoreError, TableNotFoundError
from pkm_pipelines.model.records import CommitResult
from pkm_pipelines.model.urls import redacted
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import UNREACHABLE, pause, reason
from pkm_pipelines.storage.iceberg_history import (
    OP_ID,
    ROWS_ADDED,
    ROWS_DELETED,
    ROWS_UPDATED,
    WATERMARK,
    count,
    find_operation,
    tells_all_since,
    watermarks_of,
)
from pkm_pipelines.storage.iceberg_refs import pin
from pkm_pipelines.storage.iceberg_snapshot import (
    PreparedSnapshot,
    Writes,
    ask_catalog,
    prepare_snapshot,
    seen_from,
)
from pkm_pipelines.storage.iceberg_turn import Turn
from pkm_pipelines.storage.iceberg_writer import delete_files

ATTEMPTS = 24


class Plan(Protocol):
    """Decides what to write, given the table as it is; asked again for each attempt.

    It may keep data files from one attempt for the next, where what they were made from is still the same.
    """

    @property
    def paths(self) -> Sequence[str]:
        """Every data file that it began to write, in all attempts; those that are not committed are deleted."""
        ...

    def __call__(self, table: Table) -> Writes | None:
        """What to write; None if the table already holds all of it."""
        ...


def commit(
    store: IcebergStore,
    name: str,
    plan: Plan,
    *,
    op_id: str,
    properties: Mapping[str, str] | None = None,
    watermarks: Mapping[str, int] | None = None,
    expect: Mapping[str, int | None] | None = None,
    before_commit: Callable[[], None] | None = None,
    branch: str = MAIN_BRANCH,
) -> CommitResult:
    """Carry out `plan` on the table `name` exactly once.

    `watermarks` become durable with it (input table to snapshot id); those of other inputs are carried over from the
    parent. `expect` says what they must still be when the commit lands. Inputs that are tables of the store are
    pinned there. `before_commit` is called right before the catalog is asked (a check of the lease) and may raise.
    Nothing to write and no mark that moves makes no snapshot; marks alone make an empty one. On another `branch` than
    `main` the plan sees the table as it is there, and marks and operations are those of that branch's line.

    Raises `TableNotFoundError`, `SnapshotNotFoundError` if there is no such branch, `CommitConflictError` if another
    run has moved an expected mark or the table kept changing, `StoreError` if a store cannot be reached, and
    whatever the plan and `before_commit` raise.
    """
    operation = _Operation(store, name, branch, plan, op_id, dict(properties or {}), dict(watermarks or {}))
    try:
        return operation.run(dict(expect or {}), before_commit)
    except OSError as error:
        raise StoreError(
            f"table {name}: the write failed: {error}; it is in the table whole or not at all, and will be looked up"
            " when it is tried again"
        ) from error
    finally:
        operation.clean_up()


class _Operation:
    """One operation over all its attempts, and the files it leaves behind."""

    def __init__(
        self,
        store: IcebergStore,
        name: str,
        branch: str,
        plan: Plan,
        op_id: str,
        properties: dict[str, str],
        marks: dict[str, int],
    ) -> None:
        self._store = store
        self._name = name
        self._branch = branch
        # A branch has marks of its own, so it pins them under a name of its own.
        self._consumer = name if branch == MAIN_BRANCH else f"{name}@{branch}"
        self._plan = plan
        self._op_id = op_id
        self._properties = properties
        self._marks = marks
        self._io: FileIO | None = None
        self._written: list[str] = []
        # Attempts that the catalog was asked for and that may be part of the table. A refusal counts when the table
        # is seen without the snapshot: of a request that was sent twice on its way, only the second is answered.
        self._in_doubt: dict[int, set[str]] = {}
        self._refused: set[int] = set()
        self._parents: dict[int, int | None] = {}

    def run(self, expect: Mapping[str, int | None], before_commit: Callable[[], None] | None) -> CommitResult:
        """Try until it is in the table or cannot be."""
        with Turn(self._store.catalog_url, self._name) as turn:
            return self._run(expect, before_commit, turn)

    def _run(
        self, expect: Mapping[str, int | None], before_commit: Callable[[], None] | None, turn: Turn
    ) -> CommitResult:
        why: BaseException | None = None
        for attempt in range(ATTEMPTS + 1):
            if attempt > 1:  # the second has its turn
                pause(attempt - 2)
            table = seen_from(self._store.load(self._name), self._branch)
            self._io = table.io
            if landed := find_operation(table, self._op_id):
                return self._landed(landed, table, attempt + 1)
            self._settle_doubts(table)
            if attempt == ATTEMPTS:
                break
            try:
                prepared, writes = self._prepare(table, expect)
            except FileNotFoundError as error:
                if not self._has_moved(table):
                    raise StoreError(f"table {self._name}: one of its files is missing: {error}") from None
                why = error  # compacted and expired while the plan was being made
                continue
            if prepared is None:
                return CommitResult(self._name, table.metadata.current_snapshot_id, written=False, attempts=attempt + 1)
            turn.take()
            if before_commit is not None:
                before_commit()
            snapshot_id = prepared.snapshot.snapshot_id
            self._in_doubt[snapshot_id] = {*prepared.files, *writes.paths}
            self._parents[snapshot_id] = prepared.snapshot.parent_snapshot_id
            try:
                ask_catalog(table, prepared.updates, prepared.requirements)
            except (CommitFailedException, ValidationException) as error:
                self._refused.add(snapshot_id)
                why = error
            except (CommitStateUnknownException, *UNREACHABLE) as error:
                why = error
            except ValueError as error:
                # Refused for a reason that pyiceberg has no error for, or an answer that it could not read.
                if not self._has_moved(table):
                    raise
                why = error
            else:
                return self._landed(prepared.snapshot, table, attempt + 1)
        raise self._given_up(why)

    def clean_up(self) -> None:
        """Delete every file that the operation wrote and that cannot be part of the table."""
        kept = set[str]().union(*self._in_doubt.values())
        if self._io is not None:
            delete_files(self._io, [path for path in (*self._plan.paths, *self._written) if path not in kept])

    def _prepare(self, table: Table, expect: Mapping[str, int | None]) -> tuple[PreparedSnapshot | None, Writes]:
        """Plan on the table as it is, and write the snapshot; None if there is nothing to write."""
        carried = watermarks_of(table)
        for source, start in expect.items():
            if carried.get(source) != start:
                raise CommitConflictError(
                    f"table {self._name}: another run has moved its watermark of {source} from {start} to"
                    f" {carried.get(source)} in the meantime; nothing was written, run it again"
                )
        writes = self._plan(table) or Writes()
        moved = {source: mark for source, mark in self._marks.items() if carried.get(source) != mark}
        if writes.changes_nothing and not moved:
            return None, writes
        for source, mark in moved.items():
            with contextlib.suppress(TableNotFoundError):  # an input that is no table of this store
                pin(self._store, source, self._consumer, current=carried.get(source), upcoming=mark)
        marks = {**carried, **self._marks}
        prepared = prepare_snapshot(table, writes, self._summary(writes, marks), self._branch)
        self._written += prepared.files
        return prepared, writes

    def _summary(self, writes: Writes, marks: Mapping[str, int]) -> dict[str, str]:
        return {
            **self._properties,
            **writes.properties,
            **{WATERMARK + source: str(mark) for source, mark in marks.items()},
            OP_ID: self._op_id,
            ROWS_ADDED: str(writes.rows_added),
            ROWS_UPDATED: str(writes.rows_updated),
            ROWS_DELETED: str(writes.rows_deleted),
        }

    def _settle_doubts(self, table: Table) -> None:
        """Give up attempts that are not part of the table; raise `StoreError` where that cannot be known any more.

        An attempt that landed, and whose snapshot has expired since, is not found: it must not be repeated for that.
        """
        for snapshot_id in list(self._in_doubt):
            if table.metadata.snapshot_by_id(snapshot_id) is not None:
                continue
            is_known = tells_all_since(table, self._parents[snapshot_id])
            if snapshot_id in self._refused and is_known:
                del self._in_doubt[snapshot_id]
            elif snapshot_id not in self._refused and not is_known:
                raise StoreError(
                    f"table {self._name}: the catalog did not answer, and so many commits followed that whether this"
                    f" write (operation {self._op_id}) landed is not known any more; it was not repeated. Look whether"
                    " its rows are there before you run it again"
                )

    def _landed(self, snapshot: Snapshot, table: Table, attempts: int) -> CommitResult:
        """The result of an attempt that is in the table, of this process or of one before it."""
        # One that landed and was rolled back before anybody looked is out of the line, and can still be read.
        ids = {snapshot.snapshot_id, *(known.snapshot_id for known in table.metadata.snapshots)}
        self._in_doubt = {one: files for one, files in self._in_doubt.items() if one in ids}
        return CommitResult(
            self._name,
            snapshot.snapshot_id,
            rows_added=count(snapshot, ROWS_ADDED),
            rows_updated=count(snapshot, ROWS_UPDATED),
            rows_deleted=count(snapshot, ROWS_DELETED),
            attempts=attempts,
        )

    def _has_moved(self, table: Table) -> bool:
        return self._store.load(self._name).metadata_location != table.metadata_location

    def _given_up(self, why: BaseException | None) -> StoreError:
        if isinstance(why, UNREACHABLE):
            url = self._store.catalog_url
            return StoreError(
                f"catalog {redacted(url)}: cannot be reached: {reason(why, url)}; whether the write to table"
                f" {self._name} landed is not known, and will be looked up when it is tried again"
            )
        return CommitConflictError(
            f"table {self._name} kept changing under this write, {ATTEMPTS} times; nothing was written, run it again"
        )
