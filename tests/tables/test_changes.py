"""Steps, added rows and differences; their exactness in general is the business of test_model.py."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_history import ONLY_REMOVES
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import EDGES, LOG, STATE, edge, event, thing, write
from tests.support.table_model import Compaction


def append(tables: TableManager, *names: str) -> int:
    snapshot = write(tables, LOG, [event(name) for name in names], "append").snapshot_id
    assert snapshot is not None
    return snapshot


def merge(tables: TableManager, *rows: dict[str, Any], **options: Any) -> int:
    snapshot = write(tables, STATE, rows, **options).snapshot_id
    assert snapshot is not None
    return snapshot


def added(tables: TableManager, since: int | None, until: int | None = None) -> list[str]:
    return tables.added(LOG.name, since, until, ["change_id"]).read_all()["change_id"].to_pylist()


def changed(tables: TableManager, since: int | None, until: int | None = None) -> list[tuple[str, str, int]]:
    rows = tables.diff(STATE.name, since, until, ["id", "value"]).read_all().to_pylist()
    return [(row["_change_type"], row["id"], row["value"]) for row in rows]


def compact(tables: TableManager, name: str) -> None:
    commit(tables.iceberg, name, Compaction(), op_id=str(uuid.uuid4()))


def expire(tables: TableManager, name: str, *snapshots: int) -> None:
    tables.iceberg.load(name).maintenance.expire_snapshots().by_ids(list(snapshots)).commit()


def test_steps_and_what_each_added(tables: TableManager) -> None:
    assert tables.steps(LOG.name, None) == []
    first, second, third = append(tables, "a"), append(tables, "b", "c"), append(tables, "d")
    assert tables.steps(LOG.name, None) == [(first, 1), (second, 2), (third, 1)]
    assert tables.steps(LOG.name, first) == [(second, 2), (third, 1)]
    assert tables.steps(LOG.name, third) == []
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 5"):
        tables.steps(LOG.name, 5)


def test_added_rows_come_commit_by_commit(tables: TableManager) -> None:
    first = append(tables, "a", "b")
    second, third = append(tables, "z"), append(tables, "c")
    assert sorted(added(tables, None)[:2]) == ["a", "b"]
    assert added(tables, None)[2:] == ["z", "c"]
    assert added(tables, first) == ["z", "c"]
    assert added(tables, first, second) == ["z"]
    assert added(tables, third) == []
    assert tables.added(LOG.name, third).read_all().schema.equals(LOG.arrow)
    whole = tables.added(LOG.name, second).read_all()
    assert whole.schema.equals(LOG.arrow)
    assert whole.to_pylist() == [event("c")]


def test_a_compaction_adds_nothing(tables: TableManager) -> None:
    first = append(tables, "a")
    append(tables, "b")
    compact(tables, LOG.name)
    assert added(tables, first) == ["b"]
    append(tables, "c")
    compact(tables, LOG.name)
    assert sorted(added(tables, first)) == ["b", "c"]
    assert [step.rows_added for step in tables.steps(LOG.name, first)] == [1, 0, 1, 0]


def test_added_rows_are_known_when_the_snapshots_in_between_have_expired(tables: TableManager) -> None:
    first, second = append(tables, "a"), append(tables, "b")
    append(tables, "c")
    compact(tables, LOG.name)
    expire(tables, LOG.name, second)
    assert sorted(added(tables, first)) == ["b", "c"]
    with pytest.raises(SnapshotNotFoundError, match=r"between .* and now have expired"):
        tables.steps(LOG.name, first)
    expire(tables, LOG.name, first)
    with pytest.raises(SnapshotNotFoundError, match=r"no snapshot \d+; .*has expired, .* must be rebuilt"):
        added(tables, first)


def test_a_rolled_back_log(tables: TableManager) -> None:
    first, lost = append(tables, "a"), append(tables, "b")
    tables.rollback(LOG.name, first)
    third = append(tables, "c")
    assert not tables.is_ancestor(LOG.name, lost)
    assert tables.steps(LOG.name, lost) == [(third, 1)]
    assert added(tables, lost) == ["c"]
    rows = tables.diff(LOG.name, lost, columns=["change_id"]).read_all().to_pylist()
    assert sorted((row["_change_type"], row["change_id"]) for row in rows) == [("DELETE", "b"), ("INSERT", "c")]


class Drop:
    """A plan that rewrites a log without some of its rows, as retention and forget do."""

    def __init__(self, gone: set[str], properties: dict[str, str]) -> None:
        self._gone = gone
        self._properties = properties
        self.paths: list[str] = []

    def __call__(self, table: Table) -> Writes:
        writer = FileWriter(table)
        files = live_files(table, table.current_snapshot())
        rows = pa.concat_tables([FileReader(table).read(file) for file in files])
        keep = pa.array([name not in self._gone for name in rows["change_id"].to_pylist()])
        parts = writer.split(rows.filter(keep))
        new = [file for key, part in parts for file in writer.write(key, part)]
        return Writes(added=new, removed=files, operation="overwrite", properties=self._properties)


def test_retention_takes_rows_away_and_adds_none(tables: TableManager) -> None:
    first = append(tables, "a", "b")
    append(tables, "c")
    commit(tables.iceberg, LOG.name, Drop({"a"}, {ONLY_REMOVES: "true"}), op_id="retention")
    append(tables, "d")
    assert sorted(added(tables, first)) == ["c", "d"]


def test_an_overwritten_log_is_an_error(tables: TableManager) -> None:
    first = append(tables, "a", "b")
    commit(tables.iceberg, LOG.name, Drop({"a"}, {}), op_id="vandal")
    last = append(tables, "c")
    with pytest.raises(StoreError, match=r"bronze\.events is a log, and snapshot .* overwrote rows"):
        added(tables, first)
    assert added(tables, last) == []
    assert sorted(added(tables, None)) == ["b", "c"]


def test_differences(tables: TableManager) -> None:
    first = merge(tables, thing("a", 1), thing("b", 1), thing("c", 1))
    second = merge(tables, thing("a", 2, lsn=1), thing("d", 1), delete_keys=pa.table({"id": ["c"]}))
    assert sorted(changed(tables, None, first)) == [("INSERT", name, 1) for name in "abc"]
    assert sorted(changed(tables, first)) == [
        ("DELETE", "c", 1),
        ("INSERT", "d", 1),
        ("UPDATE_AFTER", "a", 2),
        ("UPDATE_BEFORE", "a", 1),
    ]
    rows = changed(tables, first, second)
    before = rows.index(("UPDATE_BEFORE", "a", 1))
    assert rows[before + 1] == ("UPDATE_AFTER", "a", 2)
    assert sorted(changed(tables, second, first)) == [
        ("DELETE", "d", 1),
        ("INSERT", "c", 1),
        ("UPDATE_AFTER", "a", 1),
        ("UPDATE_BEFORE", "a", 2),
    ]
    assert changed(tables, second) == []


def test_a_change_in_another_column_is_none(tables: TableManager) -> None:
    first = merge(tables, thing("a", 1, group="g"))
    merge(tables, thing("a", 1, group="h", lsn=1))
    assert changed(tables, first) == []
    found = tables.diff(STATE.name, first, columns=["group"]).read_all()
    assert found.schema.names == ["group", "_change_type"]
    assert found["group"].to_pylist() == ["g", "h"]
    assert len(tables.diff(STATE.name, first).read_all()) == 2
    assert tables.diff(STATE.name, first).schema.names == [*STATE.arrow.names, "_change_type"]


def test_a_compaction_changes_nothing(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    first = merge(tables, *(thing(f"t{i}", i) for i in range(50)))
    merge(tables, *(thing(f"u{i}", i) for i in range(50)))
    second = merge(tables)
    compact(tables, STATE.name)
    assert changed(tables, second) == []
    assert len(changed(tables, first)) == 50


def test_only_files_that_are_not_shared_are_read(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    first = merge(tables, *(thing(f"t{i}", i) for i in range(100)))
    merge(tables, thing("t5", -1, lsn=1))
    read: list[str] = []
    batches = FileReader.batches
    monkeypatch.setattr(FileReader, "batches", lambda self, file: (read.append(file.path), batches(self, file))[1])
    assert len(changed(tables, first)) == 2
    assert len(read) == 2


def test_an_edge_that_moves_to_another_source_is_found_where_it_was(tables: TableManager) -> None:
    """Where the partition is no function of the key, a row is looked for everywhere."""
    from dataclasses import replace

    spec = replace(EDGES, table="free", determined=())
    tables.ensure(spec)
    first = write(tables, spec, [edge(f"e{i}", "a", "x") for i in range(20)]).snapshot_id
    result = write(tables, spec, [edge("e3", src, "x") for src in ("b", "c", "d", "h")])
    assert (result.rows_added, result.rows_updated) == (0, 1)
    rows = tables.diff(spec.name, first).read_all().to_pylist()
    assert [(row["_change_type"], row["src"]) for row in rows] == [("UPDATE_BEFORE", "a"), ("UPDATE_AFTER", "h")]


def test_changes_since_the_beginning_are_all_rows(tables: TableManager) -> None:
    merge(tables, thing("a", 1))
    merge(tables, thing("a", 2, lsn=1), thing("b", 1))
    assert sorted(changed(tables, None)) == [("INSERT", "a", 2), ("INSERT", "b", 1)]
    assert changed(tables, None, None) == changed(tables, None)


def test_changes_of_an_empty_table(tables: TableManager) -> None:
    assert changed(tables, None) == []
    assert added(tables, None) == []


def test_an_expired_mark_says_what_to_do(tables: TableManager) -> None:
    first = merge(tables, thing("a", 1))
    merge(tables, thing("a", 2, lsn=1))
    expire(tables, STATE.name, first)
    with pytest.raises(SnapshotNotFoundError, match="that has expired, what was derived from it must be rebuilt"):
        changed(tables, first)
