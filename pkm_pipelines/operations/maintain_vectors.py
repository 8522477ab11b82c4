"""Maintenance of the vectors: fragments, indexes, old versions, and what killed writers left behind.

It works beside a writer for as long as that is possible. Every commit of a writer names the table's first fragment
(`storage/lance_commit.py`), so under a busy one the run of fragments that begins with it is never compacted: for what
is left then, and only for that, the table's lease is taken, if it is free within a minute.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import LeaseHeldError
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.operations.debt import Debt, Limit
from pkm_pipelines.operations.maintenance import Plan, Report, Work

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.storage.lance_maintain import Removable, Run

OPERATION = "vectors"
STAGED_AGE = dt.timedelta(days=1)
"""Staged rows in which nothing was written for so long are of a writer that is gone."""
LEASE_WAIT_SECONDS = 60.0


def vectors_debt(stores: Stores, table: str) -> Debt:
    """The debt of a vector table; raises `TableNotFoundError`."""
    found = stores.vectors.debt(table)
    return Debt(
        table,
        rows=found.rows,
        files=found.fragments + found.deletion_files,
        bytes=found.bytes,
        deleted_rows=found.deleted_rows,
        fragments=found.small_fragments,
        unindexed_rows=found.unindexed_rows,
        deletion_files=found.worked_in,
        versions=found.versions,
        expirable=stores.vectors.count_old(table, _version_age(stores)),
    )


def vectors_limits(stores: Stores, debt: Debt) -> list[Limit]:
    """The figures of a vector table that have a limit."""
    settings = stores.settings.maintenance
    return [
        Limit("vectors", "fragments that could be merged", debt.fragments, settings.fragments),
        Limit("vectors", "deletion files that could be worked in", debt.deletion_files, settings.deletion_files),
        Limit("vectors", "rows in no index", debt.unindexed_rows, settings.unindexed_rows),
        Limit("vectors", "versions that nothing keeps", debt.expirable, settings.versions),
    ]


def plan_vectors(stores: Stores, table: str) -> Plan:
    """What there is to do for a vector table; raises `TableNotFoundError`.

    What the clean-up saves is a lower bound: the files that the compaction itself makes superfluous are still in use.
    """
    debt = stores.vectors.debt(table)
    work = [_compaction(table, run) for run in stores.vectors.plan_compaction(table)]
    if debt.unindexed_rows:
        work.append(Work(table, f"bring the indexes up to date with {debt.unindexed_rows:,} rows"))
    removable = stores.vectors.removable(table, _version_age(stores))
    if removable.versions:
        work.append(_clean_up(table, removable))
    if left := stores.vectors.abandoned(STAGED_AGE):
        work.append(_sweep(table, len(left)))
    return Plan(OPERATION, table, tuple(work))


def maintain_vectors(
    stores: Stores, table: str, *, progress: Progress | None = None, run_id: str = "", dry_run: bool = False
) -> Report:
    """Compact a vector table, bring its indexes up to date and remove old versions; nothing that a tag keeps goes.

    A maintenance that was interrupted goes on with what is left. `details` say what the table then holds, and the
    recall of its vector index where it has one. Raises `TableNotFoundError`, `CancelledError`, `CommitConflictError`.
    """
    began = time.monotonic()
    if dry_run:
        return Report(OPERATION, table, plan_vectors(stores, table).work, time.monotonic() - began, dry_run=True)
    progress = progress or NullProgress()
    vectors = stores.vectors
    runs, indexes = vectors.optimize(table, progress)
    if vectors.plan_compaction(table):
        runs += _compact_alone(stores, table, progress)
    progress.check_cancelled()
    made = vectors.index(table)
    removed = vectors.cleanup(table, _version_age(stores))
    done = [_compaction(table, run) for run in runs]
    done += [Work(table, f"brought the index {name} up to date") for name in (*indexes.refreshed, *made.refreshed)]
    done += [Work(table, f"built the index of {column}") for column in made.built]
    if removed.versions:
        done.append(_clean_up(table, removed))
    if swept := vectors.sweep(STAGED_AGE):
        done.append(_sweep(table, swept))
    debt = vectors.debt(table)
    details: dict[str, int | float | str] = {
        "rows": debt.rows,
        "fragments": debt.fragments,
        "deletion_files": debt.deletion_files,
        "unindexed_rows": debt.unindexed_rows,
        "versions": debt.versions,
    }
    if (recall := vectors.recall(table)) is not None:
        details[f"recall@{recall.depth}"] = recall.recall
    return Report(OPERATION, table, tuple(done), time.monotonic() - began, details)


def _compact_alone(stores: Stores, table: str, progress: Progress) -> list[Run]:
    ttl = stores.settings.lease_seconds
    try:
        with stores.state.acquire(f"table:{table}", ttl_seconds=ttl, wait_seconds=LEASE_WAIT_SECONDS):
            return stores.vectors.optimize(table, progress)[0]
    except LeaseHeldError as error:
        progress.note(f"some fragments are left for the next time: {error}")
        return []


def _compaction(table: str, run: Run) -> Work:
    deleted = f" without their {run.deleted_rows:,} deleted rows" if run.deleted_rows else ""
    files = len(run.fragment_ids)
    return Work(
        table,
        f"rewrite {files} fragments of {run.rows:,} rows into {run.into}{deleted}",
        files=files,
        bytes=run.bytes,
        saves_files=files - run.into,
        saves_bytes=run.bytes * run.deleted_rows // max(1, run.rows + run.deleted_rows),
    )


def _clean_up(table: str, removable: Removable) -> Work:
    return Work(
        table,
        f"remove {removable.versions} old versions",
        files=removable.versions,
        bytes=removable.bytes,
        saves_files=removable.versions,
        saves_bytes=removable.bytes,
    )


def _sweep(table: str, count: int) -> Work:
    return Work(table, f"remove the staged rows of {count} writes that ended early", files=count, saves_files=count)


def _version_age(stores: Stores) -> dt.timedelta:
    return dt.timedelta(hours=stores.settings.maintenance.version_age_hours)
