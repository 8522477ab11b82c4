"""Merging a part of a delta into the data files of one partition.

First the rows are looked up in every file that may hold one of them (`positions.py`). Then each file that loses rows
is written again without them, or they are marked as deleted in a delete file, as the table's mode or the rule of
hybrid writes says (`cost.py`); a file that loses all is only let go. Rows that are new or changed are written to new
files either way; in a file that is written again the changed ones stay where they were.

If the rows are too many to be held at once they come in several parts, and each file is looked at once for each part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from pkm_pipelines.storage.iceberg_datafile import RowPositions, opened
from pkm_pipelines.storage.iceberg_deletes import (
    Positions,
    deleted_positions,
    joined,
    new_delete_path,
    read_deletes,
    write_deletes,
)
from pkm_pipelines.storage.iceberg_manifests import LiveFile
from pkm_pipelines.storage.iceberg_reader import FileReader, less
from pkm_pipelines.storage.iceberg_schema import TableMode
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.cost import is_rewritten
from pkm_pipelines.tables.images import Images
from pkm_pipelines.tables.positions import Finder, Matches, RowNumbers, Rules, is_among
from pkm_pipelines.tables.rows import newest
from pkm_pipelines.tables.staging import Output, output_bytes

# More small files than this in a partition are packed, the smallest first, up to so many bytes of Parquet.
SMALL_FILES = 8
SMALL_FILE_BYTES = 2 << 20
PACK_BYTES = 8 << 20
# Delete files of one size in a partition, within a power of this number, become one: at each commit of that number
# where they are half as many, so that partitions do so together, since each time all manifests that list such files
# are written again; and at once where they are half as many more, in a partition that those commits have passed over.
DELETE_FILES = 8
# Files that are looked at at once; each holds some columns of some rows in memory.
THREADS = 2

Found = np.ndarray[tuple[int], np.dtype[np.bool_]]
"""For each row of a delta whether a data file has its key."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Tools:
    """What the merges of all partitions of one attempt share."""

    table: Table
    writer: FileWriter
    rules: Rules
    mode: TableMode
    reads: float
    memory_bytes: int


@dataclass(frozen=True)
class Decision:
    """What was done to the files that lost rows; bytes are those of the files."""

    rewritten: int = 0
    rewritten_bytes: int = 0
    marked: int = 0
    marked_bytes: int = 0
    marked_rows: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Merged:
    """What merging into one partition came to, and the files that it was merged into."""

    fingerprint: frozenset[tuple[str, ...]]
    added: tuple[DataFile, ...]
    removed: frozenset[str]
    deletes: tuple[DataFile, ...]
    removed_deletes: tuple[DataFile, ...]
    inserted: int
    updated: int
    deleted: int
    decision: Decision


@dataclass
class _Loss:
    """The rows that one file loses, and those of the delta that take the place of some."""

    file: LiveFile
    matched: list[RowPositions] = field(default_factory=list)
    changed: list[RowPositions] = field(default_factory=list)
    doomed: list[RowPositions] = field(default_factory=list)
    rows: list[RowNumbers] = field(default_factory=list)
    is_rewritten: bool = False

    def add(self, matches: Matches) -> None:
        self.matched += matches.matched
        self.changed += matches.changed
        self.doomed += matches.doomed

    def settle(self) -> None:
        """Work out what is lost, once all parts of the delta have been looked up."""
        doomed, matched = _ascending(self.doomed), _ascending(self.matched)
        self.gone = doomed[~is_among(doomed, matched)]
        self.updated = _ascending(self.changed)
        self.dead = _ascending([self.gone, self.updated])


class GroupMerge:
    """The merge of rows into one partition, or into a whole table where a key may be in any partition."""

    def __init__(self, tools: Tools, files: Sequence[LiveFile], cut: set[str], doomed: Sequence[pa.Table]) -> None:
        self._tools = tools
        self._files = files
        self._cut = cut
        self._doomed = doomed
        self._losses: dict[str, _Loss] = {}
        self._removed: set[str] = set()
        self._delete_files: list[DataFile] = []
        self._removed_deletes: list[DataFile] = []
        self.paths: list[str] = []
        self._output = Output(tools.writer, output_bytes(tools.memory_bytes))
        self._whole = FileReader(tools.table)
        self._inserted = 0
        self._images = None if tools.mode == "copy-on-write" else Images()
        self._ahead: tuple[pa.Table, Found] | None = None

    def look_ahead(self, part: pa.Table) -> None:
        """Look up the only part of the rows before `run`, which then does not: it writes nothing, so the merges of
        several partitions may do it at once.
        """
        rows = self._newest(part)
        self._ahead = rows, self._look_up(rows, is_first=True, threads=1)

    def run(self, parts: Iterable[pa.Table], count: int, *, can_pack: bool) -> Merged:
        """Merge the rows of all parts, of which there are `count`; each key is in one part only.

        Files of which a part of the rows is replaced, those in `cut`, lose what is not among the new rows. With
        `can_pack` small files that have piled up are packed.
        """
        new = self._whole.schema.empty_table()
        rows = new
        for number, part in enumerate(parts):
            if self._ahead is not None:
                rows, found = self._ahead
            else:
                rows = self._newest(part)
                found = self._look_up(rows, is_first=number == 0)
            new = rows.filter(pa.array(~found))
            self._inserted += new.num_rows
            if count > 1:
                self._add_changed(rows)
                self._output.add(new)
        for loss in self._losses.values():
            loss.settle()
        losses = [loss for loss in self._losses.values() if len(loss.dead)]
        decision = self._decide(losses)
        if can_pack and (losses or self._inserted):
            self._pack()
        for loss in self._losses.values():
            if loss.is_rewritten:
                self._rewrite(loss)
            if count == 1:
                for numbers in loss.rows:
                    self._output.add(rows.take(pa.array(numbers)))
        if count == 1:
            self._output.add(new)
        self._mark([loss for loss in losses if loss.file.path not in self._removed])
        return Merged(
            fingerprint(self._files),
            tuple(self._output.finish()),
            frozenset(self._removed),
            tuple(self._delete_files),
            tuple(self._removed_deletes),
            self._inserted,
            sum(len(loss.updated) for loss in losses),
            sum(len(loss.gone) for loss in losses),
            decision,
        )

    def _newest(self, part: pa.Table) -> pa.Table:
        return newest(part, self._tools.rules.key, self._tools.rules.order)

    def _look_up(self, rows: pa.Table, *, is_first: bool, threads: int = THREADS) -> Found:
        """Look rows up in all files; returns which of them are in one."""
        finder = Finder(self._tools.table, self._tools.rules, rows, self._doomed if is_first else (), self._images)
        cut = self._cut if is_first else set[str]()
        files = [file for file in self._files if file.path in cut or finder.may_hold(file)]
        found = np.zeros(rows.num_rows, dtype=bool)
        with at_once(threads) as each:
            matched = each(lambda file: finder.find(file, is_cut=file.path in cut), files)
            for file, matches in zip(files, matched, strict=True):
                loss = self._losses.setdefault(file.path, _Loss(file))
                loss.add(matches)
                loss.rows = matches.rows
                for numbers in matches.found:
                    found[numbers] = True
        return found

    def _add_changed(self, rows: pa.Table) -> None:
        for loss in self._losses.values():
            for numbers in loss.rows:
                self._output.add(rows.take(pa.array(numbers)))
            loss.rows = []

    def _decide(self, losses: Sequence[_Loss]) -> Decision:
        """Let go of files that lose all, and say which of the others are rewritten."""
        rewritten: list[_Loss] = []
        marked: list[_Loss] = []
        for loss in losses:
            table, file, losing = self._tools.table, loss.file, len(loss.dead)
            before = len(deleted_positions(table.io, file.file, file.deletes))
            if losing + before == file.file.record_count:
                self._removed.add(file.path)
                continue
            loss.is_rewritten = is_rewritten(
                table, file, deleted=before, losing=losing, files=len(losses), reads=self._tools.reads
            )
            (rewritten if loss.is_rewritten else marked).append(loss)
        return Decision(
            len(rewritten),
            sum(loss.file.file.file_size_in_bytes for loss in rewritten),
            len(marked),
            sum(loss.file.file.file_size_in_bytes for loss in marked),
            sum(len(loss.dead) for loss in marked),
            len(losses) - len(rewritten) - len(marked),
        )

    def _pack(self) -> None:
        """Choose small files to be written again together, if there are many."""
        kept = {loss.file.path for loss in self._losses.values() if loss.is_rewritten} | self._removed
        for file in _small_files([file for file in self._files if file.path not in kept]):
            loss = self._losses.get(file.path)
            if loss is None:
                loss = self._losses[file.path] = _Loss(file)
                loss.settle()
            loss.is_rewritten = True

    def _rewrite(self, loss: _Loss) -> None:
        """Write a file again without the rows that are dead."""
        self._removed.add(loss.file.path)
        with opened(self._tools.table, loss.file) as one:
            dead = _ascending([one.deleted, loss.dead])
            for batch in less(self._whole.stored(one), dead):
                self._output.add(pa.Table.from_batches([batch]), like=loss.file.file)

    def _mark(self, losses: Sequence[_Loss]) -> None:
        """Say in a delete file for each partition which rows are dead; many delete files of one size become one.

        Where the rows themselves are at hand they are written too, and the older ones, which are not, apart.
        """
        marks: dict[tuple[int, Record], dict[str, pa.Int64Array]] = defaultdict(dict)
        for loss in losses:
            marks[loss.file.file.spec_id, loss.file.file.partition][loss.file.path] = pa.array(loss.dead)
        table = self._tools.table
        is_turn = table.metadata.next_sequence_number() % DELETE_FILES == 0
        limit = DELETE_FILES // 2 if is_turn else DELETE_FILES * 3 // 2
        for (spec_id, partition), positions in marks.items():
            old = _of_one_size(
                {
                    delete.file_path: delete
                    for file in self._files
                    for delete in file.deletes
                    if (delete.spec_id, delete.partition) == (spec_id, partition)
                }.values(),
                limit,
            )
            self._removed_deletes += old
            known = joined(self._still_there(read_deletes(table.io, delete)) for delete in old)
            rows = self._rows_at(positions)
            written = [(positions, rows), (known, None)] if rows is not None else [(joined([positions, known]), None)]
            for marked, images in written:
                if marked:
                    self.paths.append(new_delete_path(table))
                    file = write_deletes(table, self.paths[-1], marked, spec_id, partition, images)
                    self._delete_files.append(file)

    def _rows_at(self, positions: Positions) -> dict[str, pa.Table] | None:
        """The rows at all of these positions, if they are at hand."""
        if self._images is None:
            return None
        found = {path: self._images.of(path, array.to_numpy()) for path, array in positions.items()}
        rows = {path: table for path, table in found.items() if table is not None}
        return rows if len(rows) == len(found) else None

    def _still_there(self, positions: Positions) -> Positions:
        return {path: array for path, array in positions.items() if path not in self._removed}


@contextmanager
def at_once(threads: int = THREADS) -> Generator[Callable[[Callable[[T], U], Iterable[T]], Iterable[U]]]:
    """`map`, which works on some things at once."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def fingerprint(files: Iterable[LiveFile]) -> frozenset[tuple[str, ...]]:
    """What decides the rows of some files: if it is the same, so is what a merge into them comes to."""
    return frozenset(file.identity for file in files)


def _of_one_size(deletes: Iterable[DataFile], limit: int) -> list[DataFile]:
    """Delete files to be merged into the one that is written: those of a size of which there are `limit` or more."""
    sizes: dict[int, list[DataFile]] = defaultdict(list)
    for delete in deletes:
        if delete.file_format == FileFormat.PARQUET:
            sizes[int(np.log(delete.record_count) / np.log(DELETE_FILES))].append(delete)
    return [delete for group in sizes.values() if len(group) >= limit for delete in group]


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


def _ascending(arrays: Sequence[RowPositions]) -> RowPositions:
    """The positions that are in any of `arrays`, ascending."""
    filled = [array for array in arrays if len(array)]
    return np.unique(np.concatenate(filled)) if filled else np.zeros(0, dtype=np.int64)
