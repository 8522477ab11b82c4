"""Maintenance as a user asks for it: planned, carried out, recorded, resumed; and what is due is done."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import CancelledError, LeaseHeldError, StoreError, TableNotFoundError
from pkm_pipelines.model.evolution import ClusterBy
from pkm_pipelines.model.progress import CountingProgress
from pkm_pipelines.operations import maintain_tables, maintenance
from pkm_pipelines.operations.debt import Debt, debt_of, due, fingerprint, limits, maintain_due, over_limit
from pkm_pipelines.operations.maintenance import (
    OPERATIONS,
    STATE_TABLE,
    Record,
    Report,
    last_report,
    maintain,
    plan_maintenance,
    tables_of,
)
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_listing import TableFolder
from pkm_pipelines.storage.iceberg_manifests import live_files
from tests.support.iceberg import DAY, LOG, STATE, Place, contents, event, local_place, thing, write
from tests.support.lake import lake_settings
from tests.support.maintenance import EAGER, assert_whole, data_files, unreferenced
from tests.support.s3 import S3Endpoint
from tests.support.state import end_services

ICEBERG = ("compact", "expire", "orphans", "manifests", "stats", "retention")


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, work: Path) -> Iterator[dict[str, Any]]:
    """Settings of a lakehouse whose every store is on disk, or on S3."""
    found: dict[str, Any] = {"maintenance": EAGER}
    if request.param == "s3":
        endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
        place = Place(endpoint.location().url, local_place(work).catalog)
        found |= {"warehouse": place.warehouse, "catalog": place.catalog, "state": endpoint.location().url}
    yield found
    end_services(work / "run")


@pytest.fixture
def stores(home: dict[str, Any], work: Path) -> Iterator[Stores]:
    with open_stores(home, work) as found:
        for spec in (STATE, LOG):
            found.tables.ensure(spec)
        yield found


def open_stores(home: dict[str, Any], work: Path, **maintenance: Any) -> Stores:
    changed = {**home, "maintenance": {**home["maintenance"], **maintenance}}
    return Stores(lake_settings(work, work / "vault", **changed))


def fill(stores: Stores, commits: int = 6) -> None:
    for number in range(commits):
        write(stores.tables, LOG, [event(f"c{number}", number, DAY.replace(month=1 + number % 2))], "append")


def test_a_plan_changes_nothing_and_says_what_would_be_done(stores: Stores) -> None:
    fill(stores)
    before = stores.iceberg.load(LOG.name).metadata_location
    plans = {operation: plan_maintenance(stores, operation, LOG.name) for operation in ICEBERG}
    assert {operation for operation, plan in plans.items() if not plan.is_empty} == {
        "compact",
        "expire",
        "manifests",
        "stats",
    }
    [work] = plans["compact"].work
    assert (work.what, work.files, work.saves_files) == ("rewrite 6 files of 2 partitions into 2", 6, 4)
    assert plans["expire"].work[0].what.startswith("let go of 5 snapshots, the oldest of ")
    for operation in ICEBERG:
        report = maintain(stores, operation, LOG.name, dry_run=True)
        assert report.dry_run
        assert report.done == plans[operation].work
        assert Record.read(stores, operation, LOG.name) is None
    assert stores.iceberg.load(LOG.name).metadata_location == before


def test_everything_is_done_and_reported(stores: Stores) -> None:
    fill(stores)
    before = contents(stores.tables, LOG)
    progress = CountingProgress()
    reports = {name: maintain(stores, name, LOG.name, progress=progress, run_id="run-1") for name in ICEBERG}
    assert reports["compact"].details["files"] == 6
    assert reports["expire"].details["snapshots"] == 6
    assert reports["expire"].details["deleted_files"] == reports["expire"].details["doomed_files"] > 0
    assert reports["stats"].details["distinct change_id"] == 6
    for name, report in reports.items():
        assert last_report(stores, name, LOG.name) == report
        record = Record.read(stores, name, LOG.name)
        assert record is not None
        assert (record.status, record.run_id, record.progress) == ("done", "run-1", {})
    table = stores.iceberg.load(LOG.name)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert (snapshot.summary["pkm.maintenance"], snapshot.summary["pkm.run-id"]) == ("compact", "run-1")
    assert len(data_files(table)) == 2
    assert contents(stores.tables, LOG) == before
    assert_whole(table)
    assert unreferenced(table) == set()
    assert all(plan_maintenance(stores, name, LOG.name).is_empty for name in ICEBERG if name != "stats")
    assert list(stores.state.scan(keys.DOOMED)) == []


def test_compaction_lays_rows_out_as_the_table_says(stores: Stores) -> None:
    stores.tables.evolve(LOG.name, ClusterBy(("value", "id")))
    for number in range(4):
        write(
            stores.tables, LOG, [event(f"c{number}{n}", (n * 7 + number) % 40, id=str(n)) for n in range(10)], "append"
        )
    maintain(stores, "compact", LOG.name)
    found = [row["value"] for row in stores.tables.read(LOG.name).read_all().to_pylist()]
    assert sum(found[:10]) < sum(found[-10:]), "low values lie together"
    [file] = live_files(stores.iceberg.load(LOG.name), stores.iceberg.load(LOG.name).current_snapshot())
    assert not file.file.sort_order_id, "it is not in the table's sort order, and does not say so"


@pytest.mark.parametrize("grace", [0, 60])
def test_an_expiry_saves_what_its_plan_says(home: dict[str, Any], work: Path, grace: int) -> None:
    with open_stores(home, work, file_grace_minutes=grace) as stores:
        for spec in (STATE, LOG):
            stores.tables.ensure(spec)
        fill(stores)
        for turn in range(3):
            write(stores.tables, STATE, [thing("a", turn, turn)])
        maintain(stores, "compact", LOG.name)
        for name in (LOG.name, STATE.name):
            planned = plan_maintenance(stores, "expire", name)
            stored = {file.path: file.size for file in TableFolder(stores.iceberg.load(name)).files()}
            report = maintain(stores, "expire", name)
            assert report.done == planned.work
            first = report.done[0]
            assert (first.saves_files, first.saves_bytes) == (first.files, first.bytes)
            assert (report.details["doomed_files"], report.details["doomed_bytes"]) == (first.files, first.bytes)
            assert sum(work.saves_files for work in report.done) == first.files > 0, "told once"
            if grace:
                assert f"{grace} minutes later" in first.what
                table = stores.iceberg.load(name)
                gone = {path: stored[path] for path in unreferenced(table)}
            else:
                left = {file.path for file in TableFolder(stores.iceberg.load(name)).files()}
                gone = {path: size for path, size in stored.items() if path not in left}
            assert (len(gone), sum(gone.values())) == (first.files, first.bytes), "by the store's own listing"
    if grace:
        with open_stores(home, work) as stores:
            planned = plan_maintenance(stores, "expire", STATE.name)
            assert maintain(stores, "expire", STATE.name).done == planned.work
            [deletion] = planned.work
            assert (deletion.files, deletion.bytes) == (first.files, first.bytes)
            assert (deletion.saves_files, deletion.saves_bytes) == (0, 0)


def test_a_compaction_reports_what_there_is_less_of(stores: Stores) -> None:
    stores.tables.set_mode(STATE.name, "merge-on-read")
    write(stores.tables, STATE, [thing(f"id{n}") for n in range(40)])
    for turn in range(1, 4):
        write(stores.tables, STATE, [thing(f"id{n}", turn, turn) for n in range(20)])
    [planned] = plan_maintenance(stores, "compact", STATE.name).work
    assert planned.estimated
    assert planned.saves_bytes > 0
    before = stores.tables.stats(STATE.name)
    [work] = maintain(stores, "compact", STATE.name).done
    after = stores.tables.stats(STATE.name)
    assert not work.estimated
    assert work.saves_files == before.files + before.delete_files - after.files - after.delete_files > 0
    assert work.saves_bytes == before.bytes + before.delete_bytes - after.bytes - after.delete_bytes > 0


def test_files_have_a_time_of_grace(home: dict[str, Any], work: Path) -> None:
    """A read that began before an expiry ends as if there had been none."""
    with open_stores(home, work, file_grace_minutes=60) as stores:
        stores.tables.ensure(LOG)
        fill(stores)
        reading = stores.tables.read(LOG.name)
        maintain(stores, "compact", LOG.name)
        report = maintain(stores, "expire", LOG.name)
        assert report.details["deleted_files"] == 0
        maintain(stores, "orphans", LOG.name)
        assert reading.read_all().num_rows == 6
        doomed = unreferenced(stores.iceberg.load(LOG.name))
        assert len(doomed) == report.details["doomed_files"]
    with open_stores(home, work) as stores:
        assert maintain(stores, "expire", LOG.name).details["deleted_files"] == len(doomed)
        assert unreferenced(stores.iceberg.load(LOG.name)) == set()


def test_a_maintenance_that_was_killed_goes_on(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(stores, 12)
    before = contents(stores.tables, LOG)
    monkeypatch.setattr(maintain_tables, "batches", lambda groups, how: ([group] for group in groups))
    plain, calls = maintain_tables.commit, iter(range(9))

    def dies(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(maintain_tables, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        maintain(stores, "compact", LOG.name)
    record = Record.read(stores, "compact", LOG.name)
    assert record is not None
    assert (record.status, record.error, record.progress["commits"]) == ("failed", "KeyboardInterrupt: ", 1)
    report = maintain(stores, "compact", LOG.name)
    assert (report.details["resumed_commits"], report.details["commits"]) == (1, 1)
    assert len(data_files(stores.iceberg.load(LOG.name))) == 2
    assert contents(stores.tables, LOG) == before


def test_one_at_a_time(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(stores)
    monkeypatch.setattr(maintenance, "WAIT_SECONDS", 0.1)
    with stores.state.acquire(f"maintain:{LOG.name}", ttl_seconds=30), pytest.raises(LeaseHeldError):
        maintain(stores, "compact", LOG.name)
    with stores.state.acquire(f"table:{LOG.name}", ttl_seconds=30):
        assert maintain(stores, "compact", LOG.name).details["files"] == 6, "a writer does not stop it"


def test_it_can_be_cancelled(stores: Stores) -> None:
    fill(stores)
    progress = CountingProgress()
    progress._cancel.set()
    for name in ("compact", "stats"):
        with pytest.raises(CancelledError):
            maintain(stores, name, LOG.name, progress=progress)
    assert len(data_files(stores.iceberg.load(LOG.name))) == 6


def test_open_intents_keep_their_commits(stores: Stores) -> None:
    """A run that was killed after its commit finds it, however often snapshots expire before it is back."""
    write(stores.tables, LOG, [event("mine")], "append", op_id="op-1")
    intent = {"table": LOG.name, "at": "", "mutations": []}
    stores.state.put(keys.intent("op-1"), json.dumps(intent).encode())
    fill(stores)
    maintain(stores, "expire", LOG.name)
    assert stores.tables.landed(LOG.name, "op-1")
    stores.state.delete(keys.intent("op-1"))
    maintain(stores, "expire", LOG.name)
    assert not stores.tables.landed(LOG.name, "op-1")


def test_what_is_not_there(stores: Stores) -> None:
    with pytest.raises(StoreError, match="no maintenance is called 'sweep'"):
        plan_maintenance(stores, "sweep", LOG.name)
    with pytest.raises(TableNotFoundError):
        maintain(stores, "compact", "bronze.nothing")
    assert maintain_due(stores, "bronze.nothing") == []
    assert tables_of(stores, "compact") == ["bronze.events", "silver.things"]
    assert tables_of(stores, "state") == [STATE_TABLE]
    assert set(OPERATIONS) == {*ICEBERG, "vectors", "state"}


def test_debt_is_counted_and_worked_off(home: dict[str, Any], work: Path) -> None:
    with open_stores(home, work, small_files=5, snapshots=5, delete_files=1, orphans_hours=168) as stores:
        stores.tables.ensure(LOG)
        stores.tables.ensure(STATE)
        assert due(stores, debt_of(stores, LOG.name)) == []
        fill(stores, 8)
        debt = debt_of(stores, LOG.name)
        assert (debt.rows, debt.files, debt.small_files, debt.snapshots, debt.expirable) == (8, 8, 6, 8, 7)
        assert debt.bytes > 0
        assert debt.metadata_bytes > 0
        assert due(stores, debt) == ["compact", "expire"]
        assert [str(limit).partition(" (")[0] for limit in over_limit(stores, debt)] == [
            "small files: 6",
            "snapshots that nothing holds: 7",
        ]
        assert over_limit(stores, debt, 2) == []
        assert len(limits(stores, debt)) >= 6
        reports = maintain_due(stores, LOG.name)
        assert [report.operation for report in reports] == ["compact", "expire"]
        after = debt_of(stores, LOG.name)
        assert (after.rows, after.files, after.small_files, after.expirable) == (8, 2, 0, 0)
        assert maintain_due(stores, LOG.name) == []

        stores.tables.set_mode(STATE.name, "merge-on-read")
        write(stores.tables, STATE, [thing(f"id{n}") for n in range(40)])
        for number in range(2):
            write(stores.tables, STATE, [thing(f"id{number}", 1, 1)])
        debt = debt_of(stores, STATE.name)
        assert (debt.rows, debt.deleted_rows) == (40, 2)
        assert debt.delete_files == 2
        assert due(stores, debt) == ["compact"]
        maintain_due(stores, STATE.name)
        assert debt_of(stores, STATE.name).deleted_rows == 0
        assert contents(stores.tables, STATE).keys() == {f"id{n}" for n in range(40)}


def test_clocks_run_from_the_first_look(home: dict[str, Any], work: Path) -> None:
    with open_stores(home, work, orphans_hours=168, retention_hours=24) as stores:
        stores.tables.ensure(LOG)
        fill(stores, 1)
        assert maintain_due(stores, LOG.name) == []
        record = Record.read(stores, "orphans", LOG.name)
        assert record is not None
        for operation, days in (("orphans", 8), ("retention", 2)):
            Record(operation, LOG.name, "done", started_at=_ago(days)).save(stores)
        assert due(stores, debt_of(stores, LOG.name)) == ["retention", "orphans"]
        assert [report.operation for report in maintain_due(stores, LOG.name)] == ["retention", "orphans"]
        assert due(stores, debt_of(stores, LOG.name)) == []


def test_the_same_debt_has_the_same_fingerprint_until_something_was_done(home: dict[str, Any], work: Path) -> None:
    with open_stores(home, work, orphans_hours=168) as stores:
        stores.tables.ensure(LOG)
        owed = Debt(LOG.name, small_files=1000)  # as if it could not be worked off
        first = fingerprint(stores, owed)
        assert first
        assert maintain(stores, "compact", LOG.name).done == ()
        assert fingerprint(stores, owed) == first, "it was looked at, and nothing was done"
        assert fingerprint(stores, replace(owed, small_files=1001)) != first
        fill(stores, 4)
        assert maintain(stores, "compact", LOG.name).done
        second = fingerprint(stores, owed)
        assert second != first, "the same debt again, after it was worked off, is a new one"
        assert maintain(stores, "compact", LOG.name).done == ()
        assert fingerprint(stores, owed) == second
        assert fingerprint(stores, Debt(LOG.name)) == ""
        clocks = set[str]()
        for days in (9, 8):
            Record("orphans", LOG.name, "done", started_at=_ago(days)).save(stores)
            clocks.add(fingerprint(stores, Debt(LOG.name)))
        assert len(clocks - {""}) == 2, "each time that the clock strikes is another one"


def test_only_what_can_be_taken_away_is_debt(home: dict[str, Any], work: Path) -> None:
    """Metadata that tags hold, and manifests that are alone of their kind, are work for nobody."""
    with open_stores(home, work, keep_snapshots=50, manifests=1, snapshots=1) as stores:
        owed = Debt(LOG.name, metadata_bytes=1 << 40, manifests=500)
        assert over_limit(stores, owed) == []
        passed = over_limit(stores, replace(owed, expirable=1, small_manifests=1))
        assert [limit.name for limit in passed] == ["manifests", "bytes of metadata"]
        stores.tables.ensure(LOG)
        fill(stores, 3)
        debt = debt_of(stores, LOG.name)
        assert debt.small_manifests == debt.manifests - 1 > 0
        maintain_due(stores, LOG.name)
        assert debt_of(stores, LOG.name).small_manifests == 0


def _ago(days: int) -> str:
    return (dt.datetime.now(dt.UTC) - dt.timedelta(days=days)).isoformat()


def test_a_report_survives_the_state(stores: Stores) -> None:
    report = Report("compact", LOG.name, (maintenance.Work(LOG.name, "x", 1, 2, 3, 4),), 1.5, {"a": 1, "b": "c"})
    Record("compact", LOG.name, "done", report=report).save(stores)
    assert last_report(stores, "compact", LOG.name) == report


def test_beside_writers_and_readers(home: dict[str, Any], work: Path) -> None:
    """Everything at once: no row is lost or doubled, no read fails or sees a mixture, and no writer starves."""
    turns = 12
    with open_stores(home, work, keep_snapshots=3, file_grace_minutes=60, orphan_age_hours=1) as stores:
        stores.tables.ensure(STATE)
        stores.tables.set_mode(STATE.name, "merge-on-read")
        ids = [f"id{number}" for number in range(20)]
        write(stores.tables, STATE, [thing(id) for id in ids])
        failed: list[BaseException] = []
        ended = threading.Event()

        def guarded(do: Callable[[], object]) -> threading.Thread:
            def body() -> None:
                try:
                    do()
                except BaseException as error:
                    failed.append(error)
                    raise

            thread = threading.Thread(target=body)
            thread.start()
            return thread

        def write_all(number: int) -> None:
            for turn in range(1, turns + 1):
                mine = [thing(id, turn, turn) for id in ids[number::2]]
                write(stores.tables, STATE, mine)

        def read_all() -> None:
            while not ended.is_set():
                rows = contents(stores.tables, STATE)
                for number in range(2):
                    values = {rows[id]["value"] for id in ids[number::2]}
                    assert len(values) == 1, f"a mixture of {values}"

        def keep_tidy() -> None:
            while not ended.is_set():
                for operation in ("compact", "manifests", "expire", "orphans"):
                    maintain(stores, operation, STATE.name)

        background = [guarded(read_all), guarded(keep_tidy)]
        for writer in [guarded(lambda: write_all(0)), guarded(lambda: write_all(1))]:
            writer.join()
        ended.set()
        for thread in background:
            thread.join()
        assert failed == []
        assert {row["value"] for row in contents(stores.tables, STATE).values()} == {turns}
        maintain(stores, "compact", STATE.name)
        maintain(stores, "expire", STATE.name)
        assert_whole(stores.iceberg.load(STATE.name))
