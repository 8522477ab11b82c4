"""Records that travel between rooms: a change of a note, a problem, and what a table is told to write."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

ChangeType = Literal["INSERT", "UPDATE_AFTER", "DELETE"]


@dataclass(frozen=True)
class Problem:
    """Something odd about one file of a source: recorded and shown, never a reason to stop.

    `code` is a short stable word (`invalid-utf8`, `conflict-copy`, `unreadable`, …).
    """

    source: str
    path: str
    code: str
    message: str


@dataclass(frozen=True)
class NoteChange:
    """One observed change of one note, before the lakehouse has given it an LSN."""

    change_id: str
    change_type: ChangeType
    source: str
    note_id: str
    path: str
    changed_at: dt.datetime
    partition_date: dt.date
    previous_path: str | None = None
    content: bytes | None = None
    content_hash: str | None = None
    modified_at: dt.datetime | None = None
    version: int | None = None
    commit_id: str | None = None
    author: str | None = None
    ordinal: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class MediaChange:
    """One observed change of a file that is no note. `open` streams its bytes; None if deleted or too large."""

    change_type: ChangeType
    source: str
    path: str
    changed_at: dt.datetime
    partition_date: dt.date
    size_bytes: int | None = None
    modified_at: dt.datetime | None = None
    version: int | None = None
    commit_id: str | None = None
    ordinal: int = 0
    open: Callable[[], Iterable[bytes]] | None = None


@dataclass(frozen=True)
class Mutation:
    """One write to the state: `value` is None for a delete."""

    key: str
    value: bytes | None


@dataclass(frozen=True)
class SourceBatch:
    """Some changes, and the state writes that say they were seen.

    `mutations` are applied after the changes are durable in bronze, all of them or none.
    `resolved_problems` are paths whose earlier problems are over.
    """

    changes: tuple[NoteChange, ...] | tuple[MediaChange, ...]
    mutations: tuple[Mutation, ...]
    problems: tuple[Problem, ...] = ()
    resolved_problems: tuple[str, ...] = ()
    done: int = 0
    total: int | None = None


WriteMode = Literal["append", "merge", "replace"]


@dataclass(frozen=True)
class Slice:
    """Part of a table: rows whose `column` is one of `values`, or lies in [`first`, `before`); without these, none."""

    column: str
    values: tuple[str, ...] = ()
    first: dt.date | dt.datetime | None = None
    before: dt.date | dt.datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no row can lie in it."""
        return not self.values and self.first is None and self.before is None


@dataclass
class Delta:
    """What one commit writes to one table, and the marks that become durable with it.

    `append` adds rows, `merge` adds or replaces rows by the table's key (the newest by its `order` wins), `replace`
    makes the table (or the part of it that is `replace_where`) hold exactly `rows`. `delete_keys` are keys (rows of the
    key columns) whose rows go. `replace_slice` is (column, values): rows of the table whose column has one of the
    values and that are not among `rows` go too, in the same commit. `watermarks` maps an input table to the snapshot
    that has been read with this commit; `expect` is what they must still be when the commit lands.
    """

    table: str
    rows: Iterable[pa.RecordBatch]
    mode: WriteMode
    op_id: str
    watermarks: Mapping[str, int] = field(default_factory=dict)
    expect: Mapping[str, int | None] | None = None
    delete_keys: pa.Table | None = None
    replace_slice: tuple[str, tuple[str, ...]] | None = None
    replace_where: Slice | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    committed: Callable[[CommitResult], None] | None = None

    @property
    def is_vectors(self) -> bool:
        """Whether the table lies in Lance."""
        return self.table.startswith("vectors.")


@dataclass(frozen=True)
class CommitResult:
    """What a commit did: `snapshot_id` is an Iceberg snapshot or a Lance version.

    It is the snapshot that was current before when there was nothing to write.
    """

    table: str
    snapshot_id: int | None
    rows_added: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    written: bool = True
    attempts: int = 1
