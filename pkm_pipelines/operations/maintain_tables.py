"""Maintenance of the Iceberg tables: the mechanics of `tables/` with the settings and the records of a lakehouse."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from pyiceberg.expressions import LessThan

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.tables import BY_NAME, PROCESSED_NOTES
from pkm_pipelines.operations.debt import Debt
from pkm_pipelines.operations.maintenance import Plan, Report, Work, save_progress, saved_progress
from pkm_pipelines.operations.table_job import Job, keeping, packing, retention_days
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_expire import unreachable_files
from pkm_pipelines.storage.iceberg_history import count
from pkm_pipelines.storage.iceberg_manifests import manifests_of
from pkm_pipelines.storage.iceberg_reader import reading
from pkm_pipelines.tables.compact import MAINTENANCE, CompactPlan, FileGroup, batches, plan_groups
from pkm_pipelines.tables.distinct import count_distinct, countable
from pkm_pipelines.tables.expire import expirable, expire
from pkm_pipelines.tables.garbage import delete_doomed, doom, doomed, ripe
from pkm_pipelines.tables.manifests import ManifestsPlan, Rewrite, plan_manifests
from pkm_pipelines.tables.orphans import Orphans
from pkm_pipelines.tables.retention import INGESTED, LogRetention, RetentionPlan, count_past, stripped

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from pkm_pipelines.operations.stores import Stores

Details = dict[str, int | float | str]
RETENTION_DAYS = "pkm.retention-days"
"""The property of a log that is none of the project's own, and whose rows are to go after so many days."""
# How often a compaction looks again at what writers have left to do behind its back.
ROUNDS = 8


def plan_table(stores: Stores, operation: str, table: str) -> Plan:
    """What an operation would do to a table; raises `TableNotFoundError`."""
    plan, _ = _OPERATIONS[operation]
    job = Job(stores, operation, table)
    with reading(job.load()):
        return Plan(operation, table, plan(job))


def maintain_table(stores: Stores, operation: str, table: str, *, progress: Progress, run_id: str) -> Report:
    """Carry out an operation on a table; raises what `maintenance.maintain` says."""
    began = time.monotonic()
    _, run = _OPERATIONS[operation]
    try:
        done, details = run(Job(stores, operation, table, progress, run_id))
    except OSError as error:
        raise StoreError(f"table {table}: {operation} failed: {error}; what it did is kept, run it again") from error
    return Report(operation, table, done, time.monotonic() - began, details)


def table_debt(stores: Stores, table: str) -> Debt:
    """The debt of a table, from its metadata and its manifests, which are kept in memory once they are read.

    Raises `TableNotFoundError`, and `StoreError` for a table that cannot be read.
    """
    job = Job(stores, "compact", table)
    loaded = job.load()
    with reading(loaded):
        return _debt(job, loaded)


def _debt(job: Job, loaded: Table) -> Debt:
    snapshot = loaded.metadata.current_snapshot()
    summary = snapshot.summary.additional_properties if snapshot and snapshot.summary else {}
    deleted = int(summary.get("total-position-deletes", 0))
    return Debt(
        job.table,
        rows=int(summary.get("total-records", 0)) - deleted,
        files=int(summary.get("total-data-files", 0)),
        bytes=int(summary.get("total-files-size", 0)),
        small_files=sum(len(group.files) - group.outputs for group in plan_groups(loaded, packing(job, loaded))),
        delete_files=int(summary.get("total-delete-files", 0)),
        deleted_rows=deleted,
        snapshots=len(loaded.metadata.snapshots),
        expirable=len(expirable(loaded, keeping(job))),
        metadata_bytes=_size(loaded, loaded.metadata_location),
        manifests=len(manifests_of(loaded, snapshot)),
        small_manifests=sum(
            len(one.manifests) - one.outputs for one in plan_manifests(loaded, job.settings.manifest_mb << 20)
        ),
    )


# compact


def _plan_compact(job: Job) -> tuple[Work, ...]:
    table = job.load()
    return _packed_work(job, plan_groups(table, packing(job, table)))


def _compact(job: Job) -> tuple[tuple[Work, ...], Details]:
    """Pack batch after batch; what a writer changed meanwhile is planned again with the next round."""
    before = saved_progress(job.stores, job.operation, job.table)
    packed: list[FileGroup] = []
    commits: list[int | None] = []
    figures = {"commits": 0, "files": 0, "bytes": 0, "skipped": 0, "resumed_commits": int(before.get("commits", 0))}
    job.progress.stage(f"{job.table}: compact", unit="files")
    for _ in range(ROUNDS):
        table = job.load()
        how = packing(job, table)
        groups = plan_groups(table, how)
        job.progress.stage(f"{job.table}: compact", total=sum(len(group.files) for group in groups), unit="files")
        skipped = 0
        for batch in batches(groups, how):
            job.progress.check_cancelled()
            plan = CompactPlan(batch, how)
            made = commit(job.stores.iceberg, job.table, plan, op_id=str(uuid.uuid4()), properties=job.properties)
            packed += plan.packed
            commits += [made.snapshot_id] if made.written else []
            skipped += len(batch) - len(plan.packed)
            figures["commits"] += bool(plan.packed)
            figures["files"] += sum(len(group.files) for group in plan.packed)
            figures["bytes"] += sum(group.bytes for group in plan.packed)
            job.progress.advance(sum(len(group.files) for group in batch))
            save_progress(job.stores, job.operation, job.table, {**figures})
        figures["skipped"] = skipped
        if not skipped:
            break
    job.progress.done()
    return _packed_work(job, packed, job.saved_by(commits)), {**figures}


def _packed_work(job: Job, groups: list[FileGroup], saved: tuple[int, int] | None = None) -> tuple[Work, ...]:
    """What a compaction does, and what it has `saved`: before it, the share of deleted rows is what it may save."""
    if not groups:
        return ()
    files = sum(len(group.files) for group in groups)
    outputs = sum(group.outputs for group in groups)
    partitions = len({(group.spec_id, group.partition) for group in groups})
    marks = {delete.file_path: delete for group in groups for file in group.files for delete in file.deletes}
    deletes = len(marks)
    what = f"rewrite {files} files of {partitions} partitions into {outputs}"
    what += f", {deletes} delete files worked in" if deletes else ""
    size = sum(group.bytes for group in groups)
    if saved is not None:
        return (job.work(what, files, size, *saved),)
    rows = sum(file.file.record_count for group in groups for file in group.files)
    share = min(1.0, sum(mark.record_count for mark in marks.values()) / max(rows, 1))
    less = round(size * share) + sum(mark.file_size_in_bytes for mark in marks.values())
    return (job.work(what, files, size, files - outputs + deletes, less, estimated=True),)


# expire


def _plan_expire(job: Job) -> tuple[Work, ...]:
    table = job.load()
    gone = expirable(table, keeping(job))
    work: list[Work] = []
    files = size = 0
    if gone:
        for part in unreachable_files(table, gone):
            files, size = files + len(part), size + sum(file.size for file in part)
        work.append(_let_go(job, gone, files, size))
    due = ripe(job.stores.state, job.table, job.grace)
    deleted, freed = sum(len(one.files) for one in due), sum(one.bytes for one in due)
    if not job.grace:
        deleted, freed = deleted + files, freed + size
    return (*work, *_deletion(job, deleted, freed))


def _expire(job: Job) -> tuple[tuple[Work, ...], Details]:
    """Let go of snapshots; their files are deleted when reads that may be under way have had time to end."""
    job.progress.stage(f"{job.table}: expire", unit="files")
    expired = expire(job.stores.iceberg, job.table, lambda _: keeping(job))
    given_up = size = 0
    for part in expired.files:
        doom(job.stores.state, job.table, part)
        given_up, size = given_up + len(part), size + sum(file.size for file in part)
    deleted, freed = delete_doomed(job.stores.state, job.load().io, job.table, job.grace, job.progress)
    job.progress.done()
    work = [_let_go(job, expired.snapshots, given_up, size)] if expired.snapshots else []
    details = {
        "snapshots": len(expired.snapshots),
        "doomed_files": given_up,
        "doomed_bytes": size,
        "deleted_files": deleted,
        "deleted_bytes": freed,
    }
    return (*work, *_deletion(job, deleted, freed)), {**details}


def _let_go(job: Job, gone: Sequence[Snapshot], files: int, size: int) -> Work:
    first = min(snapshot.timestamp_ms for snapshot in gone)
    oldest = dt.datetime.fromtimestamp(first / 1000, dt.UTC).isoformat(timespec="seconds")
    what = f"let go of {len(gone)} snapshots, the oldest of {oldest}, and of {files} files that only they hold"
    what += f", to be deleted {job.settings.file_grace_minutes:g} minutes later" if job.grace else ""
    return job.work(what, files, size, files, size)


def _deletion(job: Job, files: int, size: int) -> tuple[Work, ...]:
    """The deletion of files that were given up; that they are saved was said when they were."""
    return (job.work(f"delete {files} files of expired snapshots", files, size),) if files else ()


# orphans


def _orphans_of(job: Job) -> Orphans:
    spared = [path for one in doomed(job.stores.state, job.table) for path in one.files]
    return Orphans(job.stores.iceberg, job.table, dt.timedelta(hours=job.settings.orphan_age_hours), spared)


def _plan_orphans(job: Job) -> tuple[Work, ...]:
    found = _orphans_of(job).find()
    if not found:
        return ()
    size = sum(file.size for file in found)
    return (job.work("delete files that nothing refers to", len(found), size, len(found), size),)


def _remove_orphans(job: Job) -> tuple[tuple[Work, ...], Details]:
    orphans = _orphans_of(job)
    job.progress.stage(f"{job.table}: orphans", unit="files")
    found = orphans.find()
    job.progress.stage(f"{job.table}: orphans", total=len(found), unit="files")
    files = size = 0
    for file in found:
        job.progress.check_cancelled()
        if orphans.delete(file):
            files, size = files + 1, size + file.size
        job.progress.advance()
    job.progress.done()
    work = (job.work(f"deleted {files} files that nothing referred to", files, size, files, size),) if files else ()
    return work, {"files": files, "bytes": size}


# manifests


def _plan_manifests(job: Job) -> tuple[Work, ...]:
    return tuple(_rewrite_work(job, one) for one in plan_manifests(job.load(), job.settings.manifest_mb << 20))


def _rewrite_manifests(job: Job) -> tuple[tuple[Work, ...], Details]:
    """One commit for each kind of manifest, and for so many files, that there is."""
    work: list[Work] = []
    for _ in range(ROUNDS):
        plan = ManifestsPlan(job.settings.manifest_mb << 20)
        result = commit(job.stores.iceberg, job.table, plan, op_id=str(uuid.uuid4()), properties=job.properties)
        if not result.written:
            break
        work += [_rewrite_work(job, one) for one in plan.rewritten]
    return tuple(work), {"commits": len(work)}


def _rewrite_work(job: Job, rewrite: Rewrite) -> Work:
    count = len(rewrite.manifests)
    what = f"rewrite {count} manifests of {rewrite.files} files into {rewrite.outputs}, clustered by partition"
    return job.work(what, count, rewrite.bytes, count - rewrite.outputs)


# stats


def _plan_stats(job: Job) -> tuple[Work, ...]:
    table = job.load()
    snapshot = table.metadata.current_snapshot()
    if snapshot is None:
        return ()
    files, size = count(snapshot, "total-data-files"), count(snapshot, "total-files-size")
    return (job.work(f"count the distinct values of {len(countable(table))} columns", files, size),)


def _stats(job: Job) -> tuple[tuple[Work, ...], Details]:
    table = job.load()
    plan = _plan_stats(job)
    job.progress.stage(f"{job.table}: stats", total=sum(work.files for work in plan), unit="files")
    found = count_distinct(table, countable(table), job.progress) if plan else {}
    job.progress.done()
    return plan, {f"distinct {name}": number for name, number in found.items()}


# retention


def _plan_retention(job: Job) -> tuple[Work, ...]:
    rule = log_rule(job)
    if rule is not None:
        past = count_past(job.load(), rule)
        what = f"take out {past.rows} rows ingested before {rule.before.date()}"
        work = job.work(what, past.files, past.bytes, past.saves_files, past.saves_bytes, estimated=True)
        return (work,) if past.rows else ()
    rows = sum(batch.num_rows for batch in _tombstones(job))
    what = f"strip {rows} tombstones of their content"
    return (job.work(what),) if rows else ()


def _retain(job: Job) -> tuple[tuple[Work, ...], Details]:
    op_id = str(uuid.uuid4())
    if rule := log_rule(job):
        plan = RetentionPlan(rule, packing(job, job.load()).memory_bytes)
        result = commit(job.stores.iceberg, job.table, plan, op_id=op_id, properties=job.properties)
        rows, what = result.rows_deleted, f"took out {result.rows_deleted} rows ingested before {rule.before.date()}"
    elif _strips(job):
        properties = {**job.properties, MAINTENANCE: "retention"}
        result = job.stores.tables.write(Delta(job.table, _tombstones(job), "merge", op_id, properties=properties))
        rows, what = result.rows_updated, f"stripped {result.rows_updated} tombstones of their content"
    else:
        job.load()
        return (), {"rows": 0}
    saved = job.saved_by([result.snapshot_id])
    return ((job.work(what, saves_files=saved[0], saves_bytes=saved[1]),) if rows else ()), {"rows": rows}


def log_rule(job: Job) -> LogRetention | None:
    """What goes from a log of the project, or from any that says so by its property; None if nothing ever does."""
    spec = BY_NAME.get(job.table)
    own = job.load().properties.get(RETENTION_DAYS)
    days = int(own) if own is not None else retention_days(job.settings, job.table) if spec else 0
    spec = spec or job.stores.tables.spec(job.table)
    names = set(spec.arrow.names)
    if not days or spec.kind != "log" or INGESTED not in names:
        return None
    entity: tuple[str, ...] = ()
    if {"change_type", "changed_at", "lsn"} <= names and spec.key:
        entity = next((e for e in (("note_id",), ("source", "path")) if names.issuperset(e)), ())
    order = tuple(name for name in ("changed_at", "ordinal", "lsn") if name in names) if entity else ()
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    return LogRetention(before, spec.key[0] if spec.key else None, entity, order)


def _strips(job: Job) -> bool:
    """Whether tombstones of the table lose their content in time."""
    return job.table == PROCESSED_NOTES.name and retention_days(job.settings, job.table) > 0


def _tombstones(job: Job) -> Iterator[pa.RecordBatch]:
    """Tombstones past their time that still have content, without it."""
    days = retention_days(job.settings, job.table)
    if not _strips(job):
        return
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    rows = job.stores.tables.read(job.table, row_filter=LessThan("deleted_at", before.isoformat()))
    kept = (*PROCESSED_NOTES.key, *PROCESSED_NOTES.order, "source", "deleted_at")
    yield from stripped(rows, kept, PROCESSED_NOTES.key[0])


def _size(table: Table, path: str) -> int:
    return len(table.io.new_input(path))


Planner = Callable[[Job], tuple[Work, ...]]
Runner = Callable[[Job], tuple[tuple[Work, ...], Details]]

_OPERATIONS: Mapping[str, tuple[Planner, Runner]] = {
    "compact": (_plan_compact, _compact),
    "expire": (_plan_expire, _expire),
    "orphans": (_plan_orphans, _remove_orphans),
    "manifests": (_plan_manifests, _rewrite_manifests),
    "stats": (_plan_stats, _stats),
    "retention": (_plan_retention, _retain),
}
