"""The one function that commits: marks, conflicts, lost answers, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.io.pyarrow import PyArrowFileIO
from sqlalchemy.exc import OperationalError

from pkm_pipelines.model.errors import CommitConflictError, LeaseLostError, SnapshotNotFoundError, StoreError
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage import iceberg_commit, iceberg_update
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_history import OP_ID, WATERMARK
from pkm_pipelines.tables.manager import TableManager
from tests.support.dict_state import DictState
from tests.support.iceberg import LOG, STATE, batch, contents, delta, event, thing, write
from tests.support.warehouse_files import orphans

LOCKED = OperationalError("UPDATE iceberg_tables", {}, Exception("database is locked"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(iceberg_commit, "pause", lambda attempt: None)
    monkeypatch.setattr(iceberg_update, "pause", lambda attempt: None)


@pytest.fixture
def manager(store: IcebergStore) -> TableManager:
    """Over every kind of catalog."""
    manager = TableManager(store)
    manager.ensure(STATE)
    manager.ensure(LOG)
    return manager


class Faults:
    """Stands before the catalog's commit: each function is called once, in turn, instead of the commit."""

    def __init__(self, catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commit = catalog.commit_table
        self.faults: list[Callable[..., Any]] = []
        self.calls = 0
        monkeypatch.setattr(catalog, "commit_table", self)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.faults.pop(0)(*args) if self.faults else self.commit(*args)

    def refuse(self, error: BaseException) -> None:
        """Fail without having done anything."""

        def fault(*_: Any) -> None:
            raise error

        self.faults.append(fault)

    def lose_answer(self, error: BaseException) -> None:
        """Commit, then fail."""

        def fault(*args: Any) -> None:
            self.commit(*args)
            raise error

        self.faults.append(fault)

    def let_rival_go_first(self, rival: Callable[[], object]) -> None:
        """Somebody else commits right before."""

        def fault(*args: Any) -> Any:
            rival()
            return self.commit(*args)

        self.faults.append(fault)


@pytest.fixture
def faults(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> Faults:
    catalog = tables.iceberg.catalog
    assert isinstance(catalog, SqlCatalog)
    return Faults(catalog, monkeypatch)


def marks(manager: TableManager) -> dict[str, int]:
    return {name: mark for name in ("one", "two", "three") if (mark := manager.watermark(STATE.name, name)) is not None}


def test_marks_become_durable_with_the_rows_and_are_carried_along(manager: TableManager) -> None:
    assert manager.watermark(STATE.name, "one") is None
    assert manager.watermark("silver.nothing", "one") is None
    write(manager, STATE, [thing("a")], watermarks={"one": 11})
    write(manager, STATE, [thing("b")], watermarks={"two": 22}, expect={"two": None})
    write(manager, STATE, [thing("c")])
    assert marks(manager) == {"one": 11, "two": 22}
    write(manager, STATE, [thing("d")], watermarks={"one": 12}, expect={"one": 11})
    assert marks(manager) == {"one": 12, "two": 22}
    assert [version.watermarks for version in manager.history(STATE.name)] == [
        {"one": 12, "two": 22},
        {"one": 11, "two": 22},
        {"one": 11, "two": 22},
        {"one": 11},
    ]


def test_a_mark_that_moves_without_rows_makes_an_empty_snapshot_once(manager: TableManager) -> None:
    write(manager, STATE, [thing("a")], watermarks={"one": 1})
    moved = write(manager, STATE, watermarks={"one": 2})
    assert moved.written
    assert marks(manager) == {"one": 2}
    assert set(contents(manager, STATE)) == {"a"}
    again = write(manager, STATE, watermarks={"one": 2})
    assert not again.written
    assert again.snapshot_id == moved.snapshot_id == manager.iceberg.snapshot_id(STATE.name)
    assert not manager.diff(STATE.name, manager.history(STATE.name)[1].snapshot_id).read_all().num_rows


def test_commits_of_other_engines_carry_no_marks_and_take_none_away(tables: TableManager) -> None:
    write(tables, STATE, [thing("a")], watermarks={"one": 1})
    table = tables.iceberg.load(STATE.name)
    rows = pa.Table.from_pylist([thing("b")], schema=STATE.arrow).cast(table.schema().as_arrow())
    table.append(rows)
    assert marks(tables) == {"one": 1}
    write(tables, STATE, [thing("c")])
    assert marks(tables) == {"one": 1}
    assert set(contents(tables, STATE)) == {"a", "b", "c"}


def test_a_rollback_takes_marks_back(manager: TableManager) -> None:
    first = write(manager, STATE, [thing("a")], watermarks={"one": 1})
    write(manager, STATE, [thing("b")], watermarks={"one": 2})
    assert first.snapshot_id is not None
    manager.rollback(STATE.name, first.snapshot_id)
    assert marks(manager) == {"one": 1}
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 5"):
        manager.rollback(STATE.name, 5)


def test_what_is_no_ancestor_cannot_be_rolled_back_to(tables: TableManager) -> None:
    first = write(tables, STATE, [thing("a")])
    lost = write(tables, STATE, [thing("b")])
    assert first.snapshot_id is not None
    assert lost.snapshot_id is not None
    tables.rollback(STATE.name, first.snapshot_id)
    write(tables, STATE, [thing("c")])
    assert not tables.is_ancestor(STATE.name, lost.snapshot_id)
    assert tables.is_ancestor(STATE.name, first.snapshot_id)
    with pytest.raises(SnapshotNotFoundError, match="no ancestor"):
        tables.rollback(STATE.name, lost.snapshot_id)


def test_a_mark_that_somebody_else_moved_stops_the_commit(tables: TableManager) -> None:
    write(tables, STATE, [thing("a")], watermarks={"one": 1})
    with pytest.raises(CommitConflictError, match=r"moved its watermark of one from None to 1.*run it again"):
        write(tables, STATE, [thing("b")], watermarks={"one": 2}, expect={"one": None})
    assert set(contents(tables, STATE)) == {"a"}
    assert marks(tables) == {"one": 1}
    assert not orphans(tables.iceberg.load(STATE.name))


def test_an_operation_is_applied_once(manager: TableManager) -> None:
    first = delta(STATE, [thing("a", 1), thing("b", 1)], op_id="op", watermarks={"one": 1}, expect={"one": None})
    landed = manager.write(first)
    write(manager, STATE, [thing("c")])
    again = manager.write(delta(STATE, [thing("a", 2, lsn=9)], op_id="op", watermarks={"one": 1}, expect={"one": None}))
    assert (again.snapshot_id, again.rows_added, again.written) == (landed.snapshot_id, 2, True)
    assert contents(manager, STATE)["a"]["value"] == 1
    assert manager.landed(STATE.name, "op")
    assert not manager.landed(STATE.name, "other")


def test_an_operation_that_was_rolled_back_may_come_again(tables: TableManager) -> None:
    first = write(tables, STATE, [thing("a")])
    write(tables, STATE, [thing("b")], op_id="op")
    assert first.snapshot_id is not None
    tables.rollback(STATE.name, first.snapshot_id)
    assert not tables.landed(STATE.name, "op")
    assert write(tables, STATE, [thing("b")], op_id="op").rows_added == 1
    assert set(contents(tables, STATE)) == {"a", "b"}


@pytest.mark.parametrize("error", [CommitStateUnknownException("timed out"), LOCKED, ValueError("unreadable")])
@pytest.mark.parametrize("spec", [STATE, LOG], ids=["merge", "append"])
def test_a_lost_answer_is_looked_up_and_not_repeated(
    error: Exception, spec: TableSpec, tables: TableManager, faults: Faults
) -> None:
    faults.lose_answer(error)
    row, mode = (thing("a", 1), "merge") if spec is STATE else (event("a"), "append")
    result = write(tables, spec, [row], mode)
    assert (result.rows_added, result.attempts, faults.calls) == (1, 2, 1)
    assert len(contents(tables, spec)) == len(tables.history(spec.name)) == 1
    assert not orphans(tables.iceberg.load(spec.name))


@pytest.mark.parametrize("error", [CommitStateUnknownException("timed out"), LOCKED, CommitFailedException("busy")])
@pytest.mark.parametrize("spec", [STATE, LOG], ids=["merge", "append"])
def test_what_did_not_land_is_tried_again(
    error: Exception, spec: TableSpec, tables: TableManager, faults: Faults
) -> None:
    faults.refuse(error)
    faults.refuse(error)
    row, mode = (thing("a", 1), "merge") if spec is STATE else (event("a"), "append")
    result = write(tables, spec, [row], mode)
    assert (result.rows_added, result.attempts, faults.calls) == (1, 3, 3)
    assert len(contents(tables, spec)) == len(tables.history(spec.name)) == 1
    assert not orphans(tables.iceberg.load(spec.name))


def test_a_lost_race_is_planned_again_on_what_the_winner_made(tables: TableManager, faults: Faults) -> None:
    write(tables, STATE, [thing("a", 1, lsn=1), thing("b", 1, lsn=1)], watermarks={"one": 1})
    rival = [thing("a", 2, lsn=5), thing("new", 2, lsn=5)]
    faults.let_rival_go_first(lambda: write(tables, STATE, rival, watermarks={"two": 2}))
    mine = [thing("a", 3, lsn=4), thing("b", 3, lsn=4), thing("new", 3, lsn=4), thing("mine", 3, lsn=4)]
    result = write(tables, STATE, mine, watermarks={"one": 3}, expect={"one": 1})
    assert {key: row["value"] for key, row in contents(tables, STATE).items()} == {
        "a": 2,  # the rival's is newer
        "b": 3,
        "new": 2,
        "mine": 3,
    }
    assert (result.rows_added, result.rows_updated, result.attempts) == (1, 1, 2)
    assert marks(tables) == {"one": 3, "two": 2}
    assert not orphans(tables.iceberg.load(STATE.name))


def test_a_rival_that_moves_the_expected_mark_wins(tables: TableManager, faults: Faults) -> None:
    faults.let_rival_go_first(lambda: write(tables, STATE, [thing("a", 1)], watermarks={"one": 1}))
    with pytest.raises(CommitConflictError, match="from None to 1"):
        write(tables, STATE, [thing("a", 2, lsn=9)], watermarks={"one": 1}, expect={"one": None})
    assert contents(tables, STATE)["a"]["value"] == 1
    assert not orphans(tables.iceberg.load(STATE.name))


def test_an_append_drops_what_a_rival_appended_meanwhile(tables: TableManager, faults: Faults) -> None:
    write(tables, LOG, [event("old")], "append")
    faults.let_rival_go_first(lambda: write(tables, LOG, [event("both"), event("theirs")], "append"))
    result = write(tables, LOG, [event("old"), event("both"), event("mine")], "append")
    assert (result.rows_added, result.attempts) == (1, 2)
    assert set(contents(tables, LOG)) == {"old", "both", "theirs", "mine"}
    assert not orphans(tables.iceberg.load(LOG.name))


def test_an_append_of_which_a_rival_left_nothing_writes_nothing(tables: TableManager, faults: Faults) -> None:
    faults.let_rival_go_first(lambda: write(tables, LOG, [event("a"), event("b")], "append"))
    result = write(tables, LOG, [event("a"), event("b")], "append")
    assert not result.written
    assert len(tables.history(LOG.name)) == 1
    assert not orphans(tables.iceberg.load(LOG.name))


def test_only_partitions_that_a_rival_touched_are_merged_again(
    tables: TableManager, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tables, STATE, [thing(f"t{i}", 1) for i in range(60)])
    faults.let_rival_go_first(lambda: write(tables, STATE, [thing("t0", 9, lsn=9)]))
    written: list[str] = []
    delete = iceberg_commit.delete_files
    monkeypatch.setattr(iceberg_commit, "delete_files", lambda io, paths: (written.extend(paths), delete(io, written)))
    result = write(tables, STATE, [thing(f"t{i}", 2, lsn=2) for i in range(60)])
    assert result.attempts == 2
    assert len([path for path in written if path.endswith(".parquet")]) == 1
    values = {key: row["value"] for key, row in contents(tables, STATE).items()}
    assert values == {f"t{i}": 9 if i == 0 else 2 for i in range(60)}


def test_a_table_that_never_stands_still_is_given_up(tables: TableManager, faults: Faults) -> None:
    for _ in range(iceberg_commit.ATTEMPTS):
        faults.refuse(CommitFailedException("busy"))
    with pytest.raises(CommitConflictError, match=r"silver\.things kept changing.*nothing was written"):
        write(tables, STATE, [thing("a")])
    assert not orphans(tables.iceberg.load(STATE.name))


def test_a_catalog_that_cannot_be_reached_is_named(tables: TableManager, faults: Faults) -> None:
    for _ in range(iceberg_commit.ATTEMPTS):
        faults.refuse(LOCKED)
    with pytest.raises(StoreError, match=r"catalog sqlite:.*cannot be reached: database is locked; whether") as caught:
        write(tables, STATE, [thing("a")])
    assert not isinstance(caught.value, CommitConflictError)
    # Whether one of them landed cannot be known, so nothing of them is deleted.
    assert orphans(tables.iceberg.load(STATE.name))


def test_a_lost_lease_stops_the_commit_and_leaves_nothing(tables: TableManager, faults: Faults) -> None:
    class Lost:
        def check(self) -> None:
            raise LeaseLostError("the lease is gone")

    with pytest.raises(LeaseLostError):
        tables.write(delta(STATE, [thing("a")], watermarks={"one": 1}), lease=Lost())
    assert faults.calls == 0
    assert tables.iceberg.snapshot_id(STATE.name) is None
    assert not orphans(tables.iceberg.load(STATE.name))


def test_the_lease_is_looked_at_in_every_attempt(tables: TableManager, faults: Faults) -> None:
    class Counted:
        checks = 0

        def check(self) -> None:
            self.checks += 1

    lease = Counted()
    faults.refuse(CommitFailedException("busy"))
    tables.write(delta(STATE, [thing("a")]), lease=lease)
    assert lease.checks == 2


def test_an_interrupt_after_the_catalog_was_asked_deletes_nothing(tables: TableManager, faults: Faults) -> None:
    faults.lose_answer(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tables, STATE, [thing("a")])
    assert set(contents(tables, STATE)) == {"a"}


def test_a_defect_of_the_catalog_is_no_conflict(tables: TableManager, faults: Faults) -> None:
    faults.refuse(ValueError("nonsense"))
    with pytest.raises(ValueError, match="nonsense"):
        write(tables, STATE, [thing("a")])
    assert faults.calls == 1


def test_rows_that_fail_on_their_way_leave_nothing(tables: TableManager) -> None:
    def rows(spec: TableSpec, row: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        yield batch(spec, [row])
        raise RuntimeError("the source broke")

    small = TableManager(tables.iceberg, memory_bytes=1)
    for spec, row, mode in ((STATE, thing("a"), "merge"), (LOG, event("a"), "append")):
        broken = delta(spec, mode=mode)
        broken.rows = rows(spec, row)
        with pytest.raises(RuntimeError, match="the source broke"):
            small.write(broken)
        assert tables.iceberg.snapshot_id(spec.name) is None
        assert not orphans(tables.iceberg.load(spec.name))


def test_a_lost_data_file_is_named(tables: TableManager) -> None:
    write(tables, STATE, [thing("a", 1)])
    (task,) = tables.iceberg.load(STATE.name).scan().plan_files()
    tables.iceberg.load(STATE.name).io.delete(task.file.file_path)
    with pytest.raises(StoreError, match=r"silver\.things: one of its files is missing.*parquet"):
        write(tables, STATE, [thing("a", 2, lsn=2)])


def test_a_file_that_cannot_be_deleted_is_named_and_no_failure(
    tables: TableManager, faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: PyArrowFileIO, location: str) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(PyArrowFileIO, "delete", refuse)
    faults.refuse(CommitFailedException("busy"))
    assert write(tables, STATE, [thing("a")]).rows_added == 1
    assert "avro could not be deleted and is an orphan now: not allowed" in caplog.text


def test_the_summary_says_who_wrote_what(manager: TableManager) -> None:
    result = write(
        manager, LOG, [event("a")], "append", op_id="op", properties={"pkm.run-id": "run", "pkm.lsn-range": "1-1"}
    )
    snapshot = manager.iceberg.load(LOG.name).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.snapshot_id == result.snapshot_id
    assert (
        snapshot.summary.additional_properties.items()
        >= {
            OP_ID: "op",
            "pkm.run-id": "run",
            "pkm.lsn-range": "1-1",
            "pkm.rows-added": "1",
            "added-data-files": "1",
            "total-records": "1",
        }.items()
    )
    assert not any(name.startswith(WATERMARK) for name in snapshot.summary.additional_properties)
    (version,) = manager.history(LOG.name)
    assert (version.run_id, version.op_id, version.rows_added, version.total_rows) == ("run", "op", 1, 1)


def test_consumers_pin_what_they_have_read_and_will_have_read(manager: TableManager) -> None:
    pinned = f"pkm-consumer-{STATE.name}"
    ids = [write(manager, LOG, [event(f"c{i}")], "append").snapshot_id for i in range(3)]
    assert None not in ids
    snapshots = [snapshot for snapshot in ids if snapshot is not None]
    versions = len(manager.iceberg.load(LOG.name).metadata.metadata_log)

    write(manager, STATE, [thing("a")], watermarks={LOG.name: snapshots[0]})
    assert manager.tags(LOG.name) == {f"{pinned}.next": snapshots[0]}
    write(manager, STATE, [thing("b")], watermarks={LOG.name: snapshots[1]})
    assert manager.tags(LOG.name) == {pinned: snapshots[0], f"{pinned}.next": snapshots[1]}
    write(manager, STATE, [thing("c")], watermarks={LOG.name: snapshots[2]})
    assert manager.tags(LOG.name) == {pinned: snapshots[1], f"{pinned}.next": snapshots[2]}
    assert len(manager.iceberg.load(LOG.name).metadata.metadata_log) == versions + 3, "one commit for each pin"

    write(manager, STATE, [thing("d")], watermarks={LOG.name: snapshots[2]})
    write(manager, STATE, watermarks={LOG.name: snapshots[2]})
    assert len(manager.iceberg.load(LOG.name).metadata.metadata_log) == versions + 3, "none where no mark moves"
    manager.unpin(LOG.name, STATE.name)
    assert manager.tags(LOG.name) == {}


def test_a_commit_that_fails_after_pinning_leaves_both_marks_pinned(tables: TableManager, faults: Faults) -> None:
    first, second = (write(tables, LOG, [event(f"c{i}")], "append").snapshot_id for i in range(2))
    assert first is not None
    assert second is not None
    write(tables, STATE, [thing("a")], watermarks={LOG.name: first})

    class Lost:
        def check(self) -> None:
            raise LeaseLostError("gone")

    with pytest.raises(LeaseLostError):
        tables.write(delta(STATE, [thing("b")], watermarks={LOG.name: second}), lease=Lost())
    assert set(tables.tags(LOG.name).values()) == {first, second}
    assert tables.watermark(STATE.name, LOG.name) == first


def test_a_mark_on_what_has_expired_is_refused(tables: TableManager) -> None:
    with pytest.raises(SnapshotNotFoundError, match=r"bronze\.events has no snapshot 99"):
        write(tables, STATE, [thing("a")], watermarks={LOG.name: 99})
    assert not contents(tables, STATE)
    assert not orphans(tables.iceberg.load(STATE.name))


def test_tags(manager: TableManager) -> None:
    first, second = (write(manager, STATE, [thing("a", i, lsn=i)]).snapshot_id for i in range(2))
    assert first is not None
    assert second is not None
    manager.tag(STATE.name, "cut-1", first)
    manager.tag(STATE.name, "cut-1", first)
    manager.tag(STATE.name, "cut-2", first)
    manager.tag(STATE.name, "cut-2", second)
    assert manager.tags(STATE.name) == {"cut-1": first, "cut-2": second}
    assert manager.history(STATE.name)[0].tags == ("cut-2", "main")
    manager.untag(STATE.name, "cut-1")
    manager.untag(STATE.name, "cut-1")
    manager.untag(STATE.name, "main")
    assert manager.tags(STATE.name) == {"cut-2": second}
    with pytest.raises(SnapshotNotFoundError):
        manager.tag(STATE.name, "cut-3", 1)


def test_the_watermark_is_copied_to_the_state(local: Any) -> None:
    state = DictState()
    manager = TableManager(local.open(), state)
    manager.ensure(STATE)
    write(manager, STATE, [thing("a")], watermarks={"one": 5})
    write(manager, STATE, [thing("a")])
    assert state.values == {f"watermark:{STATE.name}:one": b"5"}
