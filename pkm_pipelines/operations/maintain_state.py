"""Maintenance of the state: compacted into one run, and what nothing uses any more collected.

The service that owns the state does it (`storage/slate_maintain.py`), beside its clients. Little of it is needed: a
service compacts and collects by itself while it lives. It pays where services live briefly, as those of a laptop do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.operations.debt import Debt, Limit
from pkm_pipelines.operations.maintenance import STATE_TABLE, Plan, Report, Work

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores

OPERATION = "state"


def state_debt(stores: Stores) -> Debt:
    """The debt of the state: its objects, and the sorted tables and runs that a read looks into."""
    found = stores.state.figures()
    return Debt(
        STATE_TABLE,
        files=found["tables"] + found["runs"],
        bytes=found["table_bytes"],
        state_files=found["files"],
        state_stale=found["stale"],
        state_bytes=found["bytes"],
    )


def state_limits(stores: Stores, debt: Debt) -> list[Limit]:
    """The figures of the state that have a limit: what a collection can take away, not what was just written."""
    return [Limit(OPERATION, "objects of the past", debt.state_stale, stores.settings.maintenance.state_files)]


def plan_state(stores: Stores, table: str = STATE_TABLE) -> Plan:
    """What there is to do for the state.

    What a collection saves is an upper bound: objects that a compaction leaves behind stay for 15 minutes.
    """
    found = stores.state.figures()
    tables = found["tables"] + found["runs"]
    work: list[Work] = []
    if tables > 1:
        what = f"compact {found['tables']} tables and {found['runs']} runs into one run"
        work.append(Work(table, what, files=tables, bytes=found["table_bytes"], saves_files=tables - 1))
    if stale := found["stale"]:
        freed = max(0, found["bytes"] - found["table_bytes"])
        work.append(Work(table, "collect objects that nothing uses", stale, freed, stale, freed))
    return Plan(OPERATION, table, tuple(work))


def maintain_state(
    stores: Stores,
    table: str = STATE_TABLE,
    *,
    progress: Progress | None = None,
    run_id: str = "",
    dry_run: bool = False,
) -> Report:
    """Compact the state and collect what nothing uses; clients are answered meanwhile.

    A compaction that another one is in the way of, or that takes longer than some minutes, goes on in the background
    and is said so in `details`. Raises `StateUnavailableError`, `CancelledError`.
    """
    began = time.monotonic()
    if dry_run:
        return Report(OPERATION, table, plan_state(stores, table).work, time.monotonic() - began, dry_run=True)
    progress = progress or NullProgress()
    progress.stage("compact the state", 2, unit="steps")
    before = stores.state.figures()
    finished = stores.state.compact()
    progress.advance(1)
    progress.check_cancelled()
    stores.state.collect()
    progress.advance(1)
    progress.done()
    after = stores.state.figures()
    done: list[Work] = []
    tables = before["tables"] + before["runs"]
    if finished and tables > after["tables"] + after["runs"]:
        what = f"compacted {before['tables']} tables and {before['runs']} runs into {after['runs']}"
        done.append(Work(table, what, tables, before["table_bytes"], tables - after["tables"] - after["runs"]))
    freed = max(0, before["files"] - after["files"]), max(0, before["bytes"] - after["bytes"])
    if freed[0]:
        done.append(Work(table, f"collected {freed[0]} objects", *freed, *freed))
    details: dict[str, int | float | str] = {**after, "compaction": "finished" if finished else "still under way"}
    return Report(OPERATION, table, tuple(done), time.monotonic() - began, details)
