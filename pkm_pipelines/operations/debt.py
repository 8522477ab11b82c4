"""Debt: what maintenance has to work off, from figures that are cheap to get.

They are read from a table's metadata and the list of its manifests, never from its data, so a sensor can ask twice
a minute and a check can fail when a limit is passed. `due` says which operations would pay; `maintain_due` does them.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import PkmError, TableNotFoundError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.operations.maintenance import (
    STATE_TABLE,
    OperationName,
    Record,
    Report,
    maintain,
    now,
    tables_of,
)

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores


@dataclass(frozen=True)
class Debt:
    """The figures of one table, or of the state; what is not known or has no meaning for it is 0.

    Sizes are in bytes. `small_files` could be merged into larger ones, and so could `small_manifests`; `expirable`
    snapshots or versions are held by nothing and no longer too young to go; `deleted_rows` are those that delete files
    take off `rows`; `deletion_files` are those that a compaction would work in. Of `state_files`, `state_stale` can be
    collected.
    """

    table: str
    rows: int = 0
    files: int = 0
    bytes: int = 0
    small_files: int = 0
    delete_files: int = 0
    deleted_rows: int = 0
    snapshots: int = 0
    expirable: int = 0
    metadata_bytes: int = 0
    manifests: int = 0
    small_manifests: int = 0
    fragments: int = 0
    unindexed_rows: int = 0
    deletion_files: int = 0
    versions: int = 0
    state_files: int = 0
    state_stale: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class Limit:
    """One figure beside its limit; the operation works it off."""

    operation: OperationName
    name: str
    value: float
    limit: float

    @property
    def share(self) -> float:
        """How much of what may be there is there."""
        return self.value / self.limit

    @property
    def is_passed(self) -> bool:
        """Whether there is more than there should be."""
        return self.value > self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.value:,.4g} (limit {self.limit:,.4g}; pkm maintain {self.operation})"


def debt_of(stores: Stores, table: str) -> Debt:
    """The debt of a table by name; `state` is the state. Raises `TableNotFoundError`."""
    if table == STATE_TABLE:
        from pkm_pipelines.operations.maintain_state import state_debt

        return state_debt(stores)
    if table.startswith("vectors."):
        from pkm_pipelines.operations.maintain_vectors import vectors_debt

        return vectors_debt(stores, table)
    from pkm_pipelines.operations.maintain_tables import table_debt

    return table_debt(stores, table)


def debtors(stores: Stores) -> list[str]:
    """Everything that can be in debt: the tables, the vectors, and the state."""
    return [*tables_of(stores, "compact"), *tables_of(stores, "vectors"), STATE_TABLE]


def limits(stores: Stores, debt: Debt) -> list[Limit]:
    """Every figure of a debt that has a limit in the settings; what no operation could take away now counts as 0."""
    if debt.table == STATE_TABLE:
        from pkm_pipelines.operations.maintain_state import state_limits

        return state_limits(stores, debt)
    if debt.table.startswith("vectors."):
        from pkm_pipelines.operations.maintain_vectors import vectors_limits

        return vectors_limits(stores, debt)
    settings = stores.settings.maintenance
    return [
        Limit("compact", "small files", debt.small_files, settings.small_files),
        Limit("compact", "delete files", debt.delete_files, settings.delete_files),
        Limit("compact", "share of deleted rows", debt.deleted_rows / max(debt.rows, 1), settings.deleted_share),
        Limit("expire", "snapshots that nothing holds", debt.expirable, settings.snapshots),
        Limit("manifests", "manifests", debt.manifests if debt.small_manifests else 0, settings.manifests),
        Limit("expire", "bytes of metadata", debt.metadata_bytes if debt.expirable else 0, settings.metadata_mb << 20),
    ]


def over_limit(stores: Stores, debt: Debt, factor: float = 1.0) -> list[Limit]:
    """The limits that a debt passes; with a `factor` above 1 only those that it passes by far."""
    return [limit for limit in limits(stores, debt) if limit.value > factor * limit.limit]


def due(stores: Stores, debt: Debt) -> list[OperationName]:
    """The operations that pay now, in the order in which they should run.

    Those of a clock (retention, orphans) are due when the last one is long enough ago.
    """
    wanted = {limit.operation for limit in over_limit(stores, debt)}
    if debt.table != STATE_TABLE and not debt.table.startswith("vectors."):
        wanted |= {name for name, hours in _clocks(stores).items() if _is_old(stores, name, debt.table, hours)}
    order: tuple[OperationName, ...] = ("retention", "compact", "manifests", "expire", "orphans", "vectors", "state")
    return [name for name in order if name in wanted]


def reason(error: Exception) -> str:
    """Why a table cannot be looked at or maintained, in a line: told beside the others, which go on."""
    text = str(error) if isinstance(error, PkmError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def fingerprint(stores: Stores, debt: Debt) -> str:
    """What is due and why: the same text until the debt changes or an operation has done something.

    An operation that found nothing to do leaves it as it was, so nobody who compares it asks for another one. One of a
    clock is due anew each time that it has begun.
    """
    operations = due(stores, debt)
    if not operations:
        return ""
    passed = sorted((limit.name, limit.value) for limit in over_limit(stores, debt))
    records = [Record.read(stores, name, debt.table) for name in operations]
    clocks = _clocks(stores)
    moments = [
        (name, "" if record is None else record.started_at if name in clocks else record.worked_at)
        for name, record in zip(operations, records, strict=True)
    ]
    return f"{passed} {moments}"


def maintain_due(stores: Stores, table: str, *, progress: Progress | None = None, run_id: str = "") -> list[Report]:
    """Carry out what is due for a table; a table that does not exist owes nothing.

    Raises what `maintain` raises.
    """
    try:
        operations = due(stores, debt_of(stores, table))
    except TableNotFoundError:
        return []
    for name in _clocks(stores):
        if Record.read(stores, name, table) is None:
            Record(name, table, "done", started_at=now(), ended_at=now()).save(stores)
    return [maintain(stores, name, table, progress=progress, run_id=run_id) for name in operations]


def _clocks(stores: Stores) -> dict[OperationName, float]:
    settings = stores.settings.maintenance
    return {"retention": settings.retention_hours, "orphans": settings.orphans_hours}


def _is_old(stores: Stores, operation: OperationName, table: str, hours: float) -> bool:
    """Whether an operation was not carried out for so long; the clock starts with the first `maintain_due`."""
    record = Record.read(stores, operation, table)
    if record is None:
        return False
    then = dt.datetime.fromisoformat(record.started_at)
    return dt.datetime.now(dt.UTC) - then > dt.timedelta(hours=hours)
