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
    """Something that is done to one table: how, given a manager and the operation's id, and what it does to its rows.

    `marks` are the watermarks that it carries.
    """

    name: str
    run: Callable[[TableManager, str], Any]
    effect: Effect = dict
    marks: Mapping[str, int] = field(default_factory=dict)

    def changes_nothing(self, moment: Moment) -> bool:
        """Whether there is nothing to do where a table holds this."""
        return self.effect(moment.rows) == moment.rows and {**moment.marks, **self.marks} == moment.marks

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

    def take_in(self, table: Table) -> list[int]:
        """Explain the snapshots that are new in `table`; returns their ids, oldest first."""
        known = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
        new = sorted((s for s in known.values() if s.snapshot_id not in self.past), key=_sequence)
        for snapshot in new:
            before = self.past[snapshot.parent_snapshot_id]
            operation = self.operations.get(_op_id(snapshot) or "")
            if operation is None:  # maintenance: no row changes, no mark moves
                after = before
            else:
                after = Moment(operation.effect(before.rows), {**before.marks, **operation.marks})
            self.past[snapshot.snapshot_id] = after
            self._check_summary(snapshot, before, after)
        for snapshot in known.values():
            ids = [op_id for one in _line(known, snapshot) if (op_id := _op_id(one))]
            assert len(ids) == len(set(ids)), "an operation was applied twice"
        return [snapshot.snapshot_id for snapshot in new]

    def now(self, table: Table) -> Moment:
        """What the table must hold now."""
        return self.past[table.metadata.current_snapshot_id]

    def change_rows(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """A change of the schema: rows of every snapshot are shown in another way."""
        for snapshot_id, moment in self.past.items():
            rows = {key: change(row) for key, row in moment.rows.items()}
            self.past[snapshot_id] = Moment(rows, moment.marks)

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
