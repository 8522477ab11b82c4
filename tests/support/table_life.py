"""One table in stores that fail, its writers that die, and a judge who knows what it must hold all the same.

The judge reads with stores that do not fail and with nothing in memory. A write that was acknowledged is in the
table. One that was not is there as a whole or not at all, and exactly once after it was repeated with the same
operation id.
"""

from __future__ import annotations

import datetime as dt
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.table.refs import MAIN_BRANCH

from pkm_pipelines.model.errors import PkmError
from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.storage import iceberg_catalog, iceberg_commit, iceberg_update
from pkm_pipelines.storage.iceberg_history import find_operation
from pkm_pipelines.storage.iceberg_snapshot import seen_from
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.process import Processed, mark_name
from tests.support.dict_state import DictState
from tests.support.faults import Crash, Faults, FaultyStore, Trouble, forget_caches
from tests.support.iceberg import Place, contents
from tests.support.table_history import Operation, TableHistory
from tests.support.table_model import Rows, replayed
from tests.support.table_operations import Kind, maintaining
from tests.support.warehouse_files import orphans

MEMORY_BYTES = 1 << 20
CONSUMER = "follower"
# What the consumer has seen: each row that came, and each that went.
SEEN = TableSpec(
    layer="gold",
    table="seen",
    doc="Rows that came and went.",
    kind="log",
    key=(),
    columns=(Column(1, "sign", pa.int64(), "1 came, -1 went", True), Column(2, "text", pa.string(), "Which", True)),
)


class TableLife:
    """A table of `kind` at `place`; `happened` counts what went wrong, and how writes were made."""

    def __init__(self, place: Place, kind: Kind, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.place = place
        self.kind = kind
        self.spec = kind.model
        self.name = kind.spec.name
        self.happened: Counter[str] = Counter()
        self._memory_bytes = memory_bytes
        self.state = DictState()
        self.judge = TableManager(place.open(), self.state)
        self.judge.ensure(kind.spec)
        self.judge.ensure(SEEN)
        self.history = TableHistory(self.spec)
        self.faults = Faults()
        self.restart()

    def restart(self) -> None:
        """A new process, which knows nothing of what the one before it did."""
        self.happened.update(self.faults.happened)
        self.faults.happened.clear()
        self.faults.revive()
        self.tables = TableManager(FaultyStore(self.place, self.faults), self.state, memory_bytes=self._memory_bytes)

    def perform(self, operation: Operation, trouble: Trouble, branch: str = MAIN_BRANCH) -> None:
        """Carry out an operation, and again with the same id if it was not acknowledged."""
        op_id = self.ask_for(operation)
        result = self.attempt(lambda: operation.run(self.tables, op_id, branch), trouble)
        if result is None:
            self.check()
            result = operation.run(self.tables, op_id, branch)
        self.check()
        if isinstance(result, CommitResult):
            self._check_applied(operation, op_id, result, branch)

    def rival(self, operation: Operation) -> None:
        """Another process does something at once, and nothing goes wrong in it."""
        operation.run(TableManager(self.place.open(), self.state), self.ask_for(operation), MAIN_BRANCH)

    def follow(self, trouble: Trouble) -> None:
        """A consumer copies every change to a table of its own; none is left out and none comes twice."""
        mark = mark_name(self.name, CONSUMER)

        def copy(changes: pa.RecordBatchReader) -> Delta:
            return Delta(SEEN.name, [_seen(self.spec, changes)], "append", str(uuid.uuid4()))

        def follow() -> Processed:
            columns = self.spec.arrow.names
            return self.tables.process(self.name, CONSUMER, copy, output=SEEN.name, columns=columns)

        until = self.judge.iceberg.snapshot_id(self.name)
        if self.attempt(follow, trouble) is None:
            follow()
        forget_caches()
        assert self.judge.watermark(SEEN.name, mark) == until
        found = Counter[str]()
        for row in self.judge.read(SEEN.name).read_all().to_pylist():
            found[row["text"]] += row["sign"]
        wanted = {_text(self.spec, row) for row in self.history.past[until].rows.values()}
        assert {text: sign for text, sign in found.items() if sign} == dict.fromkeys(wanted, 1)

    def attempt(self, do: Callable[[], Any], trouble: Trouble) -> Any:
        """Do something in stores that fail; what it returned (True for nothing), or None if it was not acknowledged.

        Only our own errors may come out of it.
        """
        self.faults.plan(trouble)
        try:
            result = do()
        except Crash:
            self.restart()
            return None
        except PkmError:
            return None
        finally:
            self.faults.plan({})
        return True if result is None else result

    def check(self) -> None:
        """Every new snapshot holds what it must, and so does the present."""
        forget_caches()
        table = self.judge.iceberg.load(self.name)
        new = self.history.take_in(table)
        for snapshot in (table.metadata.snapshot_by_id(one) for one in new):
            assert snapshot is not None
            assert snapshot.summary is not None
            self.happened[snapshot.summary.additional_properties.get("pkm.write-mode", "other")] += 1
        self._check_rows({*new, table.metadata.current_snapshot_id})
        self.judge.close()  # tells how often it read, which hybrid merges go by

    def check_everything(self) -> None:
        """Every snapshot that is left holds what it must, changes from each of them lead to the present, and what
        nothing refers to can be found and removed.
        """
        for name in ("expire", "orphans"):
            maintaining(name, self.name, self.state).run(self.judge, "", MAIN_BRANCH)
        assert not orphans(self.judge.iceberg.load(self.name))
        forget_caches()
        known = self.snapshots()
        self._check_rows(known)
        for since in (None, *known):
            self.check_changes(since, self.judge.iceberg.snapshot_id(self.name))

    def check_changes(self, since: int | None, until: int | None) -> None:
        """What changed after a snapshot, applied to it, goes through every snapshot on the way to the other one."""
        rows = self.history.past[since].rows
        told = self.judge.changes(self.name, since, until).read_all()
        for snapshot_id in told["_snapshot_id"].unique().to_pylist():
            part = told.filter(pc.equal(told["_snapshot_id"], snapshot_id)).drop(["_snapshot_id", "_committed_at"])
            rows = replayed(self.spec, rows, part.to_reader())
            assert rows == self.history.past[snapshot_id].rows
        assert rows == self.history.past[until].rows
        if self.kind.spec.key:
            net = self.judge.diff(self.name, since, until)
            assert replayed(self.spec, self.history.past[since].rows, net) == rows

    def snapshots(self) -> list[int]:
        """The ids of the snapshots that the table still has."""
        return [snapshot.snapshot_id for snapshot in self.judge.iceberg.load(self.name).metadata.snapshots]

    def rows(self) -> dict[Any, dict[str, Any]]:
        """What the table must hold now."""
        return self.history.now(self.judge.iceberg.load(self.name)).rows

    def ask_for(self, operation: Operation) -> str:
        """The id of an operation that may turn up in the table from now on."""
        op_id = str(uuid.uuid4())
        self.history.operations[op_id] = operation
        return op_id

    def _check_rows(self, snapshots: Any) -> None:
        for snapshot_id in set(snapshots) - {None}:
            found = contents(self.judge, self.spec, snapshot_id=snapshot_id)
            wanted = self.history.past[snapshot_id].rows
            assert found == wanted, f"snapshot {snapshot_id}: {_differences(found, wanted)}"

    def _check_applied(self, operation: Operation, op_id: str, result: CommitResult, branch: str) -> None:
        """What was acknowledged is in the table, or there was nothing to do at some moment of it."""
        table = seen_from(self.judge.iceberg.load(self.name), branch)
        if result.written:
            assert find_operation(table, op_id), f"{operation} was acknowledged and is lost"
            return
        current = table.metadata.current_snapshot()
        moments = [self.history.now(table)]
        if current is not None:
            moments.append(self.history.past[current.parent_snapshot_id])
        assert any(self.history.after(operation, one) == one for one in moments), f"{operation} was not carried out"


def _seen(spec: TableSpec, changes: pa.RecordBatchReader) -> pa.RecordBatch:
    rows = [
        {"sign": 1 if row["_change_type"] in ("INSERT", "UPDATE_AFTER") else -1, "text": _text(spec, row)}
        for row in changes.read_all().to_pylist()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SEEN.arrow)


def _text(spec: TableSpec, row: Mapping[str, Any]) -> str:
    shown = {name: row[name] for name in spec.arrow.names}
    return repr({name: str(value) if isinstance(value, dt.datetime) else value for name, value in shown.items()})


def _differences(found: Rows, wanted: Rows) -> str:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return "; ".join(f"{key}: found {found.get(key)}, wanted {wanted.get(key)}" for key in keys[:3])


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause, and small files are packed from the second on."""
    for module in (iceberg_catalog, iceberg_commit, iceberg_update):
        monkeypatch.setattr(module, "pause", lambda attempt, **_: None)
    for name, module in list(sys.modules.items()):
        if name.startswith("pkm_pipelines.tables.merge") and hasattr(module, "SMALL_FILES"):
            monkeypatch.setattr(module, "SMALL_FILES", 2)
