"""Maintaining the state as an operation."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.model.records import Mutation
from pkm_pipelines.operations.debt import debt_of, due
from pkm_pipelines.operations.maintain_state import plan_state
from pkm_pipelines.operations.maintenance import STATE_TABLE, last_report, maintain, tables_of
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage.slate_maintain import COLLECT_MIN_AGE_MS
from tests.support.state import end_services

LIMIT = 20


@pytest.fixture
def stores(work: Path) -> Iterator[Stores]:
    settings = Settings(
        home=work,
        runtime_dir=work / "run",
        maintenance={"state_files": LIMIT},  # pyright: ignore[reportArgumentType] (pydantic parses it)
    )
    with Stores(settings) as stores:
        yield stores
    end_services(work / "run")


def write_much(stores: Stores) -> None:
    """Leave more objects of the log, and some tables."""
    for round_ in range(25):
        stores.state.apply([Mutation(f"k:{number}", b"%d" % round_) for number in range(10)])
        if round_ % 10 == 0:
            stores.state.checkpoint("table", 1)


def let_age(stores: Stores) -> None:
    """Make every object of the log look as old as one must be to be collected."""
    then = time.time() - COLLECT_MIN_AGE_MS / 1000 - 60
    for file in (stores.settings.data_dir / "state" / "db" / "wal").iterdir():
        os.utime(file, (then, then))


def test_the_state_is_planned_compacted_and_reported(stores: Stores) -> None:
    assert tables_of(stores, "state") == [STATE_TABLE]
    write_much(stores)
    let_age(stores)
    debt = debt_of(stores, STATE_TABLE)
    assert debt.files >= 3
    assert due(stores, debt) == ["state"]
    plan = plan_state(stores)
    assert "into one run" in plan.work[0].what
    assert "collect" in plan.work[1].what
    assert maintain(stores, "state", STATE_TABLE, dry_run=True).done == plan.work
    report = maintain(stores, "state", STATE_TABLE)
    assert report.details["compaction"] == "finished"
    assert report.details["runs"] == 1
    assert report.done
    assert last_report(stores, "state", STATE_TABLE) == report
    assert {value for _, value in stores.state.scan("k:")} == {b"24"}


def test_what_was_just_written_is_no_debt_and_what_is_owed_can_be_worked_off(stores: Stores) -> None:
    """Else every run of a busy hour would end with seconds of maintenance that change nothing."""
    write_much(stores)
    debt = debt_of(stores, STATE_TABLE)
    assert debt.state_files > LIMIT
    assert due(stores, debt) == []
    let_age(stores)
    assert due(stores, debt_of(stores, STATE_TABLE)) == ["state"]
    maintain(stores, "state", STATE_TABLE)
    assert due(stores, debt_of(stores, STATE_TABLE)) == []
