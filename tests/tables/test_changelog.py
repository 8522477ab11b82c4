"""Changes commit by commit, in small cases and in random lives of a table."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pkm_pipelines.model.errors import CommitConflictError, SnapshotNotFoundError
from pkm_pipelines.model.evolution import AddColumn, DropColumn, Evolution, PartitionBy, PromoteColumn, RenameColumn
from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES
from pkm_pipelines.tables import compare
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.rows import KeyIndex
from tests.support.iceberg import STATE, local_place, thing, write
from tests.support.position_deletes import delete_positions
from tests.support.table_model import Compaction

Row = dict[str, Any]
Rows = dict[str, Row]

ITEMS = TableSpec(
    layer="silver",
    table="items",
    doc="Items.",
    kind="state",
    key=("id",),
    partition=(PartitionField("id", "bucket[2]"),),
    sort=("id",),
    columns=(
        Column(1, "id", pa.string(), "The item", True),
        Column(2, "value", pa.int32(), "A number"),
        Column(3, "names", pa.list_(pa.string()), "Its names"),
    ),
)
# No key: rows are counted.
MARKS = replace(ITEMS, table="marks", kind="log", key=(), partition=(PartitionField("id", "identity"),))


def merge(tables: TableManager, *rows: tuple[str, int], **options: Any) -> int:
    snapshot = write(tables, STATE, [thing(id, value, lsn=value) for id, value in rows], **options).snapshot_id
    assert snapshot is not None
    return snapshot


def told(tables: TableManager, since: int | None, until: int | str | None = None, **how: Any) -> list[Any]:
    rows = tables.changes(STATE.name, since, until, ["id", "value"], **how).read_all().to_pylist()
    return [(row["_snapshot_id"], row["_change_type"], row["id"], row["value"]) for row in rows]


def expire(tables: TableManager, name: str, *snapshots: int) -> None:
    tables.iceberg.load(name).maintenance.expire_snapshots().by_ids(list(snapshots)).commit()


def test_each_change_with_the_snapshot_that_made_it(tables: TableManager) -> None:
    first, second, third = (merge(tables, ("a", value)) for value in (1, 2, 3))
    assert told(tables, None) == [
        (first, "INSERT", "a", 1),
        (second, "UPDATE_BEFORE", "a", 1),
        (second, "UPDATE_AFTER", "a", 2),
        (third, "UPDATE_BEFORE", "a", 2),
        (third, "UPDATE_AFTER", "a", 3),
    ]
    assert [row[0] for row in told(tables, first, second)] == [second, second]
    assert told(tables, first, net=True) == [(third, "UPDATE_BEFORE", "a", 1), (third, "UPDATE_AFTER", "a", 3)]
    assert told(tables, None, net=True) == [(third, "INSERT", "a", 3)]
    assert told(tables, third) == []
    times = {version.snapshot_id: version.committed_at for version in tables.history(STATE.name)}
    rows = tables.changes(STATE.name, None).read_all()
    assert [times[one] for one in rows["_snapshot_id"].to_pylist()] == rows["_committed_at"].to_pylist()
    assert rows.schema.names == [*STATE.arrow.names, "_change_type", "_snapshot_id", "_committed_at"]
    assert rows.schema.field("_committed_at").type == pa.timestamp("us", tz="UTC")


def test_until_may_be_a_tag_or_a_branch(tables: TableManager) -> None:
    first, second = merge(tables, ("a", 1)), merge(tables, ("a", 2))
    tables.tag(STATE.name, "then", first)
    assert told(tables, None, "then") == [(first, "INSERT", "a", 1)]
    assert len(told(tables, first, "main")) == 2
    with pytest.raises(SnapshotNotFoundError, match="no tag or branch 'never'"):
        told(tables, second, "never")


def test_a_rollback_is_told_as_going_back(tables: TableManager) -> None:
    first, lost = merge(tables, ("a", 1)), merge(tables, ("a", 2), ("b", 2))
    tables.rollback(STATE.name, first)
    back = tables.changes(STATE.name, lost).read_all()
    went = tables.iceberg.load(STATE.name).metadata.snapshot_log[-1].timestamp_ms
    assert {at.timestamp() * 1000 for at in back["_committed_at"].to_pylist()} == {went}
    new = merge(tables, ("c", 3))
    assert sorted(told(tables, lost)) == sorted(
        [
            (first, "UPDATE_BEFORE", "a", 2),
            (first, "UPDATE_AFTER", "a", 1),
            (first, "DELETE", "b", 2),
            (new, "INSERT", "c", 3),
        ]
    )
    assert told(tables, lost)[-1][0] == new


def test_expired_snapshots_in_between_leave_one_difference(tables: TableManager) -> None:
    first, second, third, fourth = (merge(tables, ("a", value)) for value in (1, 2, 3, 4))
    tables.tag(STATE.name, "mark", first)
    expire(tables, STATE.name, second)
    assert [(row[0], row[3]) for row in told(tables, first)] == [(third, 1), (third, 3), (fourth, 3), (fourth, 4)]
    # Without the first ones it begins with all that was there at the third.
    tables.untag(STATE.name, "mark")
    expire(tables, STATE.name, first)
    assert told(tables, None)[0] == (third, "INSERT", "a", 3)
    for gone in (first, 1):
        with pytest.raises(SnapshotNotFoundError, match=f"has no snapshot {gone}; .* history` lists .* rebuilt from"):
            told(tables, gone)


def test_a_branch_and_its_changes(tables: TableManager) -> None:
    first = merge(tables, ("a", 1))
    tables.branch(STATE.name, "try")
    second = tables.merge(STATE.name, pa.Table.from_pylist([thing("b", 2)], STATE.arrow), branch="try").snapshot_id
    assert told(tables, first) == []
    assert told(tables, first, "try") == [(second, "INSERT", "b", 2)]
    assert tables.publish(STATE.name, "try") == second
    assert told(tables, first) == [(second, "INSERT", "b", 2)]


def test_deletes_by_position_read_only_their_rows(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(STATE, table="flat", partition=())
    tables.ensure(spec)
    first = write(tables, spec, [thing(f"t{i:04}", i) for i in range(1000)]).snapshot_id
    delete_positions(tables, spec, "id", {"t0005", "t0700"})
    read: list[str] = []
    batches = FileReader.batches
    monkeypatch.setattr(FileReader, "batches", lambda self, file: (read.append(file.path), batches(self, file))[1])
    rows = tables.changes(spec.name, first).read_all()
    assert list(zip(rows["_change_type"].to_pylist(), rows["id"].to_pylist(), strict=True)) == [
        ("DELETE", "t0005"),
        ("DELETE", "t0700"),
    ]
    assert not read, "no file is read as a whole"


def test_large_sides_are_compared_in_parts(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(STATE, table="flat", partition=())
    tables.ensure(spec)
    first = write(tables, spec, [thing(f"t{i:04}", i) for i in range(1000)]).snapshot_id
    write(tables, spec, [thing(f"t{i:04}", -1, lsn=1) for i in range(0, 1000, 10)])
    whole = tables.changes(spec.name, first).read_all()
    largest: list[int] = []
    by_key = compare._by_key  # pyright: ignore[reportPrivateUsage] # what is compared at once is looked at

    def watched(key: Any) -> Any:
        inner = by_key(key)

        def look(old: pa.Table, new: pa.Table) -> Any:
            largest.append(old.num_rows + new.num_rows)
            return inner(old, new)

        return look

    monkeypatch.setattr(compare, "_by_key", watched)
    small = TableManager(tables.iceberg, memory_bytes=20_000)
    assert small.changes(spec.name, first).read_all().sort_by("id").equals(whole.sort_by("id"))
    assert len(largest) > 3
    assert max(largest) < 1000


def test_ranges_of_keys_are_compared_one_by_one(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(STATE, table="flat", partition=())
    tables.ensure(spec)
    for start in range(0, 100, 25):
        write(tables, spec, [thing(f"t{i:04}", i) for i in range(start, start + 25)])
    first = tables.iceberg.snapshot_id(spec.name)
    for id in ("t0003", "t0090"):
        write(tables, spec, [thing(id, -1, lsn=1)])
    sizes: list[int] = []
    monkeypatch.setattr(compare, "KeyIndex", lambda rows, key: (sizes.append(rows.num_rows), KeyIndex(rows, key))[1])
    assert tables.changes(spec.name, first, net=True).read_all().num_rows == 4
    assert max(sizes) == 25


# Random lives

IDS = st.sampled_from([f"i{number}" for number in range(8)])
NAMES = st.sampled_from([None, [], ["x"], ["x", None]])
ROWS = st.lists(st.tuples(IDS, st.integers(0, 3), NAMES), max_size=6)


class Life(RuleBasedStateMachine):
    """A table with a key, and what it held at every snapshot, in the columns that it has now."""

    root: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.past: dict[int, Rows] = {}
        self.now: Rows = {}
        self.branches: dict[str, Rows] = {}
        self.numbers = itertools.count()
        self.extra: list[str] = []

    @initialize(partitioned=st.booleans(), mode=st.sampled_from(TABLE_MODES), tight=st.booleans())
    def create(self, partitioned: bool, mode: Any, tight: bool) -> None:
        memory = 3000 if tight else 1 << 24
        self.tables = TableManager(local_place(self.folder).open(), memory_bytes=memory)
        self.tables.create(ITEMS if partitioned else replace(ITEMS, partition=()))
        self.tables.set_mode(ITEMS.name, mode)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self, rows: list[tuple[str, int, Any]]) -> tuple[pa.Table, Rows]:
        schema = self.tables.spec(ITEMS.name).arrow
        full: list[Row] = [
            {"id": id, "value": value, "names": names, **{name: f"{name}{value}" for name in self.extra}}
            for id, value, names in rows
        ]
        return pa.Table.from_pylist(full, schema), {row["id"]: row for row in full}

    def remember(self, rows: Rows, snapshot_id: int | None) -> None:
        if snapshot_id is not None:
            self.past[snapshot_id] = rows

    def wrote(self, rows: Rows, snapshot_id: int | None, branch: str = "main") -> None:
        if branch == "main":
            self.now = rows
        else:
            self.branches[branch] = rows
        self.remember(rows, snapshot_id)

    def content(self, branch: str) -> Rows:
        return self.now if branch == "main" else self.branches[branch]

    def a_branch(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(["main", "main", *self.branches]))

    @rule(rows=ROWS, data=st.data())
    def merge(self, rows: list[tuple[str, int, Any]], data: st.DataObject) -> None:
        branch = self.a_branch(data)
        frame, new = self.rows(rows)
        result = self.tables.merge(ITEMS.name, frame, branch=branch)
        self.wrote({**self.content(branch), **new}, result.snapshot_id, branch)

    @rule(ids=st.sets(IDS, min_size=1, max_size=3), data=st.data())
    def delete_keys(self, ids: set[str], data: st.DataObject) -> None:
        branch = self.a_branch(data)
        result = self.tables.delete(ITEMS.name, pa.table({"id": sorted(ids)}), branch=branch)
        kept = {id: row for id, row in self.content(branch).items() if id not in ids}
        self.wrote(kept, result.snapshot_id, branch)

    @rule(value=st.integers(0, 3), data=st.data())
    def delete_matching(self, value: int, data: st.DataObject) -> None:
        branch = self.a_branch(data)
        present = self.content(branch)
        result = self.tables.delete(ITEMS.name, where=f"value >= {value} or names is null", branch=branch)
        kept = {id: row for id, row in present.items() if row["value"] < value and row["names"] is not None}
        assert result.rows_deleted == len(present) - len(kept)
        self.wrote(kept, result.snapshot_id, branch)

    @rule(rows=ROWS, ids=st.sets(IDS, min_size=1, max_size=4))
    def replace_part(self, rows: list[tuple[str, int, Any]], ids: set[str]) -> None:
        frame, new = self.rows([row for row in rows if row[0] in ids])
        result = self.tables.replace(ITEMS.name, frame, Slice("id", tuple(sorted(ids))))
        kept = {id: row for id, row in self.now.items() if id not in ids}
        self.wrote({**kept, **new}, result.snapshot_id)

    @rule()
    def compact(self) -> None:
        result = commit(self.tables.iceberg, ITEMS.name, Compaction(), op_id=str(uuid.uuid4()))
        self.remember(self.now, result.snapshot_id)

    @rule(mode=st.sampled_from(TABLE_MODES))
    def set_mode(self, mode: Any) -> None:
        self.tables.set_mode(ITEMS.name, mode)
        assert self.tables.explain(ITEMS.name).mode == mode

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        versions = self.tables.history(ITEMS.name)
        if versions:
            target = data.draw(st.sampled_from([version.snapshot_id for version in versions]))
            self.tables.rollback(ITEMS.name, target)
            self.now = self.past[target]

    @precondition(lambda self: self.past and len(self.branches) < 2)
    @rule()
    def start_branch(self) -> None:
        name = f"b{next(self.numbers)}"
        self.tables.branch(ITEMS.name, name)
        self.branches[name] = self.now

    @precondition(lambda self: self.branches)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        current = self.tables.iceberg.snapshot_id(ITEMS.name)
        head = self.tables.branches(ITEMS.name)[name]
        line = self.tables.iceberg.load(ITEMS.name).metadata
        parents = {one.snapshot_id: one.parent_snapshot_id for one in line.snapshots}
        at: int | None = head
        while at is not None and at != current:
            at = parents.get(at)
        if at == current:
            assert self.tables.publish(ITEMS.name, name) == head
            self.now = self.branches[name]
        else:
            with pytest.raises(CommitConflictError, match="has moved since branch"):
                self.tables.publish(ITEMS.name, name)
        self.tables.drop_branch(ITEMS.name, name)
        del self.branches[name]

    @rule(data=st.data())
    def evolve(self, data: st.DataObject) -> None:
        name = f"c{next(self.numbers)}"
        kinds = ["add", "partition", "promote", *(["rename", "drop"] if self.extra else [])]
        kind = data.draw(st.sampled_from(kinds))
        old = data.draw(st.sampled_from(self.extra)) if self.extra else ""
        number = data.draw(st.sampled_from([1, 2, 3]))
        changes: dict[str, Evolution] = {
            "add": AddColumn(name, pa.string()),
            "rename": RenameColumn(old, name),
            "drop": DropColumn(old),
            "promote": PromoteColumn("value", pa.int64()),
            "partition": PartitionBy((PartitionField("id", f"bucket[{number}]"),) if number < 3 else ()),
        }
        self.tables.evolve(ITEMS.name, changes[kind])

        def seen(rows: Rows) -> Rows:
            """What was there before, through the columns of now."""
            if kind == "add":
                return {id: {**row, name: None} for id, row in rows.items()}
            if kind == "rename":
                return {id: {name if c == old else c: v for c, v in row.items()} for id, row in rows.items()}
            if kind == "drop":
                return {id: {c: v for c, v in row.items() if c != old} for id, row in rows.items()}
            return rows

        self.now = seen(self.now)
        self.past = {snapshot: seen(rows) for snapshot, rows in self.past.items()}
        self.branches = {branch: seen(rows) for branch, rows in self.branches.items()}
        self.extra = [one for one in self.extra if kind not in ("rename", "drop") or one != old]
        self.extra += [name] if kind in ("add", "rename") else []

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def expire_some(self, data: st.DataObject) -> None:
        metadata = self.tables.iceberg.load(ITEMS.name).metadata
        held = {ref.snapshot_id for ref in metadata.refs.values()}
        free = [one.snapshot_id for one in metadata.snapshots if one.snapshot_id not in held]
        if free:
            gone = data.draw(st.sets(st.sampled_from(free), min_size=1, max_size=3))
            expire(self.tables, ITEMS.name, *gone)
            for snapshot in gone:
                del self.past[snapshot]

    @precondition(lambda self: self.past)
    @rule(data=st.data(), net=st.booleans())
    def follow(self, data: st.DataObject, net: bool) -> None:
        until = data.draw(st.sampled_from([None, *self.past, *self.branches]))
        wanted = self.past[until] if isinstance(until, int) else self.content(until or "main")
        for since in [None, *list(self.past)[-6:]]:
            state = {} if since is None else self.past[since]
            changes = self.tables.changes(ITEMS.name, since, until, net=net).read_all().to_pylist()
            for snapshot, part in itertools.groupby(changes, key=lambda row: row["_snapshot_id"]):
                state = replay(state, list(part))
                assert state == self.past[snapshot], "each change is told under the snapshot that made it"
            assert state == wanted

    @invariant()
    def it_holds_what_it_should(self) -> None:
        if hasattr(self, "tables"):
            for branch in ("main", *self.branches):
                rows = self.tables.read(ITEMS.name, tag=branch).read_all().to_pylist()
                assert {row["id"]: row for row in rows} == self.content(branch)
                assert len(rows) == len(self.content(branch))
            stats = self.tables.stats(ITEMS.name)
            assert stats.rows == len(self.now)


def replay(state: Rows, changes: list[Row]) -> Rows:
    """A state after some changes; fails if one does not fit."""
    state, pending = dict(state), None
    for change in changes:
        row = {name: value for name, value in change.items() if not name.startswith("_")}
        kind, id = change["_change_type"], row["id"]
        assert (kind == "UPDATE_AFTER") == (pending is not None)
        if kind == "INSERT":
            assert id not in state
            state[id] = row
        elif kind == "DELETE":
            assert state.pop(id) == row
        elif kind == "UPDATE_BEFORE":
            assert state[id] == row
            pending = row
        else:
            assert pending is not None
            assert pending != row
            assert pending["id"] == id
            state[id], pending = row, None
    return state


def test_changes_rebuild_every_state(ram_folder: Path, budget: int) -> None:
    machine: Any = type("Machine", (Life,), {"root": ram_folder})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25 * budget, stateful_step_count=25, print_blob=True)
    )


COUNTED = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1), NAMES), max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), COUNTED),
        st.tuples(st.just("delete"), st.integers(0, 1)),
        st.tuples(st.just("replace"), COUNTED),
        st.tuples(st.just("compact"), st.none()),
    ),
    max_size=6,
)


@settings(max_examples=15)
@given(steps=STEPS, partitioned=st.booleans(), tight=st.booleans(), net=st.booleans())
def test_rows_without_a_key_are_counted(
    ram_folder: Path, steps: list[tuple[str, Any]], partitioned: bool, tight: bool, net: bool
) -> None:
    folder = Path(tempfile.mkdtemp(dir=ram_folder))
    tables = TableManager(local_place(folder).open(), memory_bytes=500 if tight else 1 << 20)
    spec = MARKS if partitioned else replace(MARKS, partition=())
    tables.create(spec)
    past: dict[int | None, Counter[str]] = {None: Counter()}
    now: Counter[str] = Counter()
    for kind, what in steps:
        if kind in ("append", "replace"):
            rows = [dict(zip(spec.arrow.names, row, strict=True)) for row in what]
            frame = pa.Table.from_pylist(rows, spec.arrow)
            where = "value = 1" if kind == "replace" else None
            if where is None:
                result = tables.append(spec.name, frame)
            else:
                result = tables.replace(spec.name, frame, where)
                now = Counter({row: count for row, count in now.items() if "'value': 1" not in row})
            now = now + Counter(map(str, rows))
        elif kind == "delete":
            result = tables.delete(spec.name, where=f"value = {what}")
            now = Counter({row: count for row, count in now.items() if f"'value': {what}" not in row})
        else:
            result = commit(tables.iceberg, spec.name, Compaction(), op_id=str(uuid.uuid4()))
        if result.snapshot_id is not None:
            past[result.snapshot_id] = now
    for since, until in itertools.combinations(past, 2):
        state = Counter(past[since])
        for row in tables.changes(spec.name, since, until, net=net).read_all().to_pylist():
            change = str({name: row[name] for name in spec.arrow.names})
            assert row["_change_type"] in ("INSERT", "DELETE")
            state[change] += 1 if row["_change_type"] == "INSERT" else -1
            assert state[change] >= 0
        assert +state == past[until]
    shutil.rmtree(folder)
