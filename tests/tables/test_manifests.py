"""Manifests are rewritten without a change of data."""

from __future__ import annotations

import uuid
from itertools import pairwise

import pyarrow as pa
import pytest

from pkm_pipelines.storage import iceberg_snapshot
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_history import watermarks_of
from pkm_pipelines.storage.iceberg_manifests import entries_of, manifests_of
from pkm_pipelines.tables import manifests, merge_group
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.manifests import ManifestsPlan, plan_manifests
from tests.support.iceberg import STATE, Place, contents, thing, write
from tests.support.maintenance import assert_whole, data_files, delete_file_count


@pytest.fixture
def manager(place: Place, monkeypatch: pytest.MonkeyPatch) -> TableManager:
    """A table of many manifests: commits do not merge them here."""
    monkeypatch.setattr(iceberg_snapshot, "MERGE_FACTOR", 1000)
    monkeypatch.setattr(merge_group, "SMALL_FILES", 1000)
    found = TableManager(place.open())
    found.ensure(STATE)
    found.set_mode(STATE.name, "merge-on-read")
    for number in range(9):
        write(found, STATE, [thing(f"id{number}-{i}") for i in range(6)], watermarks={"elsewhere": number + 1})
    for ids in (["id0-1", "id3-2"], ["id5-1"]):
        write(found, STATE, delete_keys=pa.table({"id": ids}))
    return found


def rewrite(tables: TableManager, target_bytes: int) -> int:
    """Rewrite until there is nothing to do; returns how many commits it took."""
    for commits in range(10):
        plan = ManifestsPlan(target_bytes)
        if not commit(tables.iceberg, STATE.name, plan, op_id=str(uuid.uuid4())).written:
            return commits
    raise AssertionError("it never ends")


def test_manifests_become_few(manager: TableManager) -> None:
    table = manager.iceberg.load(STATE.name)
    old, files = table.metadata.current_snapshot_id, data_files(table)
    assert len(manifests_of(table, table.current_snapshot())) == 11
    before = contents(manager, STATE)
    assert rewrite(manager, 8 << 20) == 2
    table = manager.iceberg.load(STATE.name)
    found = manifests_of(table, table.current_snapshot())
    assert len(found) == 2
    assert [(m.added_files_count, m.deleted_files_count) for m in found] == [(0, 0)] * 2
    assert data_files(table) == files
    assert contents(manager, STATE) == before
    assert contents(manager, STATE, snapshot_id=old) == before
    assert delete_file_count(table) > 0
    assert watermarks_of(table) == {"elsewhere": 9}
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation.value == "replace"
    assert manager.diff(STATE.name, old).read_all().num_rows == 0
    write(manager, STATE, [thing("id1-1", 5, 5)])
    assert contents(manager, STATE) == {**before, "id1-1": contents(manager, STATE)["id1-1"]}
    assert_whole(manager.iceberg.load(STATE.name))


def test_files_of_a_partition_stand_together(manager: TableManager) -> None:
    table = manager.iceberg.load(STATE.name)
    size = sum(m.manifest_length for m in manifests_of(table, table.current_snapshot()))
    rewrite(manager, size // 4)
    table = manager.iceberg.load(STATE.name)
    found = [m for m in manifests_of(table, table.current_snapshot()) if m.content.name == "DATA"]
    assert 2 <= len(found) <= 5
    ranges: list[tuple[int, int]] = []
    for manifest in found:
        buckets = [entry.data_file.partition[0] for entry in entries_of(table.io, manifest)]
        ranges.append((min(buckets), max(buckets)))
    ranges.sort()
    assert all(left[1] <= right[0] for left, right in pairwise(ranges)), ranges


def test_so_many_files_at_a_time(manager: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FILES_AT_ONCE", 10)
    table = manager.iceberg.load(STATE.name)
    files = data_files(table)
    assert all(rewrite.files <= 10 for rewrite in plan_manifests(table, 8 << 20))
    assert rewrite(manager, 8 << 20) > 2
    assert data_files(manager.iceberg.load(STATE.name)) == files


def test_a_writer_was_quicker(manager: TableManager) -> None:
    late = iter([thing("late")])

    def rival() -> None:
        for row in late:
            write(manager, STATE, [row])

    before = contents(manager, STATE)
    result = commit(manager.iceberg, STATE.name, ManifestsPlan(8 << 20), op_id="o", before_commit=rival)
    assert result.attempts == 2
    assert contents(manager, STATE).keys() == before.keys() | {"late"}
