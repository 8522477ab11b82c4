"""The database inside the service: what piles up is bounded, and the settings are SlateDB's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from slatedb import uniffi as slatedb

from pkm_pipelines.storage import slate, slate_maintain
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate import Database
from pkm_pipelines.storage.slate_wire import Request, Write


def run(location: Location, use: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        database = await Database.open(location, flush_ms=1)
        try:
            await use(database)
        finally:
            await database.close()

    asyncio.run(main())


async def answers(database: Database) -> set[str]:
    rows = await database._db.scan_prefix(slate._REQUEST.encode(), slate._EVERYTHING)
    return {row.key.decode().removeprefix(slate._REQUEST) for row in await rows.next_batch(10_000)}


def test_every_setting_is_one_that_slatedb_has() -> None:
    """SlateDB takes a misspelt name without a word."""
    known = json.loads(slatedb.Settings.default().to_json_string())
    for name in [*slate.SETTINGS, "flush_interval"]:
        found = known
        for part in name.split("."):
            assert part in found, name
            found = found[part]


def test_old_answers_are_forgotten_and_recent_ones_kept(
    store_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(database: Database) -> None:
        for number in range(30):
            await database.write(Request(f"old{number}", 1), [Write(f"k:{number}", b"x")], None)
        database._answers.clear()  # as after a restart
        monkeypatch.setattr(slate, "MAX_ANSWERS", 10)
        await database._forget_answers()
        assert len(await answers(database)) == 30  # a crowd, but its clients may still ask again
        monkeypatch.setattr(slate, "RETRY_SECONDS", -1)
        await database._forget_answers()
        assert len(await answers(database)) == 10
        monkeypatch.setattr(slate, "RETRY_SECONDS", 300)
        monkeypatch.setattr(slate, "ANSWER_SECONDS", -1)
        await database.write(Request("alive", 1), [Write("k:alive", b"x")], None)
        await database._forget_answers()
        assert await answers(database) == {"alive"}
        assert len([row async for page in database.scan("k:", None, None) for row in page]) == 31

    run(store_location, use)


def test_the_log_and_unused_objects_are_bounded(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slate, "FLUSH_AFTER_WRITES", 50)
    monkeypatch.setattr(slate, "COLLECT_SECONDS", 0)
    monkeypatch.setattr(slate_maintain, "COLLECT_MIN_AGE_MS", 1)
    location = Location((work / "state").as_uri())
    logs: list[int] = []

    async def use(database: Database) -> None:
        for number in range(100):
            await database.write(
                Request("s", number + 1 + 100 * len(logs)), [Write(f"k:{number}", b"%d" % number)], None
            )
        await database.keep_house()
        if database._flushing is not None:
            await database._flushing
        await database.keep_house()
        logs.append(len(list((work / "state" / "db" / "wal").iterdir())))

    for _ in range(4):
        run(location, use)
    assert max(logs) < 150, logs

    async def check(database: Database) -> None:
        found = {row.key: row.value async for page in database.scan("k:", None, None) for row in page}
        assert found == {b"k:%d" % number: b"%d" % number for number in range(100)}

    run(location, check)


def test_a_request_out_of_order_is_refused(work: Path) -> None:
    async def use(database: Database) -> None:
        first = await database.next_lsns(Request("s", 5), 1)
        assert await database.next_lsns(Request("s", 5), 1) == first
        with pytest.raises(ValueError, match="after a later one"):
            await database.next_lsns(Request("s", 4), 1)
        assert await database.next_lsns(Request("s", 6), 1) != first

    run(Location((work / "state").as_uri()), use)


def test_the_same_request_at_once_is_done_once(work: Path) -> None:
    async def use(database: Database) -> None:
        request = Request("s", 1)
        many = await asyncio.gather(*(database.next_lsns(request, 10) for _ in range(20)))
        assert len({answer["first"] for answer in many}) == 1
        assert (await database.next_lsns(Request("s", 2), 1))["first"] == many[0]["first"] + 10

    run(Location((work / "state").as_uri()), use)


def test_pages_of_a_scan_follow_the_size_of_the_rows(work: Path) -> None:
    async def use(database: Database) -> None:
        for number in range(40):
            await database.write(Request("s", number + 1), [Write(f"large:{number:04d}", bytes(400_000))], None)
        await database.write(Request("s", 41), [Write(f"small:{number:05d}", b"x") for number in range(6000)], None)
        large = [len(page) async for page in database.scan("large:", None, None)]
        assert sum(large) == 40
        assert max(large[1:]) <= 3
        small = [len(page) async for page in database.scan("small:", None, None)]
        assert sum(small) == 6000
        assert max(small) == slate.MAX_PAGE_ROWS
        assert [len(page) async for page in database.scan("small:", None, 20)] == [16, 4]

    run(Location((work / "state").as_uri()), use)
