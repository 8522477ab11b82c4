"""What a table must hold, snapshot by snapshot: each one's operation, applied to what its parent holds.

So a snapshot is right only if an operation that was asked for explains it, and no operation may explain two of one
line: that would be a write that was applied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_history import OP_ID, WATERMARK
from pkm_pipelines.tables.manager import TableManager
from tests.support.table_model import Rows, counts

Effect = Callable[[Rows], Rows]


@dataclass(frozen=True, repr=False)
class Operation:
    """Something that is done to one table: how, given a manager, the operation's id and a branch, and what it does
    to the rows there. `marks` are the watermarks that it carries.
    """

    name: str
    run: Callable[[TableManager, str, str], Any]
    effect: Effect = dict
    marks: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Moment:
    """What a table holds at a snapshot."""

    rows: Rows
    marks: Mapping[str, int]


class TableHistory:
    """Every snapshot that a table ever had, and what it must hold; `None` is the empty beginning."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.operations: dict[str, Operation] = {}
        self.past: dict[int | None, Moment] = {None: Moment({}, {})}
        self.added_columns: set[str] = set()

    def take_in(self, table: Table) -> list[int]:
        """Explain the snapshots that are new in `table`; returns their ids, oldest first."""
        known = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
        new = sorted((s for s in known.values() if s.snapshot_id not in self.past), key=_sequence)
        for snapshot in new:
            before = self.past[snapshot.parent_snapshot_id]
            operation = self.operations.get(_op_id(snapshot) or "")
            # What nobody asked for is maintenance: no row changes, no mark moves.
            after = before if operation is None else self.after(operation, before)
            self.past[snapshot.snapshot_id] = after
            self._check_summary(snapshot, before, after)
        for snapshot in known.values():
            ids = [op_id for one in _line(known, snapshot) if (op_id := _op_id(one))]
            assert len(ids) == len(set(ids)), "an operation was applied twice"
        return [snapshot.snapshot_id for snapshot in new]

    def now(self, table: Table) -> Moment:
        """What the table must hold now."""
        return self.past[table.metadata.current_snapshot_id]

    def after(self, operation: Operation, before: Moment) -> Moment:
        """What a table that held `before` holds when the operation is done."""
        extra = dict.fromkeys(self.added_columns)
        rows = {key: {**extra, **row} for key, row in operation.effect(before.rows).items()}
        return Moment(rows, {**before.marks, **operation.marks})

    def add_column(self, name: str) -> None:
        """From now on the rows of every snapshot are read with one column more, which is null in them."""
        self.added_columns.add(name)
        for moment in self.past.values():
            for row in moment.rows.values():
                row[name] = None

    def drop_column(self, name: str) -> None:
        """From now on the rows of every snapshot are read without a column that was added."""
        self.added_columns.discard(name)
        for moment in self.past.values():
            for row in moment.rows.values():
                row.pop(name, None)

    def _check_summary(self, snapshot: Snapshot, before: Moment, after: Moment) -> None:
        assert snapshot.summary is not None
        properties = snapshot.summary.additional_properties
        told = tuple(int(properties.get(f"pkm.rows-{word}") or 0) for word in ("added", "updated", "deleted"))
        assert told == counts(before.rows, after.rows), f"{properties} of {len(after.rows)} rows"
        total = int(properties.get("total-records") or 0) - int(properties.get("total-position-deletes") or 0)
        assert total == len(after.rows), f"{properties}: not {len(after.rows)} rows"
        marks = {k.removeprefix(WATERMARK): int(v) for k, v in properties.items() if k.startswith(WATERMARK)}
        assert marks in ({}, dict(after.marks))


def _line(known: Mapping[int, Snapshot], snapshot: Snapshot | None) -> Iterator[Snapshot]:
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = known.get(parent) if parent is not None else None


def _op_id(snapshot: Snapshot) -> str | None:
    return snapshot.summary.additional_properties.get(OP_ID) if snapshot.summary else None


def _sequence(snapshot: Snapshot) -> int:
    return snapshot.sequence_number or 0
