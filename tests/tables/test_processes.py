"""Writers in several processes, and writers that are killed."""

from __future__ import annotations

import itertools

import pytest

from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, Place, contents, delta, event, thing, write
from tests.support.table_writer import go, start
from tests.support.warehouse_files import orphans

WRITERS = 4


@pytest.mark.parametrize("place", ["sqlite", "postgres"], indirect=True)
def test_four_writers_lose_nothing_and_double_nothing(place: Place, budget: int) -> None:
    rounds = 8 * min(budget, 5)
    names = [f"w{number}" for number in range(WRITERS)]
    outcomes = go(*(start(place, "write_many", name, rounds) for name in names))
    manager = TableManager(place.open())
    for spec in (STATE, LOG):
        manager.ensure(spec)

    found = contents(manager, STATE)
    assert {key: row["value"] for key, row in found.items() if key != "shared"} == {
        f"{name}-{number}": number for name in names for number in range(rounds)
    }
    assert found["shared"]["value"] == rounds - 1
    assert {name: manager.watermark(STATE.name, name) for name in names} == dict.fromkeys(names, rounds - 1)
    history = manager.history(STATE.name)
    assert len(history) == len({version.op_id for version in history}) == WRITERS * rounds
    attempts = sum(outcome["attempts"] for outcome in outcomes)
    assert WRITERS * rounds <= attempts <= 2 * WRITERS * rounds, (
        "each plans once more at most (storage/iceberg_turn.py)"
    )
    for newer, older in itertools.pairwise(history):
        moved = [name for name in names if newer.watermarks.get(name) != older.watermarks.get(name)]
        assert len(moved) == 1, "each commit moves its own mark and carries the others"

    events = contents(manager, LOG)
    assert len(events) == (WRITERS + 1) * rounds == sum(outcome["added"] for outcome in outcomes)
    assert len(manager.added(LOG.name, None).read_all()) == len(events)

    for spec in (STATE, LOG):
        # pyiceberg writes the metadata file before it asks the database, and forgets it when it was too late.
        left = [path for path in orphans(manager.iceberg.load(spec.name)) if not path.endswith(".metadata.json")]
        assert not left


@pytest.fixture
def followed(tables: TableManager) -> tuple[TableManager, int, int]:
    """A state table that has read a log up to its first snapshot, and the log's first and second snapshot."""
    first, second = (write(tables, LOG, [event(f"c{i}")], "append").snapshot_id for i in range(2))
    assert first is not None
    assert second is not None
    write(tables, STATE, [thing(f"t{i}", 0) for i in range(20)], watermarks={LOG.name: first})
    return tables, first, second


def finish(tables: TableManager, mark: int) -> tuple[int, int]:
    """What a run that takes over does: the same operation again. Returns rows updated and attempts."""
    rows = [thing(f"t{i}", 1, lsn=5) for i in range(20)]
    result = tables.write(delta(STATE, rows, op_id="op", watermarks={LOG.name: mark}))
    return result.rows_updated, result.attempts


def test_killed_between_writing_the_files_and_the_commit(local: Place, followed: tuple[TableManager, int, int]) -> None:
    tables, first, second = followed
    go(start(local, "die_before_commit", "op", second))
    assert {row["value"] for row in contents(tables, STATE).values()} == {0}
    assert tables.watermark(STATE.name, LOG.name) == first
    assert not tables.landed(STATE.name, "op")
    assert orphans(tables.iceberg.load(STATE.name)), "its files are there and belong to no snapshot"
    assert finish(tables, second) == (20, 1)
    assert {row["value"] for row in contents(tables, STATE).values()} == {1}
    assert tables.watermark(STATE.name, LOG.name) == second


def test_killed_between_the_commit_and_its_acknowledgement(
    local: Place, followed: tuple[TableManager, int, int]
) -> None:
    tables, _, second = followed
    go(start(local, "die_after_commit", "op", second))
    assert {row["value"] for row in contents(tables, STATE).values()} == {1}
    assert tables.watermark(STATE.name, LOG.name) == second
    assert tables.landed(STATE.name, "op")
    before = tables.iceberg.snapshot_id(STATE.name)
    assert finish(tables, second) == (20, 1)
    assert tables.iceberg.snapshot_id(STATE.name) == before, "it is found, and not done again"


def test_killed_after_pinning(local: Place, followed: tuple[TableManager, int, int]) -> None:
    tables, first, second = followed
    go(start(local, "die_while_pinning", "op", second))
    assert tables.watermark(STATE.name, LOG.name) == first
    assert set(tables.tags(LOG.name).values()) == {first, second}, "whichever is the mark now, it is pinned"
    assert finish(tables, second) == (20, 1)
    assert second in tables.tags(LOG.name).values()
