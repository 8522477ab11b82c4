"""One table in stores that fail, its writers that die, and a judge who knows what it must hold all the same.

The judge reads with stores that do not fail and with nothing in memory. A write that was acknowledged is in the
table. One that was not is there as a whole or not at all, and exactly once after it was repeated with the same
operation id.
"""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pkm_pipelines.model.errors import PkmError
from pkm_pipelines.model.records import CommitResult
from pkm_pipelines.storage import iceberg_catalog, iceberg_commit, iceberg_update
from pkm_pipelines.tables.manager import TableManager
from tests.support.dict_state import DictState
from tests.support.faults import Crash, Faults, FaultyStore, Trouble, forget_caches
from tests.support.iceberg import Place, contents
from tests.support.table_history import Operation, TableHistory
from tests.support.table_model import Rows, replayed
from tests.support.table_operations import Kind

MEMORY_BYTES = 1 << 20


class TableLife:
    """A table of `kind` at `place`; `happened` counts what went wrong."""

    def __init__(self, place: Place, kind: Kind, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.place = place
        self.kind = kind
        self.spec = kind.model
        self.name = kind.spec.name
        self.happened: Counter[str] = Counter()
        self._memory_bytes = memory_bytes
        self.judge = TableManager(place.open())
        self.judge.ensure(kind.spec)
        self.history = TableHistory(self.spec)
        self.state = DictState()
        self.faults = Faults()
        self.restart()

    def restart(self) -> None:
        """A new process, which knows nothing of what the one before it did."""
        self.happened.update(self.faults.happened)
        self.faults.happened.clear()
        self.faults.revive()
        self.tables = TableManager(FaultyStore(self.place, self.faults), memory_bytes=self._memory_bytes)

    def perform(self, operation: Operation, trouble: Trouble) -> None:
        """Carry out an operation, and again with the same id if it was not acknowledged."""
        op_id = self.ask_for(operation)
        result = self.attempt(lambda: operation.run(self.tables, op_id), trouble)
        if result is None:
            self.check()
            result = operation.run(self.tables, op_id)
        self.check()
        if isinstance(result, CommitResult):
            self._check_applied(operation, op_id, result)

    def rival(self, operation: Operation) -> None:
        """Another process does something at once, and nothing goes wrong in it."""
        operation.run(TableManager(self.place.open()), self.ask_for(operation))

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
        self._check_rows({*new, table.metadata.current_snapshot_id})

    def check_everything(self) -> None:
        """Every snapshot that is left holds what it must, and changes from each of them lead to the present."""
        forget_caches()
        known = self.snapshots()
        self._check_rows(known)
        for since in (None, *known):
            self.check_changes(since, self.judge.iceberg.snapshot_id(self.name))

    def check_changes(self, since: int | None, until: int | None) -> None:
        """What changed between two snapshots, applied to the first, makes the second."""
        if self.kind.spec.key:
            before, after = self.history.past[since].rows, self.history.past[until].rows
            assert replayed(self.spec, before, self.judge.diff(self.name, since, until)) == after

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

    def _check_applied(self, operation: Operation, op_id: str, result: CommitResult) -> None:
        """What was acknowledged is in the table, or there was nothing to do at some moment of it."""
        if result.written:
            assert self.judge.landed(self.name, op_id), f"{operation} was acknowledged and is lost"
            return
        table = self.judge.iceberg.load(self.name)
        current = table.metadata.current_snapshot()
        moments = [self.history.now(table)]
        if current is not None:
            moments.append(self.history.past[current.parent_snapshot_id])
        assert any(operation.changes_nothing(moment) for moment in moments), f"{operation} was not carried out"


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
