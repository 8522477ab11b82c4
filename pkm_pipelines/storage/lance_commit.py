"""The one function that commits to a vector table: rows, deletes and watermarks become one version, or none.

Lance resolves concurrent merges by the rows and fragments they touch, and keeps two of them from inserting
one new key twice by a filter of inserted keys in the transaction. pylance's `execute_uncommitted` returns a
transaction without that filter (lance-format/lance#8949 is about the same gap), and it is the only road to
transaction properties. So commits are made exclusive by two rules that Lance enforces for any writer:

- every commit names the table's first fragment among those it touches, changed or not; of two that start from
  one version, the second is refused as a conflict;
- a table without fragments is written by an overwrite with no retries, which is refused unless the version is
  still the one that was read.

A refused commit is planned again from the newest version. Before each attempt the operation's id is looked
up, so that one whose answer was lost is not done twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import lance
import pyarrow as pa
from lance.commit import CommitConflictError as LanceConflict
from lance.dataset import LanceOperation, Transaction

from pkm_pipelines.model.errors import CommitConflictError, StoreError
from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.storage import lance_filter as sql
from pkm_pipelines.storage.lance_marks import find_operation, properties_of, read_marks
from pkm_pipelines.storage.lance_rows import StagedRows

ATTEMPTS = 40
_LOOK_BACK = 5
_SMALL_BYTES = 16 << 20


@dataclass(frozen=True)
class _Plan:
    """What one attempt would commit. Without an operation there are no rows to change."""

    operation: LanceOperation.Update | None
    counts: tuple[int, int, int]


def commit_delta(
    open_newest: Callable[[], lance.LanceDataset],
    delta: Delta,
    rows: StagedRows,
    key: str,
    lease_check: Callable[[], None] | None,
) -> CommitResult:
    """Commit `delta`, whose rows are in `rows`, as one version on top of the newest.

    Nothing is written when no row would change and the watermarks are as they were. Raises `CommitConflictError`
    if `delta.expect` no longer holds or other writers won every attempt, `LeaseLostError` from `lease_check`,
    `StoreError` if the store fails.
    """
    back_to: int | None = None
    for attempt in range(1, ATTEMPTS + 1):
        dataset = open_newest()
        back_to = max(dataset.version - _LOOK_BACK, 0) if back_to is None else back_to
        if landed := find_operation(dataset, delta.op_id, back_to=back_to):
            return replace(landed, table=delta.table, attempts=attempt)
        before = read_marks(dataset).watermarks
        _check_expected(delta, before)
        plan = _plan(dataset, delta, rows, key)
        after = {**before, **delta.watermarks}
        if plan.operation is None and after == before:
            return CommitResult(delta.table, dataset.version, written=False, attempts=attempt)
        properties = {**delta.properties, **properties_of(delta.op_id, after, plan.counts)}
        if lease_check is not None:
            lease_check()
        try:
            committed = _commit(dataset, plan.operation, properties)
        except LanceConflict:
            pause(attempt)
            continue
        except OSError as error:
            if landed := find_operation(open_newest(), delta.op_id, back_to=back_to):
                return replace(landed, table=delta.table, attempts=attempt)
            raise StoreError(f"{delta.table}: the commit failed: {_first_line(error)}") from error
        return CommitResult(delta.table, committed.version, *plan.counts, attempts=attempt)
    raise CommitConflictError(
        f"{delta.table}: other writers were faster {ATTEMPTS} times; nothing was written, run it again"
    )


def restamp(open_newest: Callable[[], lance.LanceDataset]) -> int:
    """Make sure that the newest version carries the marks itself; returns that version.

    Called after maintenance, which leaves versions without marks, and before old versions are cleaned up.
    """
    for attempt in range(1, ATTEMPTS + 1):
        dataset = open_newest()
        marks = read_marks(dataset)
        if marks.version in (None, dataset.version):
            return dataset.version
        transaction = dataset.read_transaction(marks.version)
        assert transaction is not None
        try:
            return _commit(dataset, None, dict(transaction.transaction_properties or {})).version
        except LanceConflict:
            pause(attempt)
    raise CommitConflictError("other writers were faster than the re-stamping of the watermarks; run it again")


def _check_expected(delta: Delta, marks: Mapping[str, int]) -> None:
    for name, expected in (delta.expect or {}).items():
        if marks.get(name) != expected:
            raise CommitConflictError(
                f"{delta.table}: its watermark of {name} moved from {expected} to {marks.get(name)} while this "
                "write was prepared; nothing was written, run it again"
            )


def _plan(dataset: lance.LanceDataset, delta: Delta, rows: StagedRows, key: str) -> _Plan:
    doomed = _doomed(delta, key)
    if not rows.count and doomed is None:
        return _Plan(None, (0, 0, 0))
    merge = dataset.merge_insert(key).when_not_matched_insert_all()
    if delta.mode != "append":
        merge = merge.when_matched_update_all()
    if doomed is not None:
        merge = merge.when_not_matched_by_source_delete(doomed or None)
    source = rows.read()
    if isinstance(source, pa.Table) and source.nbytes > _SMALL_BYTES:
        source = source.to_reader()  # a stream: a table would be copied as a whole
    transaction, stats = merge.execute_uncommitted(source)
    assert isinstance(transaction.operation, LanceOperation.Update)
    counts = (stats["num_inserted_rows"], stats["num_updated_rows"], stats["num_deleted_rows"])
    return _Plan(transaction.operation if any(counts) else None, counts)


def _doomed(delta: Delta, key: str) -> str | None:
    """Which rows go unless they are among the new ones: a predicate, "" for all of them, None for none."""
    if delta.mode == "replace":
        return sql.slice_filter(delta.replace_where) if delta.replace_where else ""
    parts: list[str] = []
    if delta.delete_keys is not None and delta.delete_keys.num_rows:
        parts.append(sql.is_in(key, delta.delete_keys[key].to_pylist()))
    if delta.replace_slice is not None and delta.replace_slice[1]:
        parts.append(sql.is_in(*delta.replace_slice))
    return " OR ".join(parts) or None


def _commit(
    dataset: lance.LanceDataset, update: LanceOperation.Update | None, properties: Mapping[str, str]
) -> lance.LanceDataset:
    """Commit on top of exactly `dataset`'s version as far as other commits of rows go; raises `LanceConflict`."""
    update = update or LanceOperation.Update(update_mode="rewrite_rows")
    fragments = dataset.get_fragments()
    if not fragments:
        overwrite = LanceOperation.Overwrite(dataset.lance_schema, update.new_fragments)
        return lance.LanceDataset.commit(
            dataset, Transaction(dataset.version, overwrite, transaction_properties=dict(properties)), max_retries=0
        )
    first = min(fragments, key=lambda fragment: fragment.fragment_id)
    touched = {fragment.id for fragment in update.updated_fragments} | set(update.removed_fragment_ids)
    if first.fragment_id not in touched:
        update.updated_fragments.append(first.metadata)
    return lance.LanceDataset.commit(
        dataset, Transaction(dataset.version, update, transaction_properties=dict(properties))
    )


def pause(attempt: int) -> None:
    """Sleep before another attempt: full jitter (Brooker, AWS Architecture Blog, 2015), 1 s at most."""
    time.sleep(random.uniform(0, min(1.0, 0.005 * 2**attempt)))  # noqa: S311 (no secret)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
