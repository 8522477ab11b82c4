"""What a merge reads and writes; that its result is right is the business of test_model.py."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Slice
from pkm_pipelines.storage.iceberg_datafile import OpenDataFile
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.tables import merge_group, positions
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.merge_group import PACK_BYTES, SMALL_FILES
from tests.support.iceberg import EDGES, LOG, STATE, Place, contents, delta, edge, file_paths, thing, write


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The files that are read from here on, with the columns."""
    seen: list[tuple[str, tuple[str, ...]]] = []
    stored = FileReader.stored

    def counted(self: FileReader, file: OpenDataFile, groups: Any = None, *args: Any) -> Any:
        if groups is None or groups:
            seen.append((file.data.file_path, tuple(self.schema.names)))
        return stored(self, file, groups, *args)

    monkeypatch.setattr(FileReader, "stored", counted)
    return seen


def filled(tables: TableManager, count: int = 100) -> None:
    write(tables, STATE, [thing(f"t{i:03}", i) for i in range(count)])
    assert len(file_paths(tables, STATE)) == 4


def test_one_changed_row_rewrites_one_file(tables: TableManager, read_files: list[Any]) -> None:
    filled(tables)
    before = file_paths(tables, STATE)
    read_files.clear()
    result = write(tables, STATE, [thing("t007", -1, lsn=1)])
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (0, 1, 0)
    assert len({path for path, _ in read_files}) == 1
    after = file_paths(tables, STATE)
    assert len(before & after) == 3
    assert len(after) == 4


def test_an_equal_row_writes_nothing_and_moves_no_snapshot(tables: TableManager) -> None:
    filled(tables)
    before = tables.iceberg.snapshot_id(STATE.name)
    result = write(tables, STATE, [thing(f"t{i:03}", i) for i in range(100)])
    assert (result.written, result.snapshot_id) == (False, before)


def test_an_older_row_is_ignored_and_an_equally_old_one_with_other_values_wins(tables: TableManager) -> None:
    write(tables, STATE, [thing("a", 1, lsn=5)])
    assert not write(tables, STATE, [thing("a", 2, lsn=4)]).written
    assert write(tables, STATE, [thing("a", 3, lsn=5)]).rows_updated == 1  # the same change, computed anew
    assert contents(tables, STATE)["a"]["value"] == 3


def test_new_keys_make_new_files_and_read_no_row(
    tables: TableManager, read_files: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "WHOLE_BYTES", 0)
    filled(tables)
    before = file_paths(tables, STATE)
    read_files.clear()
    assert write(tables, STATE, [thing("t0505", 1)]).rows_added == 1
    assert before < file_paths(tables, STATE)
    assert all(columns == ("id", "changed", "lsn") for _, columns in read_files), "keys and order only"
    read_files.clear()
    assert write(tables, STATE, [thing("zzz", 1)]).rows_added == 1
    assert not read_files, "no file's keys have room for it"


def test_new_keys_join_a_file_that_is_written_anyway(tables: TableManager) -> None:
    filled(tables)
    result = write(tables, STATE, [thing(f"t{i:03}", -i, lsn=1) for i in range(100)] + [thing("t050a", 1)])
    assert (result.rows_added, result.rows_updated) == (1, 100)
    assert len(file_paths(tables, STATE)) == 4


def test_small_files_are_packed_when_they_have_piled_up(tables: TableManager) -> None:
    most = 0
    for number in range(45):
        write(tables, STATE, [thing(f"t{number:03}", number)])
        most = max(most, len(file_paths(tables, STATE)))
    assert most <= 4 * SMALL_FILES
    assert len(contents(tables, STATE)) == 45
    assert len(tables.diff(STATE.name, tables.history(STATE.name)[-1].snapshot_id).read_all()) == 44


def test_packing_stops_at_a_size(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_group, "SMALL_FILES", 2)
    monkeypatch.setattr(merge_group, "PACK_BYTES", 0)
    for number in range(20):
        write(tables, STATE, [thing(f"t{number:03}", number)])
    assert len(file_paths(tables, STATE)) == 20
    assert PACK_BYTES > merge_group.SMALL_FILE_BYTES


def test_a_slice_is_replaced_exactly(tables: TableManager, read_files: list[Any]) -> None:
    write(tables, EDGES, [edge(f"{src}{n}", src, "x") for src in "abcdefgh" for n in range(3)])
    read_files.clear()
    rows = [edge("a0", "a", "x"), edge("a1", "a", "y"), edge("a7", "a", "z")]
    result = write(tables, EDGES, rows, replace_slice=("src", ("a",)))
    assert len({path for path, _ in read_files}) == 1, "other buckets are not read"
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (1, 1, 1)
    found = contents(tables, EDGES)
    assert {key[0]: row["dst"] for key, row in found.items() if row["src"] == "a"} == {"a0": "x", "a1": "y", "a7": "z"}
    assert len(found) == 24
    again = write(tables, EDGES, rows, replace_slice=("src", ("a",)))
    assert not again.written


def test_an_empty_slice_takes_nothing_away(tables: TableManager) -> None:
    write(tables, EDGES, [edge("a0", "a"), edge("b0", "b")])
    assert not write(tables, EDGES, replace_slice=("src", ())).written
    assert len(contents(tables, EDGES)) == 2


def test_a_slice_without_rows_goes(tables: TableManager) -> None:
    write(tables, EDGES, [edge("a0", "a"), edge("b0", "b"), edge("c0", "c")])
    assert write(tables, EDGES, replace_slice=("src", ("a", "b"))).rows_deleted == 2
    assert {key[0] for key in contents(tables, EDGES)} == {"c0"}


def test_deletes_by_key(tables: TableManager, read_files: list[Any]) -> None:
    filled(tables)
    read_files.clear()
    keys = pa.table({"id": ["t001", "nothing"]})
    assert write(tables, STATE, delete_keys=keys).rows_deleted == 1
    assert len({path for path, _ in read_files}) == 1
    assert not write(tables, STATE, delete_keys=keys).written
    with pytest.raises(StoreError, match="keys to delete lack kind"):
        write(tables, EDGES, delete_keys=pa.table({"id": ["x"]}))


def test_a_row_that_is_also_to_be_deleted_stays(tables: TableManager) -> None:
    write(tables, STATE, [thing("a", 1), thing("b", 1)])
    result = write(tables, STATE, [thing("a", 2, lsn=1)], delete_keys=pa.table({"id": ["a", "b"]}))
    assert (result.rows_updated, result.rows_deleted) == (1, 1)
    assert set(contents(tables, STATE)) == {"a"}


def test_a_replacement_writes_only_what_differs(tables: TableManager) -> None:
    filled(tables)
    before = file_paths(tables, STATE)
    rows = [thing(f"t{i:03}", i) for i in range(100)]
    assert not write(tables, STATE, rows, "replace").written
    rows[5] = thing("t005", -5, lsn=-9)  # older, but in a replacement the rows given are the truth
    result = write(tables, STATE, rows, "replace")
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (0, 1, 0)
    assert len(before & file_paths(tables, STATE)) == 3
    assert write(tables, STATE, [], "replace").rows_deleted == 100


def test_a_part_is_replaced(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{i}", i, group="odd" if i % 2 else "even") for i in range(10)])
    rows = [thing("t1", 1, group="odd"), thing("t3", 33, group="odd"), thing("new", 0, group="odd")]
    result = write(tables, STATE, rows, "replace", replace_where=Slice("group", ("odd",)))
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (1, 1, 3)
    assert len(contents(tables, STATE)) == 8


def test_days_in_any_order_end_in_the_same_state(tables: TableManager, budget: int) -> None:
    rng = random.Random(7)
    days = [
        [thing(f"t{rng.randrange(30)}", rng.randrange(9), lsn=lsn) for lsn in range(day, 200, 10)] for day in range(10)
    ]
    wanted: dict[Any, Any] | None = None
    for number in range(2 + budget):
        write(tables, STATE, mode="replace")
        for day in rng.sample(days, len(days)) if number else days:
            write(tables, STATE, day)
            assert not write(tables, STATE, day).written
        wanted = wanted or contents(tables, STATE)
        assert contents(tables, STATE) == wanted


def test_a_large_delta_goes_through_files_and_leaves_none_behind(local: Place) -> None:
    from tests.support.warehouse_files import orphans

    manager = TableManager(local.open(), memory_bytes=2_000_000)
    manager.ensure(STATE)
    rows = [thing(f"t{i:04}", i, names=["x" * 100]) for i in range(5000)]
    batches = delta(STATE, rows)
    batches.rows = pa.Table.from_batches(batches.rows).to_batches(max_chunksize=100)
    assert manager.write(batches).rows_added == 5000
    assert {key: row["value"] for key, row in contents(manager, STATE).items()} == {r["id"]: r["value"] for r in rows}
    assert not orphans(manager.iceberg.load(STATE.name))
    assert len(file_paths(manager, STATE)) == 4


def test_rows_that_do_not_fit_are_named(tables: TableManager) -> None:
    def rows(**columns: Any) -> Any:
        bad = delta(STATE)
        bad.rows = [pa.RecordBatch.from_pydict(columns)]
        return bad

    time = thing("a")["changed"]
    with pytest.raises(StoreError, match=r"silver\.things has no column 'nope'"):
        tables.write(rows(nope=[1]))
    with pytest.raises(StoreError, match=r"silver\.things, column lsn: a row has no value"):
        tables.write(rows(id=["a"], changed=[time], lsn=pa.array([None], pa.int64())))
    with pytest.raises(StoreError, match=r"silver\.things, column value: .*'many'"):
        tables.write(rows(id=["a"], changed=[time], lsn=[1], value=["many"]))
    with pytest.raises(StoreError, match=r"silver\.things, column lsn: a row has no value"):
        tables.write(rows(id=["a"], changed=[time]))


def test_two_key_columns_at_the_size_that_crashes_upsert(tables: TableManager) -> None:
    """apache/iceberg-python#3508: pyiceberg's own upsert ends the process here."""
    write(tables, EDGES, [edge(f"{n}", f"s{n % 50}", "x", "link") for n in range(20_000)])
    rows = [edge(f"{n}", f"s{n % 50}", "y", "link") for n in range(0, 20_000, 2)]
    rows += [edge(f"{n}", f"s{n % 50}", "y", "tag") for n in range(100)]
    result = write(tables, EDGES, rows)
    assert (result.rows_added, result.rows_updated) == (100, 10_000)


def test_a_log_is_never_merged_into(tables: TableManager) -> None:
    for mode in ("merge", "replace"):
        with pytest.raises(StoreError, match=r"bronze\.events is a log"):
            write(tables, LOG, [], mode)
