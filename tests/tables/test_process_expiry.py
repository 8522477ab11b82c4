"""Exactly once also where the output's history expires while a window is under way, or is not ours alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError
from pkm_pipelines.model.records import Delta
from pkm_pipelines.tables.expire import Keeping, expire
from pkm_pipelines.tables.manager import TableManager
from tests.support.dict_state import DictState
from tests.support.iceberg import STATE
from tests.tables.test_process import SEEN, Change, Crash, copy, copy_in_parts, crashing, fill, open_manager, seen

OTHER = [("x", "by another")] * 3


@pytest.fixture
def manager(work: Path) -> TableManager:
    return open_manager(work, DictState())


def append(tables: TableManager, id: str = "x") -> None:
    """Another writer appends to the output."""
    row = {"id": id, "change": "by another", "snapshot": 0}
    tables.append(SEEN.name, pa.Table.from_pylist([row], SEEN.arrow))


def append_as_another_engine(tables: TableManager) -> None:
    """Its commit carries no marks."""
    row = {"id": "x", "change": "by another", "snapshot": 0}
    tables.iceberg.load(SEEN.name).append(pa.Table.from_pylist([row], SEEN.arrow))


def expire_all(tables: TableManager) -> None:
    """Of both tables only the present, and what must be kept, is left."""
    for name in (STATE.name, SEEN.name):
        expire(tables.iceberg, name, lambda _: Keeping(newest=1))


def follow(tables: TableManager, handle: object = copy_in_parts) -> None:
    tables.process(STATE.name, "copy", handle, output=SEEN.name)  # pyright: ignore[reportArgumentType]


def die_after(tables: TableManager, written: int) -> None:
    """Die when so many deltas of a window are written: the last one that was asked for is not."""

    def dying(changes: pa.RecordBatchReader) -> Iterator[Delta]:
        yield from itertools.islice(copy_in_parts(changes), written + 1)
        raise Crash

    with pytest.raises(Crash):
        follow(tables, dying)


def inserted(*ids: str) -> Counter[Change]:
    return Counter((id, "INSERT") for id in ids)


@pytest.mark.parametrize("keeps_state", [True, False], ids=["state kept", "state lost"])
def test_what_expires_between_a_crash_and_the_next_run(
    work: Path, keeps_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in itertools.count():
        state = DictState()
        tables = open_manager(work / str(at), state)
        fill(tables, ("a", 1))
        follow(tables)
        fill(tables, ("b", 1), ("c", 1), ("d", 1))
        died = crashing(tables, monkeypatch, at, partial(follow, tables))
        tables = open_manager(work / str(at), state if keeps_state else DictState())
        for _ in OTHER:
            append(tables)
        fill(tables, ("e", 1))
        expire_all(tables)
        follow(tables)
        assert Counter(seen(tables)) == inserted("a", "b", "c", "d", "e") + Counter(OTHER), f"killed at call {at}"
        if not died:
            assert at > 10
            return


def test_a_window_is_ended_by_many_processes(manager: TableManager) -> None:
    last = fill(manager, *((id, 1) for id in "abcd"))
    for written in (1, 2, 3):
        die_after(manager, written)
        append(manager)
        expire_all(manager)
        assert manager.consumers(STATE.name)[0].watermark is None
    follow(manager)
    assert Counter(seen(manager)) == inserted(*"abcd") + Counter(OTHER)
    assert [(one.name, one.watermark) for one in manager.consumers(STATE.name)] == [("copy", last)]


def test_the_pins_are_lost_too(manager: TableManager) -> None:
    fill(manager, ("a", 1), ("b", 1))
    die_after(manager, 1)
    until = manager.iceberg.snapshot_id(STATE.name)
    manager.forget_consumer(STATE.name, "copy")
    fill(manager, ("0", 1))
    done = manager.process(STATE.name, "copy", copy_in_parts, output=SEEN.name)
    assert (done.since, len(done.commits)) == (None, 2)
    assert Counter(seen(manager)) == inserted("a", "b", "0")
    assert until != done.until


def test_an_output_that_was_rolled_back_into_a_window(manager: TableManager) -> None:
    fill(manager, ("a", 1), ("b", 1))
    die_after(manager, 1)
    inside = manager.history(SEEN.name)[0].snapshot_id
    follow(manager)
    fill(manager, ("0", 1))
    follow(manager)
    manager.rollback(SEEN.name, inside)
    expire_all(manager)
    follow(manager)
    assert Counter(seen(manager)) == inserted("a", "b", "0")


@pytest.mark.parametrize("answer", [copy, lambda _: None, lambda _: ()])
def test_a_function_that_answers_otherwise_is_refused(manager: TableManager, answer: object) -> None:
    fill(manager, ("a", 1), ("b", 1), ("c", 1))
    die_after(manager, 2)
    with pytest.raises(StoreError, match=r"consumer copy of silver\.things: 2 deltas .* answered with [01]; it must"):
        follow(manager, answer)
    follow(manager)
    assert Counter(seen(manager)) == inserted("a", "b", "c")


def test_deltas_that_read_one_stream_in_turn(manager: TableManager) -> None:
    """What was written already is read past, so that the next delta begins where it did the first time."""

    def each(changes: pa.RecordBatchReader, dies: bool) -> Iterator[Delta]:
        rows = (row for delta in copy_in_parts(changes) for row in delta.rows)
        for number in range(3):
            if dies and number == 2:
                raise Crash
            yield Delta(SEEN.name, itertools.islice(rows, 1), "append", "any")

    fill(manager, ("a", 1), ("b", 1), ("c", 1))
    with pytest.raises(Crash):
        follow(manager, partial(each, dies=True))
    follow(manager, partial(each, dies=False))
    assert Counter(seen(manager)) == inserted("a", "b", "c")


def test_a_log_that_another_engine_overwrote_keeps_its_marks(manager: TableManager) -> None:
    fill(manager, ("a", 1), ("b", 1))
    follow(manager)
    manager.iceberg.load(SEEN.name).delete("id = 'a'")
    append_as_another_engine(manager)
    expire_all(manager)
    fill(manager, ("c", 1))
    follow(manager)
    assert Counter(seen(manager)) == inserted("b", "c") + Counter(OTHER[:1])


def test_marks_that_another_engine_expired_are_no_beginning(manager: TableManager) -> None:
    fill(manager, ("a", 1))
    follow(manager)
    fill(manager, ("b", 1))
    follow(manager)
    gone = [version.snapshot_id for version in manager.history(SEEN.name)]
    append_as_another_engine(manager)
    manager.iceberg.load(SEEN.name).maintenance.expire_snapshots().by_ids(gone).commit()
    with pytest.raises(
        SnapshotNotFoundError, match=r"consumer copy of silver\.things: how far it has read is not known"
    ):
        follow(manager)
    assert Counter(seen(manager)) == inserted("a", "b") + Counter(OTHER[:1])
    manager.replace(SEEN.name, SEEN.arrow.empty_table())
    manager.forget_consumer(STATE.name, "copy")
    follow(manager)
    assert Counter(seen(manager)) == inserted("a", "b")
