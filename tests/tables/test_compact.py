"""Compaction packs files and changes no row, beside whoever else writes."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage import iceberg_snapshot
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_history import watermarks_of
from pkm_pipelines.storage.iceberg_manifests import live_files, manifests_of
from pkm_pipelines.tables.compact import CompactPlan, Packing, batches, plan_groups
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import DAY, LOG, STATE, Place, batch, contents, delta, event, file_paths, thing, write
from tests.support.maintenance import assert_whole, data_files, delete_file_count
from tests.support.position_deletes import delete_positions

PACKING = Packing(target_bytes=1 << 20, batch_bytes=8 << 20, memory_bytes=64 << 20)
FLAT = replace(LOG, partition=())


@pytest.fixture
def manager(place: Place) -> TableManager:
    found = TableManager(place.open())
    for spec in (STATE, LOG):
        found.ensure(spec)
    return found


def compact(tables: TableManager, spec: TableSpec, packing: Packing = PACKING) -> int:
    """Compact a table; returns how many commits it took."""
    groups = plan_groups(tables.iceberg.load(spec.name), packing)
    parts = list(batches(groups, packing))
    for part in parts:
        commit(tables.iceberg, spec.name, CompactPlan(part, packing), op_id=str(uuid.uuid4()))
    return len(parts)


def fill(tables: TableManager, spec: TableSpec = LOG, commits: int = 12) -> None:
    for number in range(commits):
        write(tables, spec, [event(f"c{number}", number, DAY.replace(month=1 + number % 2))], "append")


def load(tables: TableManager, spec: TableSpec) -> Table:
    return tables.iceberg.load(spec.name)


def test_small_files_of_a_partition_become_one(manager: TableManager) -> None:
    fill(manager)
    write(manager, LOG, [event("last")], "append", watermarks={"elsewhere": 7})
    before, old = contents(manager, LOG), load(manager, LOG).metadata.current_snapshot_id
    assert compact(manager, LOG) == 1
    table = load(manager, LOG)
    assert len(data_files(table)) == 2
    assert contents(manager, LOG) == before
    assert contents(manager, LOG, snapshot_id=old) == before
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation.value == "replace"
    assert snapshot.summary["total-records"] == str(len(before))
    assert snapshot.summary["pkm.rows-added"] == snapshot.summary["pkm.rows-deleted"] == "0"
    assert watermarks_of(table) == {"elsewhere": 7}
    assert manager.added(LOG.name, old).read_all().num_rows == 0
    assert old is not None
    assert manager.is_unchanged_since(LOG.name, old)
    write(manager, LOG, [event("later")], "append")
    assert not manager.is_unchanged_since(LOG.name, old)
    assert not plan_groups(table, PACKING), "there is nothing left to do"


def test_the_next_commit_lets_go_of_what_went(manager: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were packed are listed apart, so they are no burden on the manifest of those that stay."""
    monkeypatch.setattr(iceberg_snapshot, "MANY_GONE", 4)
    fill(manager)
    old = manager.iceberg.snapshot_id(LOG.name)
    compact(manager, LOG)
    assert live_counts(manager) == [0, 2]
    write(manager, LOG, [event("later")], "append")
    assert live_counts(manager) == [1, 2]
    assert len(contents(manager, LOG)) == 13
    assert manager.added(LOG.name, old).read_all()["change_id"].to_pylist() == ["later"]


def live_counts(tables: TableManager) -> list[int]:
    """How many living files each manifest of the log has."""
    table = load(tables, LOG)
    manifests = manifests_of(table, table.current_snapshot())
    return sorted((one.added_files_count or 0) + (one.existing_files_count or 0) for one in manifests)


def test_deletes_are_worked_in(manager: TableManager) -> None:
    for number in range(3):
        write(manager, STATE, [thing(f"id{i}", number) for i in range(number * 10, number * 10 + 10)])
    delete_positions(manager, STATE, "id", {"id3", "id14", "id15", "id29"})
    before = contents(manager, STATE)
    assert len(before) == 26
    compact(manager, STATE)
    table = load(manager, STATE)
    assert contents(manager, STATE) == before
    assert delete_file_count(table) == 0
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert int(snapshot.summary["total-records"]) == 26
    assert int(snapshot.summary["total-position-deletes"] or 0) == 0


def test_a_file_of_which_every_row_is_deleted_goes(tables: TableManager) -> None:
    write(tables, STATE, [thing("id1")])
    delete_positions(tables, STATE, "id", {"id1"})
    compact(tables, STATE)
    assert file_paths(tables, STATE) == set()
    assert contents(tables, STATE) == {}


def test_files_are_sorted_and_say_so(tables: TableManager) -> None:
    spec = replace(FLAT, sort=("value",))
    tables.ensure(replace(spec, table="sorted"))
    spec = replace(spec, table="sorted")
    for number in (5, 3, 9, 1):
        write(tables, spec, [event(f"a{number}", number), event(f"b{number}", 10 - number)], "append")
    for packing in (PACKING, replace(PACKING, memory_bytes=1)):
        compact(tables, spec, packing)
        [file] = live_files(load(tables, spec), load(tables, spec).current_snapshot())
        assert file.file.sort_order_id == load(tables, spec).metadata.default_sort_order_id
        values = pq.read_table(file.path.removeprefix("file://"), columns=["value"])["value"].to_pylist()
        assert values == sorted(values)
        write(tables, spec, [event(f"more{packing.memory_bytes}", 4)], "append")
        write(tables, spec, [event(f"again{packing.memory_bytes}", 2)], "append")


def test_z_order_lays_rows_out_by_several_columns(tables: TableManager) -> None:
    spec = replace(FLAT, table="laid")
    tables.ensure(spec)
    for part in range(8):
        rows = [event(f"{(i * 37 + part * 11) % 100:02d}-{part}-{i}", (i * 53) % 100) for i in range(100)]
        write(tables, spec, rows, "append")
    before = contents(tables, spec)
    groups = plan_groups(load(tables, spec), PACKING)
    packing = replace(PACKING, zorder=("change_id", "value"))
    commit(tables.iceberg, spec.name, CompactPlan(groups, packing), op_id=str(uuid.uuid4()))
    assert contents(tables, spec) == before
    [file] = live_files(load(tables, spec), load(tables, spec).current_snapshot())
    assert not file.file.sort_order_id
    values = pq.read_table(file.path.removeprefix("file://"), columns=["change_id", "value"])
    quarter = values.slice(0, 200)
    assert max(quarter["value"].to_pylist()) < 75
    assert max(quarter["change_id"].to_pylist()) < "75"


def test_unsorted_files_are_taken_if_they_are_to_be(tables: TableManager) -> None:
    table = load(tables, LOG)
    table.append(pa.Table.from_batches([batch(LOG, [event("c1")])]).cast(table.schema().as_arrow()))
    table = load(tables, LOG)
    assert not plan_groups(table, PACKING)
    [group] = plan_groups(table, replace(PACKING, unsorted=True))
    commit(tables.iceberg, LOG.name, CompactPlan([group], PACKING), op_id="o")
    assert not plan_groups(load(tables, LOG), replace(PACKING, unsorted=True))


def test_files_have_the_target_size(tables: TableManager) -> None:
    picked = [str(uuid.uuid4()) for _ in range(60_000)]
    spec = replace(FLAT, table="large")
    tables.ensure(spec)
    for start in range(0, 60_000, 10_000):
        write(tables, spec, [event(id) for id in picked[start : start + 10_000]], "append")
    before = sum(
        file.file.file_size_in_bytes for file in live_files(load(tables, spec), load(tables, spec).current_snapshot())
    )
    target = before // 3
    compact(tables, spec, replace(PACKING, target_bytes=target))
    sizes = [
        file.file.file_size_in_bytes for file in live_files(load(tables, spec), load(tables, spec).current_snapshot())
    ]
    assert sum(size >= target for size in sizes) >= len(sizes) - 1
    assert contents(tables, spec).keys() == set(picked)


def test_a_large_compaction_goes_step_by_step(manager: TableManager) -> None:
    fill(manager, commits=20)
    size = max(
        file.file.file_size_in_bytes for file in live_files(load(manager, LOG), load(manager, LOG).current_snapshot())
    )
    before = contents(manager, LOG)
    snapshots = len(load(manager, LOG).snapshots())
    packing = replace(PACKING, batch_bytes=4 * size)
    commits = compact(manager, LOG, packing)
    assert commits >= 5
    assert len(load(manager, LOG).snapshots()) == snapshots + commits
    assert contents(manager, LOG) == before
    assert len(file_paths(manager, LOG)) == 6, "ten files of a partition, four at a time"


def test_each_byte_is_rewritten_a_logarithmic_number_of_times(tables: TableManager) -> None:
    rewritten = added = 0
    for _ in range(40):
        for _ in range(2):
            write(tables, LOG, [event(str(uuid.uuid4())) for _ in range(200)], "append")
            added += 200
        plan = CompactPlan(plan_groups(load(tables, LOG), PACKING), PACKING)
        commit(tables.iceberg, LOG.name, plan, op_id=str(uuid.uuid4()))
        rewritten += sum(file.record_count for file in plan.added)
    assert len(file_paths(tables, LOG)) < 10
    assert rewritten < 6 * added, "a large file is not rewritten for each small one"


def test_what_a_writer_changed_meanwhile_is_left_alone(manager: TableManager) -> None:
    """A rival commits between planning and the commit: its partition is not packed, the other one is, and once."""
    for number in range(4):
        write(manager, STATE, [thing(f"id{i}", number, lsn=number) for i in range(12)])
        manager.iceberg.load(STATE.name)
    fill(manager, commits=8)
    groups = plan_groups(load(manager, LOG), PACKING)
    assert len(groups) == 2
    plan = CompactPlan(groups, PACKING)
    rivals = iter(range(2))

    def rival() -> None:
        number = next(rivals, None)
        if number == 0:
            write(manager, LOG, [event("late", day=DAY)], "append")
        elif number == 1:
            victim = next(id for id in ("c0", "c1") if str(contents(manager, LOG)[id]["day"]).startswith("2026-01"))
            delete_positions(manager, LOG, "change_id", {victim})

    result = commit(manager.iceberg, LOG.name, plan, op_id="compaction", before_commit=rival)
    assert result.attempts == 3
    assert len(plan.packed) == 1
    rows = contents(manager, LOG)
    assert "late" in rows
    assert len(rows) == 8
    assert_whole(load(manager, LOG))
    compact(manager, LOG)
    assert contents(manager, LOG) == rows
    assert delete_file_count(load(manager, LOG)) == 0


def test_a_schema_that_changed_meanwhile_is_followed(tables: TableManager) -> None:
    fill(tables, commits=4)
    plan = CompactPlan(plan_groups(load(tables, LOG), PACKING), PACKING)

    def rival() -> None:
        table = load(tables, LOG)
        if "more" not in table.schema().column_names:
            from pyiceberg.types import StringType

            with table.update_schema() as update:
                update.add_column("more", StringType())
            table.append(table.scan().to_arrow().slice(0, 0))

    before = contents(tables, LOG)
    commit(tables.iceberg, LOG.name, plan, op_id="o", before_commit=rival)
    assert [list(row)[-1] for row in contents(tables, LOG).values()] == ["more"] * 4
    assert {key: {k: v for k, v in row.items() if k != "more"} for key, row in contents(tables, LOG).items()} == before


def test_writers_go_on(manager: TableManager) -> None:
    """Four writers and a compaction at the same time: every row is there, once, and each writer gets its turn."""
    done: list[int] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def writer(number: int) -> None:
        try:
            mine = TableManager(manager.iceberg)
            for turn in range(5):
                mine.write(delta(LOG, [event(f"{number}-{turn}")], "append"))
                done.append(number)
        except BaseException as error:
            failed.append(error)
            raise

    def packer() -> None:
        while not ended.is_set():
            try:
                compact(manager, LOG)
            except BaseException as error:
                failed.append(error)
                raise

    background = threading.Thread(target=packer)
    background.start()
    writers = [threading.Thread(target=writer, args=(number,)) for number in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    ended.set()
    background.join()
    assert failed == []
    assert sorted(done) == sorted([*range(3)] * 5)
    assert contents(manager, LOG).keys() == {f"{number}-{turn}" for number in range(3) for turn in range(5)}
    compact(manager, LOG)
    assert_whole(load(manager, LOG))


def test_a_damaged_file_is_not_let_go(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tables, commits=4)
    from pkm_pipelines.model.errors import StoreError
    from pkm_pipelines.storage.iceberg_reader import FileReader

    before = file_paths(tables, LOG)
    whole = FileReader.batches

    def half(self: FileReader, file: Any) -> Any:
        for found in whole(self, file):
            yield found.slice(1)

    monkeypatch.setattr(FileReader, "batches", half)
    with pytest.raises(StoreError, match="read 2 rows by their files' statistics and wrote 0"):
        compact(tables, LOG)
    assert file_paths(tables, LOG) == before
