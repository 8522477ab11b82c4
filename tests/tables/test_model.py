"""Random sequences of everything that can be done to tables, against dictionaries that do the same."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pkm_pipelines.model.records import CommitResult, Slice
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode, write_mode_properties
from pkm_pipelines.tables import merge_group
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.view import IcebergView
from tests.support.iceberg import EDGES, LOG, STATE, contents, edge, event, key_of, local_place, thing, write
from tests.support.table_model import Compaction, Row, Rows, counts, full, merged, newest, replayed

IDS = st.sampled_from([f"id{number}" for number in range(9)])
GROUPS = st.sampled_from(["red", "green", None])
LISTS = st.sampled_from([None, [], ["a"], ["a", None]])
THINGS = st.lists(
    st.builds(
        lambda id, value, lsn, group, names: thing(id, value, lsn, group=group, names=names),
        IDS,
        st.integers(0, 2),
        st.integers(0, 5),
        GROUPS,
        LISTS,
    ),
    max_size=6,
)
SOURCES = st.sampled_from(["a", "b", "c", "d"])
# An edge's id begins with its source, as the key decides the source.
EDGE_ROWS = st.lists(
    st.builds(
        lambda src, number, kind, dst: edge(f"{src}{number}", src, dst, kind),
        SOURCES,
        st.integers(0, 3),
        st.sampled_from(["link", "tag"]),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=6,
)
DAYS = st.dates(min_value=thing("x")["changed"].date(), max_value=thing("x", lsn=80 * 86400)["changed"].date())
EVENTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=6)


class Tables(RuleBasedStateMachine):
    """Three tables and what they should hold, at every snapshot they ever had."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        # A ceiling this low makes every delta go through files on its way, and the larger ones come in parts.
        self.tables = TableManager(local_place(self.folder).open(), memory_bytes=6000)
        self.now: dict[str, Rows] = {}
        self.past: dict[str, dict[int, Rows]] = {}

    @initialize(partitioned=st.booleans(), mode=st.sampled_from(TABLE_MODES))
    def create(self, partitioned: bool, mode: TableMode) -> None:
        specs = (STATE, EDGES, LOG)
        self.specs = {spec.name: spec if partitioned else replace(spec, partition=(), determined=()) for spec in specs}
        for spec in self.specs.values():
            self.tables.ensure(spec)
            self.now[spec.name] = {}
            self.past[spec.name] = {}
            if spec.kind == "state":
                self.set_mode(spec.name, mode)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(name=st.sampled_from([STATE.name, EDGES.name]), mode=st.sampled_from(TABLE_MODES))
    def set_mode(self, name: str, mode: TableMode) -> None:
        with self.tables.iceberg.load(name).transaction() as transaction:
            transaction.set_properties(write_mode_properties(mode))

    @rule(rows=THINGS)
    def merge_things(self, rows: list[Row]) -> None:
        wanted = merged(STATE, self.now[STATE.name], rows)
        self.wrote(STATE, wanted, write(self.tables, STATE, rows))

    @rule(rows=EDGE_ROWS, sources=st.sets(SOURCES, max_size=2))
    def replace_edges_of_sources(self, rows: list[Row], sources: set[str]) -> None:
        present = self.now[EDGES.name]
        given = newest(EDGES, rows)
        kept = {key: row for key, row in present.items() if row["src"] not in sources or key in given}
        result = write(self.tables, EDGES, rows, replace_slice=("src", tuple(sources)))
        self.wrote(EDGES, merged(EDGES, kept, rows), result)

    @rule(rows=THINGS, groups=st.sets(GROUPS.filter(bool), min_size=1))
    def replace_groups(self, rows: list[Row], groups: set[str]) -> None:
        given = newest(STATE, rows)
        kept = {k: row for k, row in self.now[STATE.name].items() if row["group"] not in groups or k in given}
        part = Slice("group", tuple(sorted(groups)))
        self.wrote(STATE, {**kept, **given}, write(self.tables, STATE, rows, "replace", replace_where=part))

    @rule(rows=THINGS)
    def replace_all(self, rows: list[Row]) -> None:
        self.wrote(STATE, newest(STATE, rows), write(self.tables, STATE, rows, "replace"))

    @rule(ids=st.sets(IDS, max_size=4), rows=THINGS)
    def delete_things(self, ids: set[str], rows: list[Row]) -> None:
        given = {row["id"] for row in rows}
        kept = {key: row for key, row in self.now[STATE.name].items() if key not in ids - given}
        keys = pa.table({"id": pa.array(sorted(ids), pa.string())})
        self.wrote(STATE, merged(STATE, kept, rows), write(self.tables, STATE, rows, delete_keys=keys))

    @rule(data=st.data(), with_source=st.booleans())
    def delete_edges(self, data: st.DataObject, with_source: bool) -> None:
        present = self.now[EDGES.name]
        doomed = data.draw(st.lists(st.sampled_from(sorted(present)), unique=True, max_size=3)) if present else []
        rows = [present[key] for key in doomed] + [edge("a9", "a")]
        names = ["id", "kind", *(["src"] if with_source else [])]
        keys = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})
        kept = {key: row for key, row in present.items() if key not in doomed}
        self.wrote(EDGES, kept, write(self.tables, EDGES, delete_keys=keys))

    @rule(events=EVENTS)
    def append_events(self, events: list[tuple[int, int]]) -> None:
        # The day is part of what a change is, so the same change lies in the same month.
        rows = [
            event(f"c{number}", number, thing("x", lsn=number % 3 * 40 * 86400)["changed"].date())
            for number, _ in events
        ]
        present = self.now[LOG.name]
        fresh = {row["change_id"]: full(LOG, row) for row in rows if row["change_id"] not in present}
        self.wrote(LOG, {**present, **fresh}, write(self.tables, LOG, rows, "append"))

    @rule(spec=st.sampled_from([STATE, EDGES, LOG]))
    def compact(self, spec: TableSpec) -> None:
        result = commit(self.tables.iceberg, spec.name, Compaction(), op_id=str(uuid.uuid4()))
        self.remember(spec, self.now[spec.name], result)

    @precondition(lambda self: any(self.past.values()))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, past in self.past.items() if past]))
        target = data.draw(st.sampled_from([version.snapshot_id for version in self.tables.history(name)]))
        self.tables.rollback(name, target)
        self.now[name] = self.past[name][target]

    @precondition(lambda self: any(self.past.values()))
    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, past in self.past.items() if past]))
        spec, past = self.specs[name], self.past[name]
        then = data.draw(st.sampled_from(sorted(past)))
        assert contents(self.tables, spec, snapshot_id=then) == past[then]

    @precondition(lambda self: any(self.past.values()))
    @rule(data=st.data())
    def follow_changes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, past in self.past.items() if past]))
        spec, past = self.specs[name], self.past[name]
        since = data.draw(st.sampled_from([None, *sorted(past)]))
        until = data.draw(st.sampled_from(sorted(past)))
        before = {} if since is None else past[since]
        assert replayed(spec, before, self.tables.diff(name, since, until)) == past[until]
        columns = [*spec.key, spec.columns[-1].name]
        narrow = self.tables.diff(name, since, until, columns)
        assert narrow.schema.names == [*columns, "_change_type"]
        assert replayed(spec, _only(before, columns), narrow) == _only(past[until], columns)
        if spec.kind == "log":
            added = self.tables.added(name, since, until).read_all().to_pylist()
            assert {key_of(spec, row): row for row in added} == {
                k: r for k, r in past[until].items() if k not in before
            }
            assert len(added) == len({row["change_id"] for row in added})

    @invariant()
    def tables_hold_what_they_should(self) -> None:
        for name, rows in self.now.items():
            assert contents(self.tables, self.specs[name]) == rows
            assert IcebergView(self.tables, name).row_count == len(rows)

    def wrote(self, spec: TableSpec, wanted: Rows, result: CommitResult) -> None:
        changed = counts(self.now[spec.name], wanted)
        assert (result.rows_added, result.rows_updated, result.rows_deleted) == changed
        assert result.written == any(changed)
        self.remember(spec, wanted, result)

    def remember(self, spec: TableSpec, rows: Rows, result: CommitResult) -> None:
        self.now[spec.name] = rows
        if result.snapshot_id is not None:
            self.past[spec.name][result.snapshot_id] = rows


def _only(rows: Rows, columns: list[str]) -> Rows:
    return {key: {name: row[name] for name in columns} for key, row in rows.items()}


def test_tables_do_what_dictionaries_do(ram_folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small files are packed from the second on, so that packing happens in every example.
    monkeypatch.setattr(merge_group, "SMALL_FILES", 2)
    machine: Any = type("Machine", (Tables,), {"root": ram_folder})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=20 * budget, stateful_step_count=20, print_blob=True)
    )
