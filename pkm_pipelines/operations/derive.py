"""What every table derived from silver's notes has in common: which notes changed since it last looked.

A derived table holds the watermark of each input in its own newest commit. `NoteChanges` is the exact
difference between that snapshot and the present one: the notes to compute anew, and those that are gone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import PROCESSED_NOTES
from pkm_pipelines.operations.stores import Stores

WINDOW_NOTES = 2000


CODE = "pkm.code"
"""The code version that a table was computed with, kept as one more watermark."""


@dataclass(frozen=True)
class Inputs:
    """Where a table has read its inputs to (`since`), and where they stand now (`until`).

    `marks` are the watermarks that the table holds. `since` is the same, or None for each input if the table was made
    by another version of the code and is to be computed anew. `is_empty` says that the table itself has no row
    yet, not even of a run that was killed.
    """

    table: str
    is_empty: bool
    since: dict[str, int | None]
    until: dict[str, int]
    marks: dict[str, int | None]

    @property
    def moved(self) -> bool:
        """Whether any input, or the code, has changed."""
        return any(self.marks[name] != mark for name, mark in self.until.items())


def inputs_of(stores: Stores, spec: TableSpec, inputs: Sequence[TableSpec]) -> Inputs:
    """Look up the watermarks of `spec` and the present snapshots of its inputs; empty inputs are left out."""
    if spec.layer == "vectors":
        stores.vectors.ensure(spec)
        is_empty, store = stores.vectors.count(spec.name) == 0, stores.vectors
    else:
        stores.iceberg.ensure(spec)
        is_empty, store = stores.iceberg.snapshot_id(spec.name) is None, stores.tables
    until: dict[str, int] = {}
    for source in inputs:
        stores.iceberg.ensure(source)
        snapshot = stores.iceberg.snapshot_id(source.name)
        if snapshot is not None:
            until[source.name] = snapshot
    if until:
        until[CODE] = spec.code_version
    marks = {name: store.watermark(spec.name, name) for name in until}
    is_same_code = marks.get(CODE) == spec.code_version
    return Inputs(spec.name, is_empty, marks if is_same_code else dict.fromkeys(marks), until, marks)


@dataclass(frozen=True)
class NoteWindow:
    """Some changed notes: `alive` are rows to compute from, `gone` the ids of notes that are no more."""

    alive: pa.Table
    gone: tuple[str, ...]

    @property
    def note_ids(self) -> tuple[str, ...]:
        """Every note of the window."""
        return (*self.alive["note_id"].to_pylist(), *self.gone)


def note_windows(stores: Stores, inputs: Inputs, columns: Sequence[str]) -> Iterator[NoteWindow]:
    """The notes that changed between the two snapshots, with `columns`, in windows of bounded size."""
    name = PROCESSED_NOTES.name
    if name not in inputs.until or inputs.since[name] == inputs.until[name]:
        return
    wanted = list(dict.fromkeys(["note_id", *columns, "deleted_at"]))
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in stores.tables.diff(name, inputs.since[name], inputs.until[name], columns=wanted):
        kept = batch.filter(pc.not_equal(batch["_change_type"], "UPDATE_BEFORE"))
        if not kept.num_rows:
            continue
        pending.append(kept)
        rows += kept.num_rows
        if rows >= WINDOW_NOTES:
            yield _window(pending)
            pending, rows = [], 0
    if pending:
        yield _window(pending)


def _window(batches: Sequence[pa.RecordBatch]) -> NoteWindow:
    table = pa.Table.from_batches(batches)
    gone = pc.or_(pc.equal(table["_change_type"], "DELETE"), pc.is_valid(table["deleted_at"]))
    alive = table.filter(pc.invert(gone)).drop_columns(["_change_type", "deleted_at"])
    return NoteWindow(alive, tuple(table.filter(gone)["note_id"].to_pylist()))


def slice_deltas(
    inputs: Inputs, column: str, parts: Iterable[tuple[Sequence[str], Iterable[pa.RecordBatch]]]
) -> Iterator[Delta]:
    """Deltas that make the rows of some notes be exactly the given ones.

    Each part is (note ids, their rows). Only the last delta moves the watermarks: a crash in between
    has the parts computed again, and merging equal rows changes nothing.
    """
    held: Delta | None = None
    for note_ids, rows in parts:
        if held is not None:
            yield held
        held = Delta(
            table=inputs.table,
            rows=rows,
            mode="merge",
            op_id=str(uuid.uuid4()),
            replace_slice=None if inputs.is_empty else (column, tuple(note_ids)),
        )
    if held is None:
        held = Delta(table=inputs.table, rows=(), mode="merge", op_id=str(uuid.uuid4()))
    held.watermarks = inputs.until
    held.expect = inputs.marks
    yield held
