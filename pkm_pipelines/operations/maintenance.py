"""Maintenance: what keeps tables small, fast and within their time, planned, carried out and reported in one way.

Each operation first says what it would do and what that saves (`plan_maintenance`); `maintain` does it. It is safe
beside writers: what it writes to a table is one short commit after the other, each planned anew if a writer was
quicker, so it takes no table's lease from them. Two maintenances of one table do not fight, because each holds
`lock:maintain:<table>`.

What an operation is doing, and its last report, stand in the state under `maintenance:<operation>:<table>`. One that
was killed goes on with the next call: what it had committed is in the table, and its record says so.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.progress import NullProgress, Progress

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores

OperationName = Literal["compact", "expire", "orphans", "manifests", "stats", "retention", "vectors", "state"]
OPERATIONS: tuple[OperationName, ...] = get_args(OperationName)
STATE_TABLE = "state"
"""What the operation `state` is applied to: there is one state."""
# Waiting for another maintenance of the same table.
WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Work:
    """One line of a plan or report: what is done to one thing, and what it saves.

    `files` and `bytes` are what is touched; `saves_files` and `saves_bytes` are what there is less of afterwards, as
    far as that is known, or about if it is `estimated`. Files that are given up now and deleted after a time of grace
    are saved now, and not once more when they are deleted.
    """

    table: str
    what: str
    files: int = 0
    bytes: int = 0
    saves_files: int = 0
    saves_bytes: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Plan:
    """What an operation would do to a table as it is now."""

    operation: str
    table: str
    work: tuple[Work, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.work


@dataclass(frozen=True)
class Report:
    """What an operation did, or would have done (`dry_run`). `details` are further figures, by name.

    `error` is why it could not be carried out; where not even the table's debt could be read, no operation is named.
    """

    operation: str
    table: str
    done: tuple[Work, ...] = ()
    seconds: float = 0.0
    details: Mapping[str, int | float | str] = field(default_factory=dict)
    dry_run: bool = False
    error: str = ""


class Room(Protocol):
    """A module that knows how to maintain one kind of store: `operations/maintain_*.py`."""

    def plan(self, stores: Stores, operation: str, table: str) -> Plan:
        """What there is to do."""
        ...

    def run(self, stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
        """Do it."""
        ...


class TableRoom:
    """The Iceberg tables."""

    def plan(self, stores: Stores, operation: str, table: str) -> Plan:
        """What there is to do."""
        from pkm_pipelines.operations.maintain_tables import plan_table

        return plan_table(stores, operation, table)

    def run(self, stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
        """Do it."""
        from pkm_pipelines.operations.maintain_tables import maintain_table

        return maintain_table(stores, operation, table, progress=progress, run_id=run_id)


class VectorRoom:
    """The vectors."""

    def plan(self, stores: Stores, operation: str, table: str) -> Plan:
        """What there is to do."""
        from pkm_pipelines.operations.maintain_vectors import plan_vectors

        return plan_vectors(stores, table)

    def run(self, stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
        """Do it."""
        from pkm_pipelines.operations.maintain_vectors import maintain_vectors

        return maintain_vectors(stores, table, progress=progress, run_id=run_id)


class StateRoom:
    """The state."""

    def plan(self, stores: Stores, operation: str, table: str) -> Plan:
        """What there is to do."""
        from pkm_pipelines.operations.maintain_state import plan_state

        return plan_state(stores, table)

    def run(self, stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
        """Do it."""
        from pkm_pipelines.operations.maintain_state import maintain_state

        return maintain_state(stores, table, progress=progress, run_id=run_id)


def tables_of(stores: Stores, operation: str) -> list[str]:
    """The names of what an operation can be applied to, sorted; raises `StoreError` for an unknown operation."""
    _check(operation)
    if operation == "state":
        return [STATE_TABLE]
    if operation == "vectors":
        table = stores.vector_table
        return [table] if table is not None and stores.vectors.exists(table) else []
    return stores.iceberg.names()


def plan_maintenance(stores: Stores, operation: str, table: str) -> Plan:
    """What `operation` would do to `table` as it is now; changes nothing.

    Raises `TableNotFoundError`, and `StoreError` for an unknown operation.
    """
    return _room(operation).plan(stores, operation, table)


def maintain(
    stores: Stores,
    operation: str,
    table: str,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    run_id: str = "",
) -> Report:
    """Carry out `operation` on `table` and record its report in the state; with `dry_run` only say what it would do.

    Raises `TableNotFoundError`, `LeaseHeldError` if another maintenance of the table does not end within
    `WAIT_SECONDS`, and `CancelledError`; what was committed before stays, and the next call goes on from there.
    """
    room = _room(operation)
    began = time.monotonic()
    if dry_run:
        plan = room.plan(stores, operation, table)
        return Report(operation, table, plan.work, time.monotonic() - began, dry_run=True)
    listener = progress or NullProgress()
    ttl = stores.settings.lease_seconds
    with stores.state.acquire(f"maintain:{table}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS):
        record = Record.begin(stores, operation, table, run_id)
        try:
            report = room.run(stores, operation, table, progress=listener, run_id=run_id)
        except BaseException as error:
            record.fail(stores, error)
            raise
        record.end(stores, report)
    return report


def last_report(stores: Stores, operation: str, table: str) -> Report | None:
    """The report of the last time that `operation` was carried out on `table` to its end."""
    record = Record.read(stores, operation, table)
    return record.report if record else None


@dataclass
class Record:
    """What the state knows about an operation on a table. Times are ISO 8601 in UTC.

    `progress` is what the operation itself wrote down to go on from; `status` is running, done or failed (a record
    that says running, of an operation that nobody carries out, is of one that was killed). `worked_at` is when it last
    ended with something done.
    """

    operation: str
    table: str
    status: str
    run_id: str = ""
    started_at: str = ""
    ended_at: str = ""
    worked_at: str = ""
    error: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None

    @classmethod
    def read(cls, stores: Stores, operation: str, table: str) -> Record | None:
        """The record, if there is one."""
        value = stores.state.get(keys.maintenance(operation, table))
        if value is None:
            return None
        found: dict[str, Any] = json.loads(value)
        report = found.pop("report", None)
        if report is not None:
            report["done"] = tuple(Work(**work) for work in report["done"])
            report = Report(**report)
        return cls(**found, report=report)

    @classmethod
    def begin(cls, stores: Stores, operation: str, table: str, run_id: str) -> Record:
        """Write down that an operation begins, or goes on: the progress of one that did not end is kept."""
        before = cls.read(stores, operation, table)
        goes_on = before is not None and before.status != "done"
        record = cls(
            operation,
            table,
            "running",
            run_id,
            started_at=now(),
            worked_at=before.worked_at if before else "",
            progress=before.progress if before and goes_on else {},
            report=before.report if before else None,
        )
        record.save(stores)
        return record

    def save(self, stores: Stores) -> None:
        """Write it to the state."""
        stores.state.put(keys.maintenance(self.operation, self.table), json.dumps(asdict(self)).encode())

    def end(self, stores: Stores, report: Report) -> None:
        """Write down that it is done; what it made of its progress is over."""
        self.status, self.ended_at, self.error, self.progress, self.report = "done", now(), "", {}, report
        self.worked_at = self.ended_at if report.done else self.worked_at
        self.save(stores)

    def fail(self, stores: Stores, error: BaseException) -> None:
        """Write down why it ended early; the progress that the operation saved meanwhile is kept."""
        saved = Record.read(stores, self.operation, self.table) or self
        saved.status, saved.ended_at, saved.error = "failed", now(), f"{type(error).__name__}: {error}"
        saved.save(stores)


def save_progress(stores: Stores, operation: str, table: str, progress: Mapping[str, Any]) -> None:
    """For an operation: write down how far it is, so that it can go on from there."""
    record = Record.read(stores, operation, table) or Record(operation, table, "running", started_at=now())
    record.progress = dict(progress)
    record.save(stores)


def saved_progress(stores: Stores, operation: str, table: str) -> dict[str, Any]:
    """For an operation: what it wrote down before it was killed; empty if it begins anew."""
    record = Record.read(stores, operation, table)
    return record.progress if record else {}


def now() -> str:
    """The present moment as ISO 8601 in UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def _room(operation: str) -> Room:
    _check(operation)
    if operation == "vectors":
        return VectorRoom()
    return StateRoom() if operation == "state" else TableRoom()


def _check(operation: str) -> None:
    if operation not in OPERATIONS:
        raise StoreError(f"no maintenance is called {operation!r} (there are: {', '.join(OPERATIONS)})")
