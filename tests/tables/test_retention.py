"""Rows past their time go, for good, and what is alive keeps its newest row."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.table.update import SetPropertiesUpdate

from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_snapshot import ask_catalog
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.retention import LogRetention, RetentionPlan, count_past
from tests.support.iceberg import Place, contents, local_place, write
from tests.support.maintenance import assert_whole, planned, run, stored, stores_at, unreferenced

NOW = dt.datetime.now(dt.UTC)
RULE = LogRetention(NOW - dt.timedelta(days=90), "change_id", ("note_id",), ("changed_at", "ordinal", "lsn"))


def ago(days: float) -> dt.datetime:
    return NOW - dt.timedelta(days=days)


def raw(change: str, note: str, days: float, kind: str = "UPDATE_AFTER", **columns: Any) -> dict[str, Any]:
    """A change of a note, which was ingested so many days ago, when it happened."""
    return {
        "change_id": change,
        "lsn": 1,
        "change_type": kind,
        "source": "vault",
        "note_id": note,
        "path": f"{note}.md",
        "content": None if kind == "DELETE" else f"secret-of-{change}",
        "ordinal": 0,
        "changed_at": ago(days),
        "ingested_at": ago(days),
        "partition_date": ago(days).date(),
        **columns,
    }


def note(id: str, deleted_days: float | None = None, **columns: Any) -> dict[str, Any]:
    """A note in silver."""
    return {
        "note_id": id,
        "source": "vault",
        "path": f"{id}.md",
        "title": f"secret-title-of-{id}",
        "tags": ["secret-tag"],
        "content": f"secret-of-{id}",
        "change_id": f"secret-change-{id}",
        "changed_at": ago(deleted_days or 1),
        "ordinal": 0,
        "lsn": 7,
        "deleted_at": None if deleted_days is None else ago(deleted_days),
        **columns,
    }


@pytest.fixture
def stores(place: Place, work: Path) -> Stores:
    found = stores_at(place, work)
    for spec in (RAW_NOTES, PROCESSED_NOTES):
        found.tables.ensure(spec)
        plain = found.iceberg.load(spec.name)
        update = SetPropertiesUpdate(updates={"write.parquet.compression-codec": "uncompressed"})
        ask_catalog(plain, [update], [])
    return found


def append(stores: Stores, rows: Sequence[dict[str, Any]]) -> int:
    found = write(stores.tables, RAW_NOTES, rows, "append").snapshot_id
    assert found is not None
    return found


def bytes_of(stores: Stores, name: str) -> bytes:
    """Everything that lies in a table's folder."""
    table = stores.iceberg.load(name)
    scheme = "" if table.location().startswith("/") else table.location().partition("://")[0] + "://"
    found = b""
    for path in stored(table):
        with table.io.new_input(scheme + path).open() as stream:
            found += stream.read()
    return found


def test_rows_go_and_the_newest_of_the_living_stay(stores: Stores) -> None:
    since = append(
        stores,
        [
            raw("c1", "note1", 200, "INSERT"),
            raw("c2", "note1", 150),
            raw("c3", "note2", 120, "INSERT"),
            raw("c4", "note3", 110, "INSERT"),
        ],
    )
    append(stores, [raw("c5", "note2", 10), raw("c6", "note3", 100, "DELETE"), raw("c7", "note4", 95, "INSERT")])
    append(stores, [raw("c8", "note5", 3000, "INSERT", ingested_at=ago(1))])
    [work] = planned(stores, "retention", RAW_NOTES.name).work
    assert work.what.startswith("take out 4 rows ingested before ")
    assert work.estimated
    assert 0 < work.saves_bytes <= work.bytes
    before = stores.tables.stats(RAW_NOTES.name)
    report = run(stores, "retention", RAW_NOTES.name)
    after = stores.tables.stats(RAW_NOTES.name)
    assert (report.done[0].saves_files, report.done[0].saves_bytes) == (
        before.files - after.files,
        before.bytes - after.bytes,
    )
    assert report.details == {"rows": 4}
    assert contents(stores.tables, RAW_NOTES).keys() == {"c2", "c5", "c7", "c8"}
    assert planned(stores, "retention", RAW_NOTES.name).is_empty
    assert run(stores, "retention", RAW_NOTES.name).done == ()
    added = stores.tables.added(RAW_NOTES.name, since).read_all()
    assert set(added["change_id"].to_pylist()) == {"c5", "c7", "c8"}, "what is written again is not new"
    assert b"secret-of-c1" in bytes_of(stores, RAW_NOTES.name)
    run(stores, "expire", RAW_NOTES.name)
    left = bytes_of(stores, RAW_NOTES.name)
    for change in ("c1", "c3", "c4"):
        assert f"secret-of-{change}".encode() not in left, f"{change} is not gone"
    for change in ("c2", "c5", "c7", "c8"):
        assert f"secret-of-{change}".encode() in left
    table = stores.iceberg.load(RAW_NOTES.name)
    assert_whole(table)
    assert unreferenced(table) == set()


def test_a_tombstone_keeps_its_key_and_when(stores: Stores) -> None:
    alive, old, young = note("alive"), note("old", 400), note("young", 300)
    write(stores.tables, PROCESSED_NOTES, [alive, old, note("older", 500), young], watermarks={"elsewhere": 3})
    before = contents(stores.tables, PROCESSED_NOTES)
    [work] = planned(stores, "retention", PROCESSED_NOTES.name).work
    assert work.what == "strip 2 tombstones of their content"
    assert run(stores, "retention", PROCESSED_NOTES.name).details == {"rows": 2}
    after = contents(stores.tables, PROCESSED_NOTES)
    assert {key: after[key] for key in ("alive", "young")} == {key: before[key] for key in ("alive", "young")}
    assert {name: value for name, value in after["old"].items() if value not in (None, "")} == {
        "note_id": "old",
        "source": "vault",
        "path": "/old",
        "changed_at": before["old"]["changed_at"],
        "ordinal": 0,
        "lsn": 7,
        "deleted_at": before["old"]["deleted_at"],
    }
    assert planned(stores, "retention", PROCESSED_NOTES.name).is_empty
    assert stores.tables.watermark(PROCESSED_NOTES.name, "elsewhere") == 3
    run(stores, "expire", PROCESSED_NOTES.name)
    left = bytes_of(stores, PROCESSED_NOTES.name)
    assert b"secret-of-old" not in left
    assert b"secret-title-of-old" not in left
    assert b"secret-of-young" in left
    assert b"secret-of-alive" in left
    late = note("old", 450, lsn=1)
    assert not write(stores.tables, PROCESSED_NOTES, [late]).written, "an older state does not come back"


def test_an_old_snapshot_does_not_outlive_its_rows(local: Place, work: Path) -> None:
    """Retention takes rows, and expiry every snapshot that is older than the layer's time, kept by number or not."""
    stores = stores_at(local, work, keep_snapshots=100, bronze_days=1)
    stores.tables.ensure(RAW_NOTES)
    for number in range(4):
        append(stores, [raw(f"c{number}", "note1", 0.5)])
    assert run(stores, "expire", RAW_NOTES.name).details["snapshots"] == 0
    eager = stores_at(local, work, keep_snapshots=100, bronze_days=0)
    assert planned(eager, "expire", RAW_NOTES.name).is_empty


def test_nothing_goes_where_everything_is_kept(local: Place, work: Path) -> None:
    stores = stores_at(local, work, bronze_days=0, silver_days=0)
    for spec in (RAW_NOTES, PROCESSED_NOTES):
        stores.tables.ensure(spec)
    append(stores, [raw("c1", "note1", 9000, "DELETE")])
    write(stores.tables, PROCESSED_NOTES, [note("old", 9000)])
    for spec in (RAW_NOTES, PROCESSED_NOTES):
        assert run(stores, "retention", spec.name).done == ()


def test_a_newer_row_that_comes_meanwhile(tables: TableManager) -> None:
    tables.ensure(RAW_NOTES)
    write(tables, RAW_NOTES, [raw("c1", "note1", 200, "INSERT"), raw("c2", "note2", 200, "DELETE")], "append")
    late = iter([raw("c3", "note1", 1)])

    def rival() -> None:
        for row in late:
            write(tables, RAW_NOTES, [row], "append")

    result = commit(tables.iceberg, RAW_NOTES.name, RetentionPlan(RULE, 1 << 20), op_id="o", before_commit=rival)
    assert (result.attempts, result.rows_deleted) == (2, 1)
    assert contents(tables, RAW_NOTES).keys() == {"c1", "c3"}, "the old row goes the next time"
    commit(tables.iceberg, RAW_NOTES.name, RetentionPlan(RULE, 1 << 20), op_id="p")
    assert contents(tables, RAW_NOTES).keys() == {"c3"}


def test_a_rollback_that_comes_meanwhile(tables: TableManager) -> None:
    """The row that was the newest is so no more: what it made superfluous is needed again."""
    tables.ensure(RAW_NOTES)
    first = write(tables, RAW_NOTES, [raw("c1", "note1", 200, "INSERT"), raw("c0", "note2", 99, "DELETE")], "append")
    write(tables, RAW_NOTES, [raw("c2", "note1", 100)], "append")
    late = iter([first.snapshot_id])

    def rival() -> None:
        for snapshot in late:
            assert snapshot is not None
            tables.rollback(RAW_NOTES.name, snapshot)

    commit(tables.iceberg, RAW_NOTES.name, RetentionPlan(RULE, 1 << 20), op_id="o", before_commit=rival)
    assert contents(tables, RAW_NOTES).keys() == {"c1"}


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 200), st.sampled_from(["INSERT", "UPDATE_AFTER", "DELETE"])),
    max_size=12,
)


def test_exactly_the_right_rows_go(ram_folder: Path, budget: int) -> None:
    @settings(max_examples=15 * budget)
    @given(changes=CHANGES, size=st.integers(1, 4))
    def check(changes: list[tuple[str, int, str]], size: int) -> None:
        tables = TableManager(local_place(Path(tempfile.mkdtemp(dir=ram_folder))).open())
        tables.ensure(RAW_NOTES)
        rows = [raw(f"c{n}", who, days, kind, lsn=n) for n, (who, days, kind) in enumerate(changes)]
        for start in range(0, len(rows), size):
            write(tables, RAW_NOTES, rows[start : start + size], "append")
        newest = {row["note_id"]: row for row in sorted(rows, key=lambda row: (row["changed_at"], row["lsn"]))}
        kept = {
            row["change_id"]
            for row in rows
            if row["ingested_at"] >= RULE.before or (newest[row["note_id"]] is row and row["change_type"] != "DELETE")
        }
        table = tables.iceberg.load(RAW_NOTES.name)
        assert count_past(table, RULE).rows == len(rows) - len(kept)
        commit(tables.iceberg, RAW_NOTES.name, RetentionPlan(RULE, 1 << 20), op_id="o")
        found = tables.read(RAW_NOTES.name).read_all()
        assert sorted(found["change_id"].to_pylist()) == sorted(kept)
        assert pc.count(found["content"]).as_py() == sum(
            r["content"] is not None for r in rows if r["change_id"] in kept
        )

    check()
