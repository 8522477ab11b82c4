"""Maintenance of a vector table: its debt, compaction a few fragments at a time, and cleaning up old versions.

Every write leaves a fragment and, where it changes rows, deletion files; a search opens all of them. Compaction
rewrites runs of neighbouring small or much deleted fragments, one run after the other and each in a commit of its
own: what it holds in memory is one batch of rows and its buffers, whatever the table's size, and a compaction that was
interrupted goes on with the runs that are left. Lance's own planner bins by rows only and reads with buffers of
gigabytes, so the runs are chosen here, by bytes (lancedb/lancedb#2325).

Commits of maintenance carry no marks: the newest that has them is stamped again before old versions go (`restamp`).
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lance
from lance.commit import CommitConflictError as LanceConflict
from lance.optimize import Compaction, CompactionOptions

from pkm_pipelines.model.errors import CommitConflictError
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.storage.lance_commit import pause, restamp

TARGET_BYTES = 128 << 20
"""Size of a full fragment. Smaller ones than half of it are worth merging."""
TARGET_ROWS = 1 << 20
"""Rows of a full fragment, at most: Lance's own limit."""
RUN_BYTES = 4 * TARGET_BYTES
"""What one commit of a compaction rewrites, at most. Each one rewrites the row ids of all indexes, so not less."""
DELETED_SHARE = 0.1
"""A fragment with more deleted rows is rewritten, also alone."""
BATCH_BYTES = 4 << 20
BUFFER_BYTES = 64 << 20
"""What the reader may have fetched and not yet handed on; Lance's default is 2 GiB."""
ATTEMPTS = 8

Opener = Callable[[], lance.LanceDataset]


@dataclass(frozen=True)
class VectorDebt:
    """What a vector table has piled up. `unindexed_rows` is of the index that lags most, `bytes` of the newest version.

    `versions` are those that still exist; `worked_in` are the deletion files that a compaction would take away now.
    """

    rows: int
    bytes: int
    fragments: int
    small_fragments: int
    deletion_files: int
    worked_in: int
    deleted_rows: int
    unindexed_rows: int
    versions: int


@dataclass(frozen=True)
class Run:
    """Neighbouring fragments that one commit makes into `into` fragments."""

    fragment_ids: tuple[int, ...]
    rows: int
    bytes: int
    deleted_rows: int
    into: int


@dataclass(frozen=True)
class Removable:
    """What a clean-up would remove, or has removed: versions, and bytes of files that only they used."""

    versions: int
    bytes: int


@dataclass(frozen=True)
class _Fragment:
    id: int
    rows: int
    deleted: int
    bytes: int
    has_deletions: bool
    segments: frozenset[str] = frozenset()


def measure_debt(dataset: lance.LanceDataset) -> VectorDebt:
    """The debt at `dataset`'s version, from its manifest and the list of its versions."""
    fragments = _fragments(dataset)
    rows = sum(fragment.rows for fragment in fragments)
    target = target_rows(fragments)
    indexed = [index.num_rows_indexed for index in dataset.describe_indices()]
    planned = {fragment_id for run in _runs(fragments) for fragment_id in run.fragment_ids}
    return VectorDebt(
        rows=rows,
        bytes=sum(fragment.bytes for fragment in fragments),
        fragments=len(fragments),
        small_fragments=sum(_is_small(fragment, target) for fragment in fragments),
        deletion_files=sum(fragment.has_deletions for fragment in fragments),
        worked_in=sum(fragment.has_deletions for fragment in fragments if fragment.id in planned),
        deleted_rows=sum(fragment.deleted for fragment in fragments),
        unindexed_rows=max(0, rows - min(indexed)) if indexed else 0,
        versions=len(dataset.version_refs()),
    )


def plan_compaction(dataset: lance.LanceDataset) -> list[Run]:
    """The runs of neighbouring fragments that are worth rewriting, in the table's order.

    Lance does not merge fragments that different segments of an index hold, so a run ends where those do.
    """
    return _runs(_fragments(dataset))


def _runs(fragments: Sequence[_Fragment]) -> list[Run]:
    target = target_rows(fragments)
    runs: list[Run] = []
    held: list[_Fragment] = []

    def close() -> None:
        if len(held) > 1 or any(_is_worn(fragment) for fragment in held):
            rows = sum(fragment.rows for fragment in held)
            runs.append(
                Run(
                    tuple(fragment.id for fragment in held),
                    rows,
                    sum(fragment.bytes for fragment in held),
                    sum(fragment.deleted for fragment in held),
                    into=max(1, rows // target) if rows else 0,
                )
            )
        held.clear()

    for fragment in fragments:
        if not (_is_small(fragment, target) or _is_worn(fragment)):
            close()
            continue
        if held and (
            held[0].segments != fragment.segments or sum(known.bytes for known in held) + fragment.bytes > RUN_BYTES
        ):
            close()
        held.append(fragment)
    close()
    return runs


def compact(open_newest: Opener, progress: Progress | None = None) -> list[Run]:
    """Rewrite every run that is worth it, each in a commit of its own; returns those that were rewritten.

    Readers and writers go on meanwhile. A run that writers touch each time is left as it is: every commit of a writer
    names the table's first fragment (see `lance_commit`), so that one may need a moment without any; whoever wants it
    done then calls this once more under the table's lease. Raises `CancelledError` between runs; what was committed
    stays.
    """
    progress = progress or NullProgress()
    done: list[Run] = []
    tried: set[tuple[int, ...]] = set()
    conflicts = 0
    while True:
        dataset = open_newest()
        left = [run for run in plan_compaction(dataset) if run.fragment_ids not in tried]
        progress.stage("compact vectors", len(done) + len(left), unit="runs")
        if not left or conflicts > ATTEMPTS:
            break
        progress.check_cancelled()
        try:
            rewritten = _rewrite(dataset, left[-1])
        except OSError as error:
            if not is_conflict(error):
                raise
            conflicts += 1
            pause(conflicts)
            continue
        conflicts = 0
        tried.add(left[-1].fragment_ids)
        if rewritten:  # else they were changed meanwhile so that there is nothing to merge
            done.append(left[-1])
            progress.advance(1, fragments=rewritten)
    if done:
        restamp(open_newest)
    progress.done()
    return done


def count_old(dataset: lance.LanceDataset, older_than: dt.timedelta) -> int:
    """How many versions `clean_up` would remove now: those that are neither the newest, nor tagged, nor younger.

    Versions are in the order of time, so a few of their manifests are read and not all, as `removable` does.
    """
    limit = dt.datetime.now(dt.UTC) - older_than
    kept = {dataset.version, *(entry["version"] for entry in dataset.tags.list().values())}
    others = sorted({ref["version"] for ref in dataset.version_refs()} - kept)
    return bisect_left(others, limit, key=lambda version: _committed_at(dataset, version))


def _committed_at(dataset: lance.LanceDataset, version: int) -> dt.datetime:
    try:
        found = dataset.checkout_version(version).get_version()["timestamp"]
    except OSError as error:
        if "not found" not in str(error).lower():  # stores spell it in their own ways
            raise
        return dt.datetime.min.replace(tzinfo=dt.UTC)  # cleaned up a moment ago, so it was old
    assert isinstance(found, dt.datetime)
    return found.astimezone(dt.UTC)  # Lance gives naive local times


def removable(dataset: lance.LanceDataset, older_than: dt.timedelta) -> Removable:
    """What `clean_up` would remove now."""
    stats = dataset.explain_cleanup_old_versions(older_than, error_if_tagged_old_versions=False).stats
    return Removable(stats.old_versions, stats.bytes_removed)


def clean_up(open_newest: Opener, older_than: dt.timedelta) -> Removable:
    """Delete the versions that are older and not tagged, and the files that only they use.

    The newest version and its marks stay. Files of writes that never became a version go once they are seven days old.
    """
    restamp(open_newest)
    stats = open_newest().cleanup_old_versions(older_than, error_if_tagged_old_versions=False)
    return Removable(stats.old_versions, stats.bytes_removed)


def retried(build: Callable[[], object]) -> None:
    """Do what replaces something in the newest version, again when a writer was faster."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            build()
            return
        except OSError as error:
            if not is_conflict(error):
                raise
            pause(attempt)
    raise CommitConflictError("writers kept changing the table while it was maintained; run it again")


def is_conflict(error: OSError) -> bool:
    """Whether a commit was refused because of another one; pylance has no class of its own for that in a compaction."""
    return isinstance(error, LanceConflict) or "commit conflict" in str(error)


def target_rows(fragments: Sequence[_Fragment]) -> int:
    """How many rows make a full fragment of this table, by the mean size of its rows."""
    rows = sum(fragment.rows + fragment.deleted for fragment in fragments)
    size = sum(fragment.bytes for fragment in fragments)
    return TARGET_ROWS if not size else max(1, min(TARGET_ROWS, TARGET_BYTES * rows // size))


def _rewrite(dataset: lance.LanceDataset, run: Run) -> int:
    """Rewrite the fragments of `run`; how many there were."""
    fragments = _fragments(dataset)
    wanted = set(run.fragment_ids)
    row_bytes = max(1, run.bytes // max(1, run.rows + run.deleted_rows))
    metrics = Compaction.execute(
        dataset,
        CompactionOptions(
            target_rows_per_fragment=target_rows(fragments),
            materialize_deletions_threshold=DELETED_SHARE,
            excluded_fragment_ids=[fragment.id for fragment in fragments if fragment.id not in wanted],
            batch_size=max(16, min(8192, BATCH_BYTES // row_bytes)),
            io_buffer_size=BUFFER_BYTES,
            num_threads=1,
        ),
    )
    return metrics.fragments_removed


def _fragments(dataset: lance.LanceDataset) -> list[_Fragment]:
    segments: dict[int, set[str]] = {}
    for index in dataset.describe_indices():
        for segment in index.segments:
            for fragment_id in segment.fragment_ids:
                segments.setdefault(fragment_id, set()).add(str(segment.uuid))
    found: list[_Fragment] = []
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        found.append(
            _Fragment(
                metadata.id,
                metadata.num_rows,
                metadata.num_deletions,
                sum(file.file_size_bytes or 0 for file in metadata.files),
                metadata.deletion_file is not None,
                frozenset(segments.get(metadata.id, ())),
            )
        )
    return found


def _is_small(fragment: _Fragment, target: int) -> bool:
    return 2 * fragment.rows < target


def _is_worn(fragment: _Fragment) -> bool:
    return fragment.deleted > DELETED_SHARE * (fragment.rows + fragment.deleted)
