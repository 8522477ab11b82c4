"""Random writes, tags and rollbacks, then random maintenance that is killed at any store call, against a dictionary.

Whatever happens, every snapshot that is kept reads as it did before, and each file that one needs is there. Once
maintenance has been let to its end nothing is left that no snapshot needs.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_history import watermarks_of
from pkm_pipelines.tables.manager import TableManager
from tests.support.faults import Crash, Faults, FaultyStore
from tests.support.iceberg import STATE, Place, contents, local_place, thing, write
from tests.support.maintenance import assert_whole, delete_file_count, run, stores_at, unreferenced
from tests.support.s3 import S3Endpoint
from tests.support.table_model import Rows, merged

OPERATIONS = ("compact", "expire", "orphans", "manifests", "retention", "stats")
IDS = st.sampled_from([f"id{number}" for number in range(10)])
ROWS = st.lists(st.builds(lambda id, value, lsn: thing(id, value, lsn), IDS, st.integers(0, 9), st.integers(0, 9)))
WRITE = st.tuples(st.just("write"), ROWS.filter(bool), st.sampled_from(["copy-on-write", "merge-on-read"]))
TAG = st.tuples(st.just("tag"), st.integers(0, 3), st.sampled_from(["cut-1", "mine", "pkm-consumer-x"]))
BACK = st.tuples(st.just("back"), st.integers(0, 3), st.none())
MAINTAIN = st.tuples(st.just("maintain"), st.sampled_from(OPERATIONS), st.one_of(st.none(), st.integers(0, 60)))
STEPS = st.lists(st.one_of(WRITE, WRITE, MAINTAIN, MAINTAIN, TAG, BACK), min_size=4, max_size=16)


class Life:
    """A table, the processes that maintain it, and what each of its snapshots holds."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.faults = Faults()
        place.open().ensure(STATE)
        self.tables = TableManager(FaultyStore(place, self.faults))
        self.stores: Stores = stores_at(place, folder, self.tables, keep_snapshots=2)
        self.rows: Rows = {}
        self.marks: dict[str, int] = {}
        self.past: dict[int, tuple[Rows, dict[str, int]]] = {}
        self.writes = 0

    def write(self, rows: list[dict[str, Any]], mode: Literal["copy-on-write", "merge-on-read"]) -> None:
        self.writes += 1
        self.tables.set_mode(STATE.name, mode)
        write(self.tables, STATE, rows, watermarks={"elsewhere": self.writes})
        self.rows, self.marks = merged(STATE, self.rows, rows), {"elsewhere": self.writes}
        self.look()

    def tag(self, back: int, name: str) -> None:
        history = self.tables.history(STATE.name)
        if history:
            self.tables.tag(STATE.name, name, history[min(back, len(history) - 1)].snapshot_id)

    def back(self, back: int, _: None) -> None:
        history = self.tables.history(STATE.name)
        if history:
            snapshot = history[min(back, len(history) - 1)].snapshot_id
            self.tables.rollback(STATE.name, snapshot)
            self.rows, self.marks = self.past[snapshot]

    def maintain(self, operation: str, killed_at: int | None) -> None:
        if killed_at is not None:
            self.faults.plan({killed_at: "crash-before" if killed_at % 2 else "crash-after"})
        with contextlib.suppress(Crash):
            run(self.stores, operation, STATE.name)
        self.faults.revive()
        self.look()

    def look(self) -> None:
        """Every snapshot that there is holds what it held; a new one of a maintenance what its parent did."""
        table = self.tables.iceberg.load(STATE.name)
        for snapshot in table.metadata.snapshots:
            self.past.setdefault(snapshot.snapshot_id, (self.rows, self.marks))
            assert contents(self.tables, STATE, snapshot_id=snapshot.snapshot_id) == self.past[snapshot.snapshot_id][0]
        assert contents(self.tables, STATE) == self.rows
        assert watermarks_of(table) == self.marks
        for name, snapshot in self.tables.tags(STATE.name).items():
            assert table.metadata.snapshot_by_id(snapshot) is not None, name
        assert_whole(table)

    def end(self) -> None:
        """Let maintenance come to its end: nothing is left that is not needed."""
        time.sleep(0.01)
        for operation in OPERATIONS:
            self.maintain(operation, None)
        for operation in ("expire", "orphans"):
            self.maintain(operation, None)
        table = self.tables.iceberg.load(STATE.name)
        assert unreferenced(table) == set()
        if table.current_snapshot() is not None:
            assert delete_file_count(table) == 0
        assert len(table.snapshots()) <= 2 + len(table.metadata.refs)
        assert not list(self.stores.state.scan("doomed:"))


@pytest.mark.parametrize("where", ["local", "s3"])
def test_no_snapshot_loses_anything(where: str, ram_folder: Path, budget: int, request: pytest.FixtureRequest) -> None:
    @settings(max_examples=(25 if where == "local" else 4) * budget)
    @given(steps=STEPS)
    def check(steps: list[tuple[str, Any, Any]]) -> None:
        folder = Path(tempfile.mkdtemp(dir=ram_folder))
        place = local_place(folder)
        if where == "s3":
            endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
            place = Place(endpoint.location().url, place.catalog)
        try:
            life = Life(place, folder)
            for step, *arguments in steps:
                getattr(life, step)(*arguments)
            life.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    check()
