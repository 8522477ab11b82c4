"""Merging rows into a table by key: the newest wins, and what is equal stays as it is.

File-level copy-on-write in one snapshot. A file is read only if its partition and the bounds of its keys say that
it may hold a key of the delta; of a large file first the keys, then, if one of them is there, the rows; and it is
written again only if a row really changed. Rows with new keys become new files, or join a file of their partition
that is written anyway. Where small files have piled up in a partition that the merge writes to, some of them are
packed together with it, so that reads stay fast between compactions.

One partition is worked on at a time, one file of it at a time, so memory is bounded by the rows of the delta that
fall into one partition and by the size of one file. A partition whose files are still the same when a commit has to
be tried again is not merged again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Delta, Slice
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_filter import slice_filter
from pkm_pipelines.storage.iceberg_manifests import LiveFile, Partition, column_bounds, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.rows import KeyIndex, differ, in_slice, is_older, newest
from pkm_pipelines.tables.staging import MEMORY_BYTES, Output, Staging, partition_of

# More small files than this in a partition are packed, the smallest first, up to so many bytes of Parquet.
SMALL_FILES = 8
SMALL_FILE_BYTES = 2 << 20
PACK_BYTES = 8 << 20
# A file up to this size is read whole at once: on S3 each further look at it costs three requests.
WHOLE_BYTES = 1 << 20

Group = Partition | None
"""A partition, or the whole table where a key's partition cannot be known."""


class MergePlan:
    """What a delta of mode `merge` or `replace` changes in a table that has a key."""

    def __init__(self, spec: TableSpec, delta: Delta, memory_bytes: int = MEMORY_BYTES) -> None:
        self._spec = spec
        self._delta = delta
        self._memory_bytes = memory_bytes
        self._cut = _cut_of(spec, delta)
        self._writer: FileWriter | None = None
        self._staging: Staging | None = None
        self._merged: dict[Group, _Merged] = {}

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._writer.paths if self._writer else ()

    def __call__(self, table: Table) -> Writes:
        """Merge into the table as it is."""
        if self._writer is None or self._staging is None:
            self._writer = FileWriter(table)
            self._staging = Staging(table, self._writer, self._memory_bytes)
            self._staging.fill(self._delta.rows)
        files = live_files(table, table.metadata.current_snapshot())
        groups = self._groups(table, files)
        cut = self._cut.files(table, files)
        doomed = self._doomed(table, self._writer, groups)
        tools = _Tools(self._spec, self._delta, self._cut, table, self._writer)
        done: list[_Merged] = []
        for group in self._affected(self._staging, groups, files, cut, doomed):
            present = files if groups is None else groups.get(group, [])
            fingerprint = frozenset(file.identity for file in present)
            merged = self._merged.get(group)
            if merged is None or merged.fingerprint != fingerprint:
                rows = newest(self._staging.rows(group), self._spec.key, self._spec.order)
                keys = [doomed[one] for one in {group, None} if one in doomed]
                work = _GroupMerge(tools, rows, keys, can_pack=groups is not None)
                work.run(present, cut)
                merged = self._merged[group] = work.result(fingerprint)
            done.append(merged)
        return _writes(done, files)

    def _groups(self, table: Table, files: Iterable[LiveFile]) -> dict[Group, list[LiveFile]] | None:
        """The files of each partition; None if a key may be in any of them.

        That is so where the partition is no function of the key, and where files are partitioned in an older way.
        """
        if not _partition_columns(table) <= {*self._spec.key, *self._spec.determined}:
            return None
        groups: dict[Group, list[LiveFile]] = defaultdict(list)
        for file in files:
            if file.file.spec_id != table.spec().spec_id:
                return None
            groups[file.partition].append(file)
        return groups

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
        keys = keys.select(names).cast(pa.schema([arrow.field(name) for name in names]))
        if groups is None or not _partition_columns(table) <= set(names):
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

    spec: TableSpec
    is_any: bool
    part: Slice | None = None

    @property
    def columns(self) -> list[str]:
        """What must be read of a row to tell."""
        return [self.part.column] if self.is_any and self.part is not None else []

    def files(self, table: Table, files: Iterable[LiveFile]) -> set[str]:
        """The files that may hold such rows."""
        if not self.is_any:
            return set()
        if self.part is None:
            return {file.path for file in files}
        is_date = pa.types.is_date(self.spec.column(self.part.column).type)
        row_filter = slice_filter(self.part, is_date=is_date)
        return {file.path for file in live_files(table, table.metadata.current_snapshot(), row_filter)}


def _cut_of(spec: TableSpec, delta: Delta) -> _Cut:
    if delta.mode == "replace":
        return _Cut(spec, True, delta.replace_where)
    if delta.replace_slice is None or not delta.replace_slice[1]:
        return _Cut(spec, False)
    column, values = delta.replace_slice
    return _Cut(spec, True, Slice(column, tuple(values)))


class _Tools:
    """What the merges of all partitions of one attempt share."""

    def __init__(self, spec: TableSpec, delta: Delta, cut: _Cut, table: Table, writer: FileWriter) -> None:
        self.key = list(spec.key)
        # In a replacement the rows given are the truth, however old they are.
        self.order = [] if delta.mode == "replace" else list(spec.order)
        self.cut = cut
        self.table = table
        self.writer = writer
        self.keys = FileReader(table, list(dict.fromkeys([*self.key, *self.order, *cut.columns])))
        self.whole = FileReader(table)


@dataclass(frozen=True)
class _Merged:
    """What merging into one partition came to, and the files that it was merged into."""

    fingerprint: frozenset[tuple[str, ...]]
    added: tuple[DataFile, ...]
    removed: frozenset[str]
    inserted: int
    updated: int
    deleted: int


class _GroupMerge:
    """The merge of `rows` into one partition, file by file, and the deletion of the keys `doomed` there."""

    def __init__(self, tools: _Tools, rows: pa.Table, doomed: Sequence[pa.Table], *, can_pack: bool) -> None:
        self._tools = tools
        self._rows = rows
        self._index = KeyIndex(rows, tools.key)
        self._doomed = [(keys, KeyIndex(keys, tools.key)) for keys in doomed]
        self._can_pack = can_pack
        self._found: list[pa.Array] = []
        self._removed: set[str] = set()
        self._output = Output(tools.writer)
        self._inserted = self._updated = self._deleted = 0

    def run(self, files: Sequence[LiveFile], cut: set[str]) -> None:
        """Merge into `files`; of those in `cut` also the rows of the slice go that are not among the new ones."""
        for file in files:
            if file.path in cut or self._may_hold_keys(file):
                self._merge_file(file, is_cut=file.path in cut)
        new = self._rows.filter(self._not_found())
        self._inserted = new.num_rows
        if self._can_pack and (self._removed or new.num_rows):
            for file in _small_files([file for file in files if file.path not in self._removed]):
                self._removed.add(file.path)
                self._output.add(self._tools.whole.read(file))
        self._output.add(new)

    def result(self, fingerprint: frozenset[tuple[str, ...]]) -> _Merged:
        """What it came to."""
        added = tuple(self._output.finish())
        return _Merged(fingerprint, added, frozenset(self._removed), self._inserted, self._updated, self._deleted)

    def _merge_file(self, file: LiveFile, *, is_cut: bool) -> None:
        """Write the file anew if a row of it changes or goes."""
        whole = self._tools.whole.read(file) if file.file.file_size_in_bytes <= WHOLE_BYTES else None
        stored = self._tools.keys.read(file) if whole is None else whole.select(self._tools.keys.schema.names)
        found = self._index.find(stored)
        matched = pc.is_valid(found)
        self._found.append(found.filter(matched))
        gone = pc.and_(self._goes(stored, is_cut), pc.invert(matched))
        positions = pa.arange(0, stored.num_rows).filter(matched)
        if self._tools.order and len(positions):
            older = is_older(self._rows.take(found.take(positions)), stored.take(positions), self._tools.order)
            positions = positions.filter(pc.invert(older))
        gone_rows = pc.sum(gone).as_py() or 0
        if not len(positions) and not gone_rows:
            return
        whole = self._tools.whole.read(file) if whole is None else whole
        positions = positions.filter(differ(self._rows.take(found.take(positions)), whole.take(positions)))
        if not len(positions) and not gone_rows:
            return
        replaced = pc.is_in(pa.arange(0, stored.num_rows), value_set=positions)
        self._output.add(whole.filter(pc.invert(pc.or_(gone, replaced))))
        self._output.add(self._rows.take(found.take(positions)))
        self._removed.add(file.path)
        self._updated += len(positions)
        self._deleted += gone_rows

    def _goes(self, stored: pa.Table, is_cut: bool) -> pa.Array:
        goes = in_slice(stored, self._tools.cut.part) if is_cut else pa.repeat(pa.scalar(False), stored.num_rows)
        for _, index in self._doomed:
            goes = pc.or_(goes, pc.is_valid(index.find(stored)))
        return goes

    def _not_found(self) -> pa.Array:
        positions = pa.arange(0, self._rows.num_rows)
        found = pa.concat_arrays([pa.array([], pa.int64()), *(found.cast(pa.int64()) for found in self._found)])
        return pc.invert(pc.is_in(positions, value_set=found))

    def _may_hold_keys(self, file: LiveFile) -> bool:
        return any(_in_bounds(self._tools, file, keys) for keys in (self._rows, *(keys for keys, _ in self._doomed)))


def _in_bounds(tools: _Tools, file: LiveFile, keys: pa.Table) -> bool:
    """Whether any of `keys` lies within the bounds that the file's statistics give for every key column."""
    inside = pa.repeat(pa.scalar(True), keys.num_rows)
    for name in tools.key:
        if bounds := column_bounds(tools.table, file.file, name):
            column = keys.column(name)
            lower, upper = (pa.scalar(bound, column.type) for bound in bounds)
            inside = pc.and_(inside, pc.and_(pc.greater_equal(column, lower), pc.less_equal(column, upper)))
    return bool(pc.any(inside).as_py())


def _small_files(files: Iterable[LiveFile]) -> Iterator[LiveFile]:
    small = sorted(
        (file for file in files if file.file.file_size_in_bytes < SMALL_FILE_BYTES),
        key=lambda file: file.file.file_size_in_bytes,
    )
    size = 0
    for file in small if len(small) >= SMALL_FILES else ():
        size += file.file.file_size_in_bytes
        if size > PACK_BYTES:
            return
        yield file


def _partition_columns(table: Table) -> set[str]:
    return {table.schema().find_field(field.source_id).name for field in table.spec().fields}


def _writes(done: Sequence[_Merged], files: Iterable[LiveFile]) -> Writes:
    present = {file.path: file for file in files}
    added = [file for merged in done for file in merged.added]
    removed = [present[path] for merged in done for path in sorted(merged.removed)]
    return Writes(
        added=added,
        removed=removed,
        operation="append" if not removed else "overwrite" if added else "delete",
        rows_added=sum(merged.inserted for merged in done),
        rows_updated=sum(merged.updated for merged in done),
        rows_deleted=sum(merged.deleted for merged in done),
    )
