"""The snapshots we write, as pyiceberg itself understands them."""

from __future__ import annotations

import math
import uuid

import pyarrow as pa
import pytest
from pyiceberg.expressions import EqualTo
from pyiceberg.table.snapshots import Operation, Snapshot

from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_manifests import column_bounds, files_between, live_files, manifests_of
from pkm_pipelines.storage.iceberg_snapshot import MERGE_FACTOR, Writes, prepare_snapshot
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, contents, event, file_paths, thing, write
from tests.support.table_model import Compaction


def current(tables: TableManager, name: str) -> Snapshot:
    snapshot = tables.iceberg.load(name).current_snapshot()
    assert snapshot is not None
    return snapshot


def test_pyiceberg_sees_the_same_entries_totals_and_bounds(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{i:02}", i, lsn=i) for i in range(40)])
    write(tables, STATE, [thing("t03", 100, lsn=100), thing("new", 1)])
    write(tables, STATE, delete_keys=pa.table({"id": [f"t{i:02}" for i in range(10, 20)]}))
    table = tables.iceberg.load(STATE.name)
    live = live_files(table, table.current_snapshot())
    assert {file.path for file in live} == {task.file.file_path for task in table.scan().plan_files()}
    summary = current(tables, STATE.name).summary
    assert summary is not None
    assert int(summary["total-records"] or 0) == 31 == table.scan().count()
    assert int(summary["total-data-files"] or 0) == len(live)
    assert int(summary["total-files-size"] or 0) == sum(file.file.file_size_in_bytes for file in live)
    files = table.inspect.files().to_pylist()
    assert sum(file["record_count"] for file in files) == 31
    for file in live:
        rows = table.scan(row_filter=EqualTo("id", "none")).to_arrow().schema
        assert rows.names == list(STATE.arrow.names)
        bounds = column_bounds(table, file.file, "id")
        assert bounds is not None
        assert bounds[0] <= bounds[1]
        assert column_bounds(table, file.file, "names") is None
        assert file.file.sort_order_id == table.sort_order().order_id


def test_operations_are_named_as_the_specification_has_them(tables: TableManager) -> None:
    def operation() -> Operation | None:
        summary = current(tables, STATE.name).summary
        return summary.operation if summary else None

    write(tables, STATE, [thing("a", 1)])
    assert operation() == Operation.APPEND
    write(tables, STATE, [thing("a", 2, lsn=2)])
    assert operation() == Operation.OVERWRITE
    commit(tables.iceberg, STATE.name, Compaction(), op_id=str(uuid.uuid4()))
    assert operation() == Operation.REPLACE
    write(tables, STATE, delete_keys=pa.table({"id": ["a"]}))
    assert operation() == Operation.DELETE


def test_deleted_entries_stand_in_the_snapshot_that_deleted_them_and_no_later_one(tables: TableManager) -> None:
    def deleted() -> list[int]:
        table = tables.iceberg.load(STATE.name)
        entries = [
            entry
            for manifest in current(tables, STATE.name).manifests(table.io)
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
        ]
        assert all(entry.sequence_number is not None for entry in entries)
        return [entry.snapshot_id or 0 for entry in entries if entry.status.name == "DELETED"]

    write(tables, STATE, [thing(f"t{i}", 1) for i in range(20)])
    assert deleted() == []
    write(tables, STATE, [thing("t1", 2, lsn=2)])
    assert deleted() == [current(tables, STATE.name).snapshot_id]
    write(tables, STATE, [thing("t1", 3, lsn=3)])
    assert deleted() == [current(tables, STATE.name).snapshot_id]


def test_the_number_of_manifests_grows_with_the_logarithm(tables: TableManager) -> None:
    commits = 3 * MERGE_FACTOR**2 // 2
    for number in range(commits):
        write(tables, LOG, [event(f"c{number}")], "append")
    table = tables.iceberg.load(LOG.name)
    manifests = manifests_of(table, table.current_snapshot())
    assert len(manifests) <= MERGE_FACTOR * (1 + math.log(commits, MERGE_FACTOR))
    assert len(contents(tables, LOG)) == len(file_paths(tables, LOG)) == commits
    steps = tables.steps(LOG.name, None)
    assert [step.rows_added for step in steps] == [1] * commits
    half = steps[commits // 2].snapshot_id
    assert len(tables.added(LOG.name, half).read_all()) == commits - commits // 2 - 1


def test_what_two_snapshots_do_not_share(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{i}", 1) for i in range(20)])
    table = tables.iceberg.load(STATE.name)
    first = table.current_snapshot()
    write(tables, STATE, [thing("t1", 2, lsn=2)])
    table = tables.iceberg.load(STATE.name)
    gone, came = files_between(table, first, table.current_snapshot())
    assert len(gone) == len(came) == 1
    assert gone[0].partition == came[0].partition
    assert files_between(table, first, first) == ([], [])
    everything = files_between(table, None, first)
    assert (len(everything[0]), len(everything[1])) == (0, len(live_files(table, first)))


def test_work_goes_on_after_commits_of_pyicebergs_own(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{i}", i) for i in range(20)])
    table = tables.iceberg.load(STATE.name)
    rows = pa.Table.from_pylist([thing("foreign", 7)], schema=STATE.arrow)
    table.append(rows.cast(table.schema().as_arrow()))
    table.delete(EqualTo("id", "t4"))
    write(tables, STATE, [thing("t5", 50, lsn=5), thing("foreign", 70, lsn=5)])
    found = {key: row["value"] for key, row in contents(tables, STATE).items()}
    assert found == {f"t{i}": 50 if i == 5 else i for i in range(20) if i != 4} | {"foreign": 70}


def test_work_goes_on_after_a_change_of_the_partitions(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{i}", i) for i in range(20)])
    with tables.iceberg.load(STATE.name).update_spec() as update:
        update.remove_field("id_bucket")
    before = current(tables, STATE.name).snapshot_id
    write(tables, STATE, [thing("t5", 50, lsn=5), thing("new", 1)])
    commit(tables.iceberg, STATE.name, Compaction(), op_id=str(uuid.uuid4()))
    assert len(file_paths(tables, STATE)) == 1
    write(tables, STATE, [thing("t6", 60, lsn=6)], delete_keys=pa.table({"id": ["t7"]}))
    found = {key: row["value"] for key, row in contents(tables, STATE).items()}
    assert found == {f"t{i}": {5: 50, 6: 60}.get(i, i) for i in range(20) if i != 7} | {"new": 1}
    kinds = tables.diff(STATE.name, before).read_all()["_change_type"].to_pylist()
    assert sorted(kinds) == ["DELETE", "INSERT", *["UPDATE_AFTER"] * 2, *["UPDATE_BEFORE"] * 2]


def test_a_file_that_the_parent_does_not_hold_cannot_be_removed(tables: TableManager) -> None:
    write(tables, STATE, [thing("a", 1)])
    old = live_files(tables.iceberg.load(STATE.name), current(tables, STATE.name))
    write(tables, STATE, [thing("a", 2, lsn=2)])
    with pytest.raises(ValueError, match="not in the parent snapshot"):
        prepare_snapshot(tables.iceberg.load(STATE.name), Writes(removed=old, operation="delete"), {})


def test_position_deletes_of_other_engines_are_read(tables: TableManager) -> None:
    """Our reader, merge and diff against merge-on-read deletes, as DuckDB or Spark write them."""
    from tests.support.position_deletes import delete_positions

    write(tables, STATE, [thing(f"t{i}", i) for i in range(20)])
    before = current(tables, STATE.name).snapshot_id
    delete_positions(tables, STATE, "id", {"t3", "t4"})
    wanted = {f"t{i}": i for i in range(20) if i not in (3, 4)}
    assert {key: row["value"] for key, row in contents(tables, STATE).items()} == wanted
    assert set(contents(tables, STATE, row_filter=EqualTo("value", 5))) == {"t5"}
    gone = tables.diff(STATE.name, before).read_all().to_pylist()
    assert sorted((row["_change_type"], row["id"]) for row in gone) == [("DELETE", "t3"), ("DELETE", "t4")]
    result = write(tables, STATE, [thing("t3", 30), thing("t5", 50, lsn=1)])
    assert (result.rows_added, result.rows_updated) == (1, 1)
    found = {key: row["value"] for key, row in contents(tables, STATE).items()}
    assert found == {**wanted, "t3": 30, "t5": 50}
    assert len(tables.iceberg.load(STATE.name).scan().to_arrow()) == len(found)
