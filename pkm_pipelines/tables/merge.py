"""Merging rows into a table by key: the newest wins, and what is equal stays as it is.

One snapshot, whatever a delta does. A file is read only if its partition and the bounds of its keys say that it may
hold a key of the delta, and of it only what has to be (`positions.py`). What becomes of files that lose rows is up to
the table's mode, which may change at any time:

* *copy-on-write* writes them again without those rows;
* *merge-on-read* marks the rows in delete files, at a cost that follows the rows that change;
* *hybrid* chooses for each file by a rule (`cost.py`).

The snapshot says what was done and why. Where small files have piled up in a partition that the merge writes to, some
of them are packed together with it, so that reads stay fast between compactions.

One partition is worked on at a time, one file of it at a time, and a delta that is too large is divided
(`staging.py`), so memory stays under a ceiling; beside it there are the positions of matched rows, 16 bytes each, and
the keys to delete. A partition whose files are still the same when a commit has to be tried again is not merged
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Delta, Slice
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_binding import bind_filter
from pkm_pipelines.storage.iceberg_filter import slice_filter
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING, LiveFile, Partition, live_files
from pkm_pipelines.storage.iceberg_schema import (
    WRITE_MODE,
    WRITE_REASON,
    TableMode,
    partition_sources,
    write_mode_of,
)
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.merge_group import THREADS, Decision, GroupMerge, Merged, Tools, at_once, fingerprint
from pkm_pipelines.tables.positions import Rules
from pkm_pipelines.tables.reads import Reads, stated
from pkm_pipelines.tables.staging import MEMORY_BYTES, Staging, partition_of

Group = Partition | None
"""A partition, or the whole table where a key's partition cannot be known."""


class MergePlan:
    """What a delta of mode `merge` or `replace` changes in a table that has a key."""

    def __init__(
        self,
        spec: TableSpec,
        delta: Delta,
        memory_bytes: int = MEMORY_BYTES,
        reads_of: Callable[[Table], Reads] = stated,
    ) -> None:
        self._spec = spec
        self._delta = delta
        self._memory_bytes = memory_bytes
        self._reads_of = reads_of
        self._cut = _cut_of(spec, delta)
        # In a replacement the rows given are the truth, however old they are.
        against = [] if delta.mode == "replace" else list(spec.order)
        self._rules = Rules(list(spec.key), list(spec.order), against, self._cut.part)
        self._writer: FileWriter | None = None
        self._staging: Staging | None = None
        self._merged: dict[Group, tuple[TableMode, Merged]] = {}
        self._delete_files: list[str] = []

    @property
    def paths(self) -> Sequence[str]:
        """Every data file and delete file begun so far."""
        return [*(self._writer.paths if self._writer else ()), *self._delete_files]

    def __call__(self, table: Table) -> Writes:
        """Merge into the table as it is."""
        if self._writer is None or self._staging is None:
            self._writer = FileWriter(table)
            # Where a key may be in any partition, its rows must stay in the order in which they came.
            is_split = self._tells_partition(table)
            self._staging = Staging(table, self._writer, self._memory_bytes, self._spec.key, is_split=is_split)
            self._staging.fill(self._delta.rows)
        files = live_files(table, table.metadata.current_snapshot())
        groups = self._groups(table, files)
        cut = self._cut.files(table, files)
        doomed = self._doomed(table, self._writer, groups)
        mode, reads = write_mode_of(table), self._reads_of(table)
        tools = Tools(table, self._writer, self._rules, mode, reads.per_write, self._memory_bytes)
        affected = self._affected(self._staging, groups, files, cut, doomed)
        works: dict[Group, GroupMerge] = {}
        for group in affected:
            present = files if groups is None else groups.get(group, [])
            known = self._merged.get(group)
            if known is None or known[0] != mode or known[1].fingerprint != fingerprint(present):
                keys = [doomed[one] for one in {group, None} if one in doomed]
                works[group] = GroupMerge(tools, present, cut, keys)
        self._look_ahead(self._staging, works)
        for group, work in works.items():
            try:
                parts, count = self._staging.parts(group), self._staging.count_parts(group)
                self._merged[group] = mode, work.run(parts, count, can_pack=groups is not None)
            finally:
                self._delete_files += work.paths
        return _writes([self._merged[group][1] for group in affected], files, mode, reads)

    def _look_ahead(self, staging: Staging, works: dict[Group, GroupMerge]) -> None:
        """Look up few rows in several partitions at once; with many, each partition has the memory for itself."""
        if len(works) < THREADS or not staging.is_held:
            return
        with at_once() as each:
            for _ in each(lambda group: works[group].look_ahead(next(staging.parts(group))), works):
                pass

    def _groups(self, table: Table, files: Iterable[LiveFile]) -> dict[Group, list[LiveFile]] | None:
        """The files of each partition; None if a key may be in any of them.

        That is so where the partition is no function of the key, and where files are partitioned in an older way.
        """
        if not self._tells_partition(table):
            return None
        groups: dict[Group, list[LiveFile]] = defaultdict(list)
        for file in files:
            if file.file.spec_id != table.spec().spec_id:
                return None
            groups[file.partition].append(file)
        return groups

    def _tells_partition(self, table: Table) -> bool:
        """Whether a key lies in one partition for ever."""
        return partition_sources(table) <= {*self._spec.key, *self._spec.determined}

    def _doomed(
        self, table: Table, writer: FileWriter, groups: dict[Group, list[LiveFile]] | None
    ) -> dict[Group, pa.Table]:
        """The keys to delete, by partition as far as their columns tell it; under None those that may be anywhere."""
        keys = self._delta.delete_keys
        if keys is None or not keys.num_rows:
            return {}
        arrow = self._spec.arrow
        names = [name for name in arrow.names if name in keys.column_names]
        if missing := set(self._spec.key) - set(names):
            raise StoreError(f"table {self._spec.name}: keys to delete lack {', '.join(sorted(missing))}")
        wanted = pa.schema([arrow.field(name) for name in names])
        try:
            keys = keys.select(names).cast(wanted)
        except (pa.ArrowException, ValueError) as error:
            given = ", ".join(f"{name} {keys.field(name).type}" for name in names)
            raise StoreError(f"table {self._spec.name}: keys to delete ({given}) do not fit its key: {error}") from None
        if groups is None or not partition_sources(table) <= set(names):
            return {None: keys}
        return {partition_of(key): part for key, part in writer.split(keys)}

    def _affected(
        self,
        staging: Staging,
        groups: dict[Group, list[LiveFile]] | None,
        files: Iterable[LiveFile],
        cut: set[str],
        doomed: dict[Group, pa.Table],
    ) -> list[Group]:
        if groups is None:
            return [None]
        found: set[Group] = {*staging.partitions, *(file.partition for file in files if file.path in cut), *doomed}
        if None in doomed:
            found |= set(groups)
        return sorted(found - {None}, key=repr)


@dataclass(frozen=True)
class _Cut:
    """What goes unless it is among the new rows: nothing, everything, or the rows of a slice."""

    is_any: bool
    part: Slice | None = None
    where: BooleanExpression = EVERYTHING

    def files(self, table: Table, files: Iterable[LiveFile]) -> set[str]:
        """The files that may hold such rows."""
        if not self.is_any:
            return set()
        if self.part is None:
            return {file.path for file in files}
        where = bind_filter(table, self.where).where
        return {file.path for file in live_files(table, table.metadata.current_snapshot(), where)}


def _cut_of(spec: TableSpec, delta: Delta) -> _Cut:
    part = delta.replace_where
    if delta.mode != "replace":
        if delta.replace_slice is None or not delta.replace_slice[1]:
            return _Cut(False)
        column, values = delta.replace_slice
        part = Slice(column, tuple(values))
    return _Cut(True) if part is None else _Cut(True, part, slice_filter(spec.name, spec.arrow, part))


def _writes(done: Sequence[Merged], files: Iterable[LiveFile], mode: TableMode, reads: Reads) -> Writes:
    present = {file.path: file for file in files}
    added: list[DataFile] = [file for merged in done for file in merged.added]
    deletes = [file for merged in done for file in merged.deletes]
    removed = [present[path] for merged in done for path in sorted(merged.removed)]
    is_append = not removed and not deletes
    return Writes(
        added=added,
        removed=removed,
        deletes=deletes,
        removed_deletes=[file for merged in done for file in merged.removed_deletes],
        operation="append" if is_append else "overwrite" if added else "delete",
        rows_added=sum(merged.inserted for merged in done),
        rows_updated=sum(merged.updated for merged in done),
        rows_deleted=sum(merged.deleted for merged in done),
        properties={
            WRITE_MODE: mode,
            WRITE_REASON: _reason([merged.decision for merged in done], mode, reads),
            **reads.properties,
        },
    )


def _reason(decisions: Sequence[Decision], mode: TableMode, reads: Reads) -> str:
    """What was done to files that lost rows, with the figures that it was decided by."""
    done: list[str] = []
    if count := sum(one.rewritten for one in decisions):
        done.append(f"rewrote {_files(count)} of {_size(sum(one.rewritten_bytes for one in decisions))}")
    if count := sum(one.marked for one in decisions):
        rows, size = sum(one.marked_rows for one in decisions), sum(one.marked_bytes for one in decisions)
        done.append(f"marked {_rows(rows)} as deleted in {_files(count)} of {_size(size)}")
    if count := sum(one.dropped for one in decisions):
        done.append(f"dropped {_files(count)} without a row left")
    if not done:
        return "no file lost a row"
    why = str(reads) if mode == "hybrid" else "the table is set to it"
    return f"{', '.join(done)}: {why}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
