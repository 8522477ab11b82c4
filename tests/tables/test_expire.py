"""Expiry lets go of snapshots that nothing needs, and of the files that only they had."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.table import Table
from pyiceberg.table.update import AssertRefSnapshotId

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError
from pkm_pipelines.model.records import CommitResult
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage import iceberg_commit, iceberg_expire, iceberg_update
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_history import find_operation, is_ancestor, tells_all_since, watermarks_of
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.tables.expire import Expired, Keeping, expirable, expire
from pkm_pipelines.tables.garbage import delete_many
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, Place, contents, event, thing, write
from tests.support.maintenance import assert_whole, unreferenced
from tests.support.position_deletes import delete_positions
from tests.support.table_model import Compaction
from tests.tables.test_compact import compact


class _Overwriting(Compaction):
    def __call__(self, table: Table) -> Writes:
        return replace(super().__call__(table), operation="overwrite")


@pytest.fixture
def manager(place: Place) -> TableManager:
    found = TableManager(place.open())
    for spec in (STATE, LOG):
        found.ensure(spec)
    return found


def let_go(tables: TableManager, spec: TableSpec = STATE, **how: Any) -> int:
    """Expire, and delete the files; returns how many snapshots went."""
    expired = expire(tables.iceberg, spec.name, lambda _: Keeping(**how))
    delete(tables, spec, expired)
    return len(expired.snapshots)


def delete(tables: TableManager, spec: TableSpec, expired: Expired) -> None:
    for files in expired.files:
        delete_many(load(tables, spec).io, [file.path for file in files])


def load(tables: TableManager, spec: TableSpec = STATE) -> Table:
    return tables.iceberg.load(spec.name)


def change(tables: TableManager, number: int, **options: Any) -> int:
    """One commit that rewrites a file; returns its snapshot."""
    found = write(tables, STATE, [thing("id1", number, number)], **options).snapshot_id
    assert found is not None
    return found


def test_what_only_expired_snapshots_had_is_deleted(manager: TableManager) -> None:
    made = [change(manager, number) for number in range(5)]
    delete_positions(manager, STATE, "id", {"id1"})
    write(manager, STATE, [thing("id2")])
    compact(manager, STATE)
    before = contents(manager, STATE)
    assert let_go(manager, newest=2) == 6
    table = load(manager)
    assert len(table.snapshots()) == 2
    assert contents(manager, STATE) == before
    assert_whole(table)
    assert unreferenced(table) == set()
    with pytest.raises(SnapshotNotFoundError, match="has expired or never was"):
        manager.read(STATE.name, snapshot_id=made[0])
    assert let_go(manager, newest=2) == 0
    change(manager, 99)
    assert_whole(load(manager))


def test_tags_branches_and_pins_are_kept(tables: TableManager) -> None:
    made = [change(tables, number) for number in range(8)]
    tables.tag(STATE.name, "cut-1", made[1])
    tables.pin(STATE.name, "gold.sums", current=made[2], upcoming=made[3])
    tables.branch(STATE.name, "try", made[4])
    assert let_go(tables) == 3
    table = load(tables)
    assert {snapshot.snapshot_id for snapshot in table.snapshots()} == {*made[1:5], made[7]}
    for number in (1, 2, 3, 4, 7):
        assert contents(tables, STATE, snapshot_id=made[number])["id1"]["value"] == number
    assert set(table.metadata.refs) >= {"main", "cut-1", "try"}
    assert_whole(table)
    assert unreferenced(table) == set()


def test_who_descends_from_whom_is_remembered(manager: TableManager) -> None:
    made = [change(manager, number) for number in range(9)]
    manager.pin(STATE.name, "gold.sums", current=made[2], upcoming=made[5])
    let_go(manager, newest=2)
    table = load(manager)
    assert [is_ancestor(table, made[number]) for number in (2, 5, 7, 8)] == [True] * 4
    assert not is_ancestor(table, made[6])
    for number in range(9, 12):
        made.append(change(manager, number))
    let_go(manager, newest=1)
    assert [is_ancestor(load(manager), made[number]) for number in (2, 5, 11)] == [True] * 3
    found = manager.diff(STATE.name, made[2]).read_all().to_pylist()
    assert [(row["value"], row["_change_type"]) for row in found] == [(2, "UPDATE_BEFORE"), (11, "UPDATE_AFTER")]
    manager.rollback(STATE.name, made[5])
    assert contents(manager, STATE)["id1"]["value"] == 5
    assert not is_ancestor(load(manager), made[11])
    change(manager, 20)
    let_go(manager, newest=1)
    table = load(manager)
    assert {s.snapshot_id for s in table.snapshots()} == {made[2], made[5], table.metadata.current_snapshot_id}
    assert is_ancestor(table, made[2])


def test_a_compaction_behind_a_gap_hides_no_change(tables: TableManager) -> None:
    """The first snapshot that is left after a gap is a compaction: what happened in the gap is told all the same."""
    first = change(tables, 1)
    tables.tag(STATE.name, "then", first)
    for number in range(2, 5):
        write(tables, STATE, [thing(f"id{number}", number)])
    write(tables, STATE, [thing("id2", 7, 7)])
    delete_positions(tables, STATE, "id", {"id3"})
    compact(tables, STATE)
    write(tables, STATE, [thing("id9", 9)])
    assert let_go(tables, newest=2) > 2
    changes = tables.changes(STATE.name, first).read_all().to_pylist()
    assert {(row["id"], row["_change_type"]) for row in changes} == {
        ("id2", "INSERT"),
        ("id4", "INSERT"),
        ("id9", "INSERT"),
    }


def test_overwritten_rows_of_a_log_are_not_passed_over(tables: TableManager) -> None:
    made = [write(tables, LOG, [event(f"c{n}")], "append").snapshot_id for n in range(2)]
    commit(tables.iceberg, LOG.name, _Overwriting(), op_id="somebody")
    for number in range(3):
        write(tables, LOG, [event(f"d{number}")], "append")
    assert made[0] is not None
    tables.tag(LOG.name, "then", made[0])
    let_go(tables, LOG)
    assert not is_ancestor(load(tables, LOG), made[0])


def test_watermarks_survive(tables: TableManager) -> None:
    """Commits of another engine carry none: the newest one that does is kept, whatever its age."""
    marked = change(tables, 1, watermarks={"elsewhere": 5})
    for number in range(4):
        table = load(tables)
        rows = pa.Table.from_pylist([thing(f"x{number}")], schema=STATE.arrow).cast(table.schema().as_arrow())
        table.append(rows)
    assert let_go(tables, before=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)) == 3
    table = load(tables)
    assert watermarks_of(table) == {"elsewhere": 5}
    assert table.metadata.snapshot_by_id(marked) is not None
    change(tables, 2)
    assert watermarks_of(load(tables)) == {"elsewhere": 5}
    assert let_go(tables) == 2, "a commit of ours has carried the mark on"
    assert watermarks_of(load(tables)) == {"elsewhere": 5}


def test_a_tag_keeps_the_marks_that_held_then(tables: TableManager) -> None:
    change(tables, 1, watermarks={"elsewhere": 5})
    table = load(tables)
    table.append(pa.Table.from_pylist([thing("x")], schema=STATE.arrow).cast(table.schema().as_arrow()))
    foreign = load(tables).metadata.current_snapshot_id
    assert foreign is not None
    tables.tag(STATE.name, "then", foreign)
    for number in range(2, 5):
        change(tables, number, watermarks={"elsewhere": 5 + number})
    let_go(tables)
    tables.rollback(STATE.name, foreign)
    assert watermarks_of(load(tables)) == {"elsewhere": 5}


def test_open_operations_can_still_be_found(tables: TableManager) -> None:
    for number in range(6):
        change(tables, number, op_id=f"op{number}")
    let_go(tables, newest=1, op_ids=frozenset({"op2", "unknown"}))
    table = load(tables)
    assert len(table.snapshots()) == 2
    assert find_operation(table, "op2") is not None
    assert find_operation(table, "op3") is None


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"newest": 3}, [4, 5, 6]),
        ({"newest": 1, "since": 2.5}, [3, 4, 5, 6]),
        ({"newest": 5, "before": 3.5}, [4, 5, 6]),
        ({"newest": 2, "since": 3.5, "before": 4.5}, [5, 6]),
        ({"newest": 99}, list(range(7))),
        ({"newest": 99, "before": 99}, [6]),
    ],
)
def test_age_and_number(tables: TableManager, how: dict[str, Any], left: list[int]) -> None:
    made = [change(tables, number) for number in range(7)]
    times = {s.snapshot_id: s.timestamp_ms for s in load(tables).snapshots()}

    def moment(number: float) -> dt.datetime:
        if number > 6:
            return dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        ms = (times[made[int(number)]] + times[made[int(number) + 1]]) / 2
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)

    given = {name: moment(value) if name != "newest" else value for name, value in how.items()}
    gone = {snapshot.snapshot_id for snapshot in expirable(load(tables), Keeping(**given))}
    assert [number for number in range(7) if made[number] not in gone] == left


def test_what_was_rolled_back_goes(tables: TableManager) -> None:
    made = [change(tables, number) for number in range(4)]
    tables.rollback(STATE.name, made[1])
    assert let_go(tables, newest=2) == 2
    assert contents(tables, STATE)["id1"]["value"] == 1
    assert unreferenced(load(tables)) == set()


@pytest.mark.parametrize("kind", ["tag", "rollback", "branch"])
def test_what_is_needed_at_the_last_moment_is_kept(
    manager: TableManager, kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Somebody takes hold of a snapshot after it was chosen, and before the catalog is asked."""
    if "rest" in request.node.name and kind != "rollback":
        pytest.skip("a REST catalog cannot be asked whether there is a new ref")
    made = [change(manager, number) for number in range(5)]
    calls: list[Callable[[], object]] = [
        {
            "tag": lambda: manager.tag(STATE.name, "mine", made[2]),
            "rollback": lambda: manager.rollback(STATE.name, made[2]),
            "branch": lambda: manager.branch(STATE.name, "mine", made[2]),
        }[kind]
    ]
    plain = iceberg_update.ask_catalog

    def late(*arguments: Any) -> None:
        if calls:
            calls.pop()()
        plain(*arguments)

    monkeypatch.setattr(iceberg_update, "ask_catalog", late)
    let_go(manager)
    assert not calls
    table = load(manager)
    assert table.metadata.snapshot_by_id(made[2]) is not None
    assert contents(manager, STATE, snapshot_id=made[2])["id1"]["value"] == 2
    assert_whole(table)


def test_a_lost_answer_loses_no_file_and_leaves_none(manager: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    for number in range(5):
        change(manager, number)
    plain, calls = iceberg_update.ask_catalog, iter(range(9))

    def lost(*arguments: Any) -> None:
        plain(*arguments)
        if next(calls) == 0:
            raise OperationalError("commit", {}, Exception("no answer"))

    monkeypatch.setattr(iceberg_update, "ask_catalog", lost)
    assert let_go(manager) == 4
    assert unreferenced(load(manager)) == set()
    assert_whole(load(manager))


def test_a_commit_that_lands_meanwhile_keeps_its_files(manager: TableManager) -> None:
    for number in range(5):
        change(manager, number)
    expired = expire(manager.iceberg, STATE.name, lambda _: Keeping())
    change(manager, 9)
    delete(manager, STATE, expired)
    assert_whole(load(manager))
    assert contents(manager, STATE)["id1"]["value"] == 9


def test_files_come_before_what_names_them(tables: TableManager) -> None:
    """Whoever is killed while deleting finds the rest again: a manifest goes after its files, a list after these."""
    for number in range(4):
        change(tables, number)
    order = [file.path for files in expire(tables.iceberg, STATE.name, lambda _: Keeping()).files for file in files]
    kinds = ["data" if p.endswith(".parquet") else "list" if "/snap-" in p else "manifest" for p in order]
    assert kinds == sorted(kinds, key=["data", "manifest", "list"].index)
    assert set(kinds) == {"data", "manifest", "list"}


def test_files_are_compared_some_at_a_time(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg_expire, "_AT_ONCE", 2)
    for number in range(6):
        write(tables, STATE, [thing(f"id{number}"), thing("id0", number, number)])
    before = contents(tables, STATE)
    parts = list(expire(tables.iceberg, STATE.name, lambda _: Keeping()).files)
    assert len(parts) > 5
    for files in parts:
        delete_many(load(tables).io, [file.path for file in files])
    assert_whole(load(tables))
    assert unreferenced(load(tables)) == set()
    assert contents(tables, STATE) == before


def test_pyiceberg_still_drops_refs_without_a_word(tables: TableManager) -> None:
    """Why there is a requirement of our own; should this fail, it may go."""
    made = [change(tables, number) for number in range(3)]
    tables.tag(STATE.name, "mine", made[0])
    table = load(tables)
    from pyiceberg.table.update import RemoveSnapshotsUpdate

    update = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": [made[0]]})
    table.catalog.commit_table(
        table, (AssertRefSnapshotId.model_validate({"ref": "main", "snapshot-id": made[2]}),), (update,)
    )
    assert "mine" not in load(tables).metadata.refs
    assert load(tables).metadata.snapshots[0].parent_snapshot_id is None


def test_a_table_without_snapshots(tables: TableManager) -> None:
    assert let_go(tables) == 0
    empty: CommitResult = write(tables, STATE)
    assert not empty.written
    assert expirable(load(tables), replace(Keeping(), newest=1)) == []


def test_a_write_whose_trace_has_expired_is_not_repeated(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog does not answer; before it is asked again the snapshot has come and gone."""
    change(tables, 0)
    plain, calls = iceberg_commit.ask_catalog, iter(range(99))

    def lost(*arguments: Any) -> None:
        if next(calls) > 0:
            plain(*arguments)
            return
        plain(*arguments)
        for number in range(20, 24):
            change(tables, number)
        let_go(tables)
        raise CommitStateUnknownException("no answer")

    monkeypatch.setattr(iceberg_commit, "ask_catalog", lost)
    with pytest.raises(StoreError, match="landed is not known any more; it was not repeated"):
        change(tables, 9, op_id="mine")
    assert_whole(load(tables))
    assert contents(tables, STATE)["id1"]["value"] == 23


@pytest.mark.parametrize("expired", [0, 1])
def test_what_is_known_since_a_snapshot(tables: TableManager, expired: int) -> None:
    made = [change(tables, number) for number in range(6)]
    table = load(tables)
    assert tells_all_since(table, None)
    assert all(tells_all_since(table, one) for one in made)
    if expired:
        tables.tag(STATE.name, "then", made[1])
        let_go(tables, newest=2)
        table = load(tables)
        assert [tells_all_since(table, one) for one in (None, *made)] == [False] * 5 + [True] * 2
    else:
        tables.rollback(STATE.name, made[1])
        assert all(tells_all_since(load(tables), one) for one in (None, *made))
