"""Maintenance of the state: compacted and collected through its one writer, beside clients, and crash-safe."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest
from slatedb import uniffi as slatedb

from pkm_pipelines.model.records import Mutation
from pkm_pipelines.storage import slate, slate_maintain
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate import Database
from pkm_pipelines.storage.slate_client import State
from pkm_pipelines.storage.slate_wire import Request, Write
from tests.support.state import OpenState, SharedState, end_services


def fill(state: State, round_: int) -> None:
    state.apply([Mutation(f"k:{number:03d}", b"%d" % round_ * 500) for number in range(100)])


def test_everything_becomes_one_run_beside_clients(shared_state: SharedState) -> None:
    state = shared_state.state
    for round_ in range(3):
        fill(state, round_)
        state.checkpoint(f"round {round_}", 60)  # which makes a table
    state.apply([Mutation(f"k:{number:03d}", None) for number in range(50)])
    before = state.figures()
    assert before["tables"] >= 3
    assert before["checkpoints"] >= 3
    assert before["files"] > 0 < before["bytes"]
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with shared_state.open() as client:
            while not stop.is_set():
                client.put("beside", b"%d" % len(written))
                assert client.get("beside") == b"%d" % len(written)
                written.append(1)
                time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert state.compact()
    finally:
        stop.set()
        writer.join()
    after = state.figures()
    assert after["runs"] == 1
    assert after["tables"] <= 1, "what was written meanwhile may have become one"
    assert after["table_bytes"] < before["table_bytes"]
    assert dict(state.scan("k:")) == {f"k:{number:03d}": b"2" * 500 for number in range(50, 100)}
    assert state.get("beside") == b"%d" % (len(written) - 1)
    assert len(written) > 20, "the writer was not kept waiting"
    state.collect()
    assert dict(state.scan("k:")) == {f"k:{number:03d}": b"2" * 500 for number in range(50, 100)}


def test_a_service_that_is_killed_while_it_compacts_loses_nothing(open_state: OpenState, work: Path) -> None:
    state = open_state(Location((work / "state").as_uri()))
    for round_ in range(3):
        fill(state, round_)
        state.checkpoint("table", 60)
    asked = state._ask("compact")  # pyright: ignore[reportPrivateUsage]
    assert asked["id"]
    end_services_of(state)
    assert dict(state.scan("k:")) == {f"k:{number:03d}": b"2" * 500 for number in range(100)}
    deadline = time.monotonic() + 60
    while not state.compact(wait_seconds=20):
        assert time.monotonic() < deadline
    assert state.figures()["runs"] == 1
    assert state.compact(), "there is little or nothing to do"
    assert dict(state.scan("k:")) == {f"k:{number:03d}": b"2" * 500 for number in range(100)}


def end_services_of(state: State) -> None:
    runtime_dir = state._connector._place  # pyright: ignore[reportPrivateUsage]
    assert runtime_dir is not None
    end_services(runtime_dir.folder)


def test_a_checkpoint_keeps_its_moment_whatever_is_collected(
    store_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slate_maintain, "COLLECT_MIN_AGE_MS", 0)
    for name in ("compactor_options.poll_interval", "compactor_options.worker.compactions_poll_interval"):
        monkeypatch.setitem(slate.SETTINGS, name, '"50ms"')

    async def use() -> None:
        database = await Database.open(store_location, flush_ms=1)
        try:
            await database.write(Request("s", 1), [Write("k", b"then"), Write("gone", b"x")], None)
            made = await slate_maintain.checkpoint(database, store_location, "before", 600)
            await database.write(Request("s", 2), [Write("k", b"now"), Write("gone", None)], None)
            asked = await slate_maintain.compact(database, store_location)
            while not (await slate_maintain.compaction(store_location, asked["id"], asked["sources"]))["done"]:
                await asyncio.sleep(0.1)
            await slate_maintain.collect(store_location)
            assert await database.get("k") == b"now"
            (known,) = (await slate_maintain.checkpoints(store_location))["checkpoints"]
            assert (known["id"], known["name"]) == (made["id"], "before")
            assert known["expires"] > time.time() + 500

            store, path = slate_maintain.open_slate(store_location)
            builder = slatedb.DbReaderBuilder(path, store)
            builder.with_reader_mode(slatedb.ReaderMode.CHECKPOINT(made["id"]))  # pyright: ignore[reportArgumentType]
            reader = await builder.build()
            assert await reader.get(b"k") == b"then"
            assert await reader.get(b"gone") == b"x"
            await reader.shutdown()

            assert await slate_maintain.drop_checkpoint(store_location, made["id"]) == {"dropped": True}
            assert await slate_maintain.drop_checkpoint(store_location, made["id"]) == {"dropped": False}
            with pytest.raises(ValueError, match="a year at most"):
                await slate_maintain.checkpoint(database, store_location, "x", 1e9)
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(database.close(), 5)

    asyncio.run(use())
