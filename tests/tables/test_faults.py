"""Each store call of each kind of write fails in each way, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pkm_pipelines.model.errors import StoreError
from tests.support.faults import ERRORS, FAULTS, Fault
from tests.support.iceberg import LOG, STATE, Place, delta, event, thing
from tests.support.table_history import Operation
from tests.support.table_life import TableLife, hurry
from tests.support.table_model import Row, full, merged, newest
from tests.support.table_operations import KINDS, writing
from tests.support.warehouse_files import orphans, present, referenced


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def things_merged(number: int) -> Operation:
    """Some rows change, some come, one changes every time."""
    rows = [thing(f"t{(number + i) % 12}", number, lsn=number) for i in range(4)] + [
        thing("always", number, lsn=number)
    ]
    return writing("merge", STATE, rows, lambda now: merged(STATE, now, rows), watermarks={"one": number})


def things_replaced(number: int) -> Operation:
    rows = [thing(f"t{i}", number) for i in range(number % 5, number % 5 + 8)]
    return writing("replace", STATE, rows, lambda _: newest(STATE, rows), "replace")


def events_appended(number: int) -> Operation:
    rows = [event(f"c{number - 1}"), event(f"c{number}", number)]
    new = {row["change_id"]: full(LOG, row) for row in rows}
    return writing("append", LOG, rows, lambda now: {**new, **now}, "append")


def lines_appended(number: int) -> Operation:
    spec = KINDS["lines"].model
    rows: list[Row] = [{"number": number * 10 + i, "group": "red" if i else None, "value": i} for i in range(3)]
    return writing("append", spec, rows, lambda now: {**now, **newest(spec, rows)}, "append")


WRITES: dict[str, tuple[str, Callable[[int], Operation]]] = {
    "merge": ("things", things_merged),
    "merge, flat": ("things, flat", things_merged),
    "replace": ("things", things_replaced),
    "append": ("events", events_appended),
    "append without a key": ("lines", lines_appended),
}


def faults_of(life: TableLife) -> int:
    """How many calls have gone wrong."""
    return sum(life.happened[fault] + life.faults.happened[fault] for fault in FAULTS)


@pytest.mark.parametrize("name", WRITES)
def test_every_store_call_of_a_write_may_fail_in_every_way(name: str, local: Place, budget: int) -> None:
    kind, make = WRITES[name]
    life = TableLife(local, KINDS[kind])
    numbers = iter(range(1, 100_000))
    for _ in range(3):
        life.perform(make(next(numbers)), {})
    for turn in range(len(FAULTS) if budget > 1 else 3):
        at = 0
        while True:
            fault = FAULTS[(at + turn * 4) % len(FAULTS)]
            happened = faults_of(life)
            life.perform(make(next(numbers)), {at: fault})
            if faults_of(life) == happened:
                break  # the write had fewer calls
            at += 1
        assert at >= 8
    life.check_everything()
    life.restart()
    assert life.happened.keys() >= set(FAULTS)


@pytest.mark.parametrize("fault", ERRORS)
def test_a_failed_write_leaves_no_file_that_is_not_needed_and_takes_none_that_is(fault: Fault, local: Place) -> None:
    """Whatever happens, nothing that a snapshot needs is deleted."""
    life = TableLife(local, KINDS["things"])
    life.perform(things_merged(1), {})
    for at in range(16):
        life.perform(things_merged(at + 2), {at: fault})
        table = life.judge.iceberg.load(life.name)
        assert referenced(table) <= present(table)


def test_a_commit_that_was_sent_twice_is_not_torn_down(local: Place) -> None:
    """The first request lands, the second is refused: what the writer hears is a conflict with itself."""
    life = TableLife(local, KINDS["things"])
    life.perform(things_merged(1), {"commit": "duplicate"})
    assert life.faults.happened == {"duplicate": 1}
    assert len(life.snapshots()) == 1
    assert not {path for path in orphans(life.judge.iceberg.load(life.name)) if not path.endswith(".metadata.json")}


def test_an_attempt_that_landed_and_was_rolled_back_can_still_be_read(local: Place) -> None:
    """Its answer is lost, a rival rolls it back, and it is done again: the snapshot of the first time is whole."""
    life = TableLife(local, KINDS["things"])
    life.perform(things_merged(1), {})
    back = life.judge.iceberg.snapshot_id(life.name)
    assert back is not None

    def roll_back_what_landed() -> None:
        if life.judge.iceberg.snapshot_id(life.name) == back:
            life.faults.also("load", roll_back_what_landed)
        else:
            life.judge.rollback(life.name, back)

    life.perform(things_merged(2), {"commit": "lost", "load": roll_back_what_landed})
    assert len(life.judge.history(life.name)) == 2
    assert len(life.snapshots()) == 3, "one of them is out of the line"
    life.check_everything()


def test_a_store_that_fails_is_an_error_of_ours(local: Place) -> None:
    life = TableLife(local, KINDS["things"])
    life.perform(things_merged(1), {})
    for call in ("create", "close", "commit"):
        life.faults.plan({call: "torn"})
        if call == "commit":  # the catalog is asked again
            life.tables.write(delta(STATE, [thing("a", 1, lsn=1)]))
        else:
            with pytest.raises(StoreError, match=r"silver\.things: the write failed: torn on purpose.*looked up"):
                life.tables.write(delta(STATE, [thing("a", 1, lsn=1)]))
    life.faults.revive()
    life.faults.plan({2: "fail-before"})
    with pytest.raises(StoreError, match=r"cannot be read: fail-before on purpose"):
        life.tables.read(STATE.name).read_all()
