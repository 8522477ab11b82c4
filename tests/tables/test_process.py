"""Following a table: what a consumer is given, and that a crash between any two steps loses and doubles nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import CommitConflictError, SnapshotNotFoundError, StoreError
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.storage import iceberg_refs
from pkm_pipelines.tables import process
from pkm_pipelines.tables.manager import TableManager
from tests.support.dict_state import DictState
from tests.support.iceberg import LOG, STATE, local_place, thing, write

# Neither a key nor anything else tells its rows apart, so a change that is written twice stands there twice.
SEEN = TableSpec(
    layer="gold",
    table="seen",
    doc="What was seen of things.",
    kind="log",
    key=(),
    columns=(
        Column(1, "id", pa.string(), "The thing", True),
        Column(2, "change", pa.string(), "What happened", True),
        Column(3, "snapshot", pa.int64(), "Where", True),
    ),
)
Change = tuple[str, str]


class Crash(BaseException):
    """The process is killed here."""


@pytest.fixture
def manager(work: Path) -> TableManager:
    return open_manager(work, DictState())


def open_manager(work: Path, state: DictState | None) -> TableManager:
    manager = TableManager(local_place(work).open(), state)
    manager.ensure(STATE)
    manager.ensure(SEEN)
    return manager


def seen_of(changes: pa.RecordBatchReader) -> list[dict[str, Any]]:
    rows = changes.read_all().select(["id", "_change_type", "_snapshot_id"])
    return rows.rename_columns(["id", "change", "snapshot"]).to_pylist()


def copy(changes: pa.RecordBatchReader) -> Delta:
    """One delta of all changes."""
    return Delta(SEEN.name, [pa.RecordBatch.from_pylist(seen_of(changes), SEEN.arrow)], "append", "any")


def copy_in_parts(changes: pa.RecordBatchReader) -> Iterator[Delta]:
    """A delta for each change."""
    for row in seen_of(changes):
        yield Delta(SEEN.name, [pa.RecordBatch.from_pylist([row], SEEN.arrow)], "append", "any")


def seen(tables: TableManager) -> list[Change]:
    return [(row["id"], row["change"]) for row in tables.read(SEEN.name).read_all().to_pylist()]


def fill(tables: TableManager, *rows: tuple[str, int]) -> int:
    snapshot = write(tables, STATE, [thing(id, value, lsn=value) for id, value in rows]).snapshot_id
    assert snapshot is not None
    return snapshot


def test_each_change_once_and_the_mark_with_it(manager: TableManager) -> None:
    first = fill(manager, ("a", 1), ("b", 1))
    done = manager.process(STATE.name, "copy", copy, output=SEEN.name)
    assert (done.since, done.until, len(done.commits)) == (None, first, 1)
    second = fill(manager, ("a", 2), ("c", 1))
    done = manager.process(STATE.name, "copy", copy, output=SEEN.name)
    assert (done.since, done.until) == (first, second)
    assert manager.process(STATE.name, "copy", copy, output=SEEN.name).commits == ()
    assert sorted(seen(manager)) == [
        ("a", "INSERT"),
        ("a", "UPDATE_AFTER"),
        ("a", "UPDATE_BEFORE"),
        ("b", "INSERT"),
        ("c", "INSERT"),
    ]
    assert manager.watermark(SEEN.name, "copy@silver/things") == second
    assert set(manager.tags(STATE.name).values()) == {first, second}


def test_nothing_to_write_moves_the_mark_too(manager: TableManager) -> None:
    first = fill(manager, ("a", 1))
    assert manager.process(STATE.name, "idle", lambda _: None, output=SEEN.name).until == first
    assert manager.watermark(SEEN.name, "idle@silver/things") == first
    assert seen(manager) == []


def test_two_consumers_of_one_table_write_to_one_output(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    manager.process(STATE.name, "one", copy, output=SEEN.name)
    manager.process(STATE.name, "two", copy_in_parts, output=SEEN.name)
    assert seen(manager) == [("a", "INSERT")] * 2


def test_an_empty_table_has_nothing_to_follow(manager: TableManager) -> None:
    done = manager.process(STATE.name, "copy", copy, output=SEEN.name)
    assert (done.until, done.commits) == (None, ())


def test_net_changes_and_some_columns(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    last = fill(manager, ("a", 2))
    found: list[Any] = []
    manager.process(STATE.name, "net", lambda c: found.extend(c.read_all().to_pylist()), net=True, columns=["value"])
    assert [(row["value"], row["_change_type"], row["_snapshot_id"]) for row in found] == [(2, "INSERT", last)]
    assert "group" not in found[0]


def test_what_is_refused(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    with pytest.raises(StoreError, match="a name has letters"):
        manager.process(STATE.name, "a:b", copy)
    with pytest.raises(StoreError, match=r"cannot write to silver\.things, which it follows"):
        manager.process(STATE.name, "loop", copy, output=STATE.name)
    with pytest.raises(StoreError, match="name the table as `output`"):
        manager.process(STATE.name, "copy", copy)
    with pytest.raises(StoreError, match="writes to another place, at-least-once; give this one another name"):
        manager.process(STATE.name, "copy", copy, output=SEEN.name)
    with pytest.raises(StoreError, match=r"a delta for silver\.things cannot be part of the same commit"):
        manager.process(STATE.name, "lost", lambda _: Delta(STATE.name, [], "merge", "x"), output=SEEN.name)
    assert manager.watermark(SEEN.name, "lost@silver/things") is None


def test_a_mark_whose_snapshot_is_gone_is_an_error(manager: TableManager) -> None:
    first = fill(manager, ("a", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    fill(manager, ("a", 2))
    iceberg_refs.unpin(manager.iceberg, STATE.name, "copy")
    manager.iceberg.load(STATE.name).maintenance.expire_snapshots().by_ids([first]).commit()
    with pytest.raises(SnapshotNotFoundError, match="must be rebuilt from the whole table"):
        manager.process(STATE.name, "copy", copy, output=SEEN.name)


def test_a_consumer_that_was_overtaken_writes_nothing(manager: TableManager) -> None:
    fill(manager, ("a", 1))

    def slow(changes: pa.RecordBatchReader) -> Delta:
        # Another process ends this window and the next one first.
        manager.process(STATE.name, "copy", copy, output=SEEN.name)
        fill(manager, ("b", 1))
        manager.process(STATE.name, "copy", copy, output=SEEN.name)
        return copy(changes)

    # Its window is the first one, and its commit is recognised as done.
    manager.process(STATE.name, "copy", slow, output=SEEN.name)
    assert sorted(seen(manager)) == [("a", "INSERT"), ("b", "INSERT")]


def test_a_consumer_that_begins_late_at_an_old_mark_is_refused(manager: TableManager, monkeypatch: Any) -> None:
    first = fill(manager, ("a", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    fill(manager, ("b", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    fill(manager, ("c", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    monkeypatch.setattr(process, "watermarks_of", lambda _: {"copy@silver/things": first})
    with pytest.raises(CommitConflictError, match="another run has moved its watermark"):
        manager.process(STATE.name, "copy", copy_in_parts, output=SEEN.name)
    assert len(seen(manager)) == 3


def test_a_rolled_back_input_is_undone(manager: TableManager) -> None:
    first = fill(manager, ("a", 1))
    fill(manager, ("b", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    manager.rollback(STATE.name, first)
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    fill(manager, ("c", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    assert sorted(seen(manager)) == [("a", "INSERT"), ("b", "DELETE"), ("b", "INSERT"), ("c", "INSERT")]


def test_a_rolled_back_output_is_made_again(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    kept = manager.process(STATE.name, "copy", copy, output=SEEN.name).commits[0].snapshot_id
    fill(manager, ("b", 1))
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    fill(manager, ("c", 1))
    assert kept is not None
    manager.rollback(SEEN.name, kept)
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    assert sorted(seen(manager)) == [("a", "INSERT"), ("b", "INSERT"), ("c", "INSERT")]


def crashing(tables: TableManager, monkeypatch: pytest.MonkeyPatch, at: int, run: Callable[[], object]) -> bool:
    """Run, and die at the call number `at` of the catalog's commit or the state, just before or just after it.

    Returns False if there were not so many calls.
    """
    calls = itertools.count()

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def die_somewhere(*args: Any) -> Any:
            if next(calls) == at:
                raise Crash
            result = call(*args)
            if next(calls) == at:
                raise Crash
            return result

        return die_somewhere

    with monkeypatch.context() as patch:
        catalog = tables.iceberg.catalog
        patch.setattr(catalog, "commit_table", wrapped(catalog.commit_table))
        if tables.state is not None:
            patch.setattr(tables.state, "apply", wrapped(tables.state.apply))  # what `put` goes through, too
            patch.setattr(tables.state, "get", wrapped(tables.state.get))
        try:
            run()
        except Crash:
            return True
    return False


WANTED = Counter(
    {
        ("a", "INSERT"): 1,
        ("b", "INSERT"): 1,
        ("a", "UPDATE_BEFORE"): 1,
        ("a", "UPDATE_AFTER"): 1,
        ("c", "INSERT"): 1,
        ("d", "INSERT"): 1,
    }
)


@pytest.mark.parametrize("keeps_state", [True, False], ids=["state kept", "state lost"])
@pytest.mark.parametrize("handle", [copy, copy_in_parts])
def test_exactly_once_whatever_dies(
    work: Path, handle: Any, keeps_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in itertools.count():
        state = DictState()
        tables = open_manager(work / str(at), state)
        fill(tables, ("a", 1), ("b", 1))
        tables.process(STATE.name, "copy", handle, output=SEEN.name)
        fill(tables, ("a", 2), ("c", 1))
        died = crashing(tables, monkeypatch, at, partial(tables.process, STATE.name, "copy", handle, output=SEEN.name))
        # More has come when another process takes over.
        tables = open_manager(work / str(at), state if keeps_state else DictState())
        fill(tables, ("d", 1))
        tables.process(STATE.name, "copy", handle, output=SEEN.name)
        assert Counter(seen(tables)) == WANTED, f"killed at call {at}"
        if not died:
            assert at > 6
            return


@pytest.mark.parametrize("keeps_state", [True, False], ids=["state kept", "state lost"])
def test_at_least_once_whatever_dies(work: Path, keeps_state: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = 0
    for at in itertools.count():
        given: list[Change] = []

        def take(changes: pa.RecordBatchReader, given: list[Change] = given) -> None:
            given += [(row["id"], row["change"]) for row in seen_of(changes)]

        state = DictState()
        tables = open_manager(work / str(at), state)
        fill(tables, ("a", 1), ("b", 1))
        tables.process(STATE.name, "copy", take)
        fill(tables, ("a", 2), ("c", 1))
        died = crashing(tables, monkeypatch, at, partial(tables.process, STATE.name, "copy", take))
        # What the mark names is pinned at every moment, so expiry cannot take it.
        held = set(tables.tags(STATE.name).values())
        old = [version.snapshot_id for version in tables.history(STATE.name)[1:] if version.snapshot_id not in held]
        if old:
            tables.iceberg.load(STATE.name).maintenance.expire_snapshots().by_ids(old).commit()
        tables = open_manager(work / str(at), state if keeps_state else DictState())
        fill(tables, ("d", 1))
        tables.process(STATE.name, "copy", take)
        assert not WANTED - Counter(given), f"killed at call {at}"
        doubled += Counter(given) != WANTED
        assert tables.process(STATE.name, "copy", take).since == tables.iceberg.snapshot_id(STATE.name)
        if not died:
            assert Counter(given) == WANTED
            assert at > 6
            break
    assert doubled, "a crash after the function and before the mark gives the same changes again"


def test_a_failing_function_is_given_the_same_again(manager: TableManager) -> None:
    fill(manager, ("a", 1))

    def fail(_: pa.RecordBatchReader) -> None:
        raise ValueError("out of order")

    for name, output in (("there", None), ("here", SEEN.name)):
        with pytest.raises(ValueError, match="out of order"):
            manager.process(STATE.name, name, fail, output=output)
        assert manager.process(STATE.name, name, lambda _: None, output=output).since is None


def test_consumers_and_their_lag(manager: TableManager) -> None:
    manager.ensure(LOG)
    first = fill(manager, ("a", 1), ("b", 1))
    write(manager, LOG, [], "append", watermarks={STATE.name: first})
    manager.process(STATE.name, "copy", copy, output=SEEN.name)
    manager.process(STATE.name, "mail", lambda _: None)
    assert {one.snapshots_behind for one in manager.consumers()} == {0}
    second = fill(manager, ("a", 2), ("c", 1), ("d", 1))
    manager.process(STATE.name, "mail", lambda _: None)
    third = fill(manager, ("a", 3))
    manager.pin(STATE.name, "vectors.notes", current=first, upcoming=second)
    found = {one.name: one for one in manager.consumers(STATE.name)}
    shown = {
        name: (one.kind, one.output, one.watermark, one.snapshots_behind, one.rows_behind)
        for name, one in found.items()
    }
    assert shown == {
        LOG.name: ("derived", LOG.name, first, 2, 4),
        "copy": ("exactly-once", SEEN.name, first, 2, 4),
        "mail": ("at-least-once", None, second, 1, 1),
        "vectors.notes": ("derived", "vectors.notes", first, 2, 4),
    }
    times = {version.snapshot_id: version.committed_at for version in manager.history(STATE.name)}
    assert (found["copy"].behind_since, found["mail"].behind_since) == (times[second], times[third])
    outside = manager.consumers(STATE.name, lambda output, table: third if output == "vectors.notes" else None)
    assert {one.name: one.snapshots_behind for one in outside}["vectors.notes"] == 0
    assert manager.consumers(SEEN.name) == []


def test_a_forgotten_consumer_pins_nothing(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    manager.process(STATE.name, "mail", lambda _: None)
    manager.forget_consumer(STATE.name, "mail")
    assert manager.tags(STATE.name) == {}
    assert manager.consumers() == []


def test_without_a_state_the_pins_are_the_judge(work: Path) -> None:
    tables = open_manager(work, None)
    fill(tables, ("a", 1))
    given: list[int] = []
    for _ in range(2):
        tables.process(STATE.name, "mail", lambda changes: given.append(changes.read_all().num_rows))
    assert given == [1]
