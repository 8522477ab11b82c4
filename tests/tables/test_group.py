"""Many writers, one commit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import LeaseLostError, StoreError
from pkm_pipelines.tables.group import GroupWriter
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, contents, event, thing


def things(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), STATE.arrow)


def events(*names: str) -> pa.Table:
    return pa.Table.from_pylist([event(name) for name in names], LOG.arrow)


@contextmanager
def held(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The first commit waits until the block ends, so that what is submitted meanwhile becomes one group."""
    write, goes, first = tables.write, threading.Event(), threading.Event()

    def wait(*args: Any, **options: Any) -> Any:
        first.set()
        assert goes.wait(30)
        return write(*args, **options)

    monkeypatch.setattr(tables, "write", wait)
    yield
    assert first.wait(30)
    goes.set()


def test_many_threads_and_few_commits(tables: TableManager) -> None:
    def work(number: int) -> int | None:
        return group.write(events(f"c{number}")).snapshot_id

    with GroupWriter(tables, LOG.name) as group, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(work, range(64)))
    assert set(contents(tables, LOG)) == {f"c{number}" for number in range(64)}
    history = {version.snapshot_id: version.rows_added for version in tables.history(LOG.name)}
    assert len(history) < 64
    assert set(answers) == set(history)
    assert all(history[snapshot] == answers.count(snapshot) for snapshot in history)


def test_an_answer_means_that_the_rows_are_there(tables: TableManager) -> None:
    with GroupWriter(tables, STATE.name) as group:
        result = group.write(things(thing("a", 1)))
        assert contents(tables, STATE, snapshot_id=result.snapshot_id)["a"]["value"] == 1


def test_the_newest_wins_in_the_order_of_submission(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with GroupWriter(tables, STATE.name) as group:
        with held(tables, monkeypatch):
            futures = [group.submit(things(thing("first", 0)))]
            futures += [group.submit(things(thing("a", value, lsn=lsn))) for value, lsn in ((1, 1), (2, 1), (3, 0))]
        assert len({future.result().snapshot_id for future in futures}) <= 2
    assert contents(tables, STATE)["a"]["value"] == 2


def test_deleted_keys_keep_their_place(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with GroupWriter(tables, STATE.name) as group, held(tables, monkeypatch):
        group.submit(things(thing("a", 1), thing("b", 1)))
        group.submit(things(), pa.table({"id": ["a", "b"]}))
        group.submit(things(thing("b", 2)))
    assert {key: row["value"] for key, row in contents(tables, STATE).items()} == {"b": 2}


def test_a_row_that_does_not_fit_fails_alone(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with GroupWriter(tables, LOG.name) as group:
        with held(tables, monkeypatch):
            good = [group.submit(events("a"))]
            bad = [
                group.submit(pa.table({"nothing": [1]})),
                group.submit(events("x").set_column(0, "change_id", pa.nulls(1, pa.string()))),
                group.submit(events("x").set_column(2, "value", pa.array(["five"]))),
            ]
            good += [group.submit(events("b")), group.submit(events("c"))]
        for future, message in zip(bad, ["no column 'nothing'", "a row has no value", "column value"], strict=True):
            with pytest.raises(StoreError, match=message):
                future.result()
        assert all(future.result().written for future in good)
    assert set(contents(tables, LOG)) == {"a", "b", "c"}


def test_a_commit_that_fails_fails_all_that_it_carried(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with GroupWriter(tables, LOG.name) as group:
        with monkeypatch.context() as patch:
            patch.setattr(tables, "write", lambda *_, **__: (_ for _ in ()).throw(LeaseLostError("lost")))
            with pytest.raises(LeaseLostError):
                group.write(events("a"))
        assert group.write(events("b")).rows_added == 1
    assert set(contents(tables, LOG)) == {"b"}


def test_a_cancelled_submission_is_not_written(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with GroupWriter(tables, LOG.name) as group, held(tables, monkeypatch):
        group.submit(events("a"))
        while group._waiting:  # pyright: ignore[reportPrivateUsage] # until the first is on its way
            time.sleep(0.001)
        assert group.submit(events("b")).cancel()
    assert set(contents(tables, LOG)) == {"a"}


def test_coroutines(tables: TableManager) -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(group.write_async(events(f"c{number}")) for number in range(20)))

    with GroupWriter(tables, LOG.name) as group:
        assert len(asyncio.run(many())) == 20
    assert len(contents(tables, LOG)) == 20


def test_what_waits_is_bounded(tables: TableManager) -> None:
    size = events("c0").nbytes
    with GroupWriter(tables, LOG.name, group_bytes=2 * size, waiting_bytes=3 * size) as group:
        futures = [group.submit(events(f"c{number}")) for number in range(12)]
    assert [future.result().rows_added for future in futures if future.result().rows_added > 2] == []
    assert len(contents(tables, LOG)) == 12


def test_a_closed_writer_takes_nothing(tables: TableManager) -> None:
    group = GroupWriter(tables, LOG.name)
    group.close()
    with pytest.raises(StoreError, match="is closed"):
        group.submit(events("a"))


def test_a_group_writes_to_a_branch(tables: TableManager) -> None:
    tables.append(LOG.name, events("a"))
    tables.branch(LOG.name, "try")
    with GroupWriter(tables, LOG.name, branch="try") as group:
        group.write(events("b"))
    assert set(contents(tables, LOG)) == {"a"}
    assert set(contents(tables, LOG, tag="try")) == {"a", "b"}
