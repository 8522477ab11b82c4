"""What a merge-on-read write reads and writes, and what hybrid writes choose; other results are test_model.py's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage import iceberg_writer
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_datafile import OpenDataFile
from pkm_pipelines.storage.iceberg_deletes import new_delete_path, write_deletes
from pkm_pipelines.storage.iceberg_manifests import LiveFile, live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_schema import READS_PER_WRITE, WRITE_REASON, TableMode, write_mode_properties
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.tables import cost, merge_group, positions
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import EDGES, STATE, Place, contents, edge, file_paths, thing, write
from tests.support.warehouse_files import orphans

ROWS = [thing(f"t{n:03}", n, names=["some", "names"]) for n in range(400)]


def set_mode(tables: TableManager, mode: TableMode, reads: float = 1) -> None:
    for spec in (STATE, EDGES):
        with tables.iceberg.load(spec.name).transaction() as transaction:
            transaction.set_properties({**write_mode_properties(mode), READS_PER_WRITE: str(reads)})


def live(tables: TableManager) -> list[LiveFile]:
    table = tables.iceberg.load(STATE.name)
    return live_files(table, table.current_snapshot())


def delete_files(tables: TableManager) -> set[str]:
    return {delete.file_path for file in live(tables) for delete in file.deletes}


def summary(tables: TableManager) -> dict[str, str]:
    snapshot = tables.iceberg.load(STATE.name).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    return snapshot.summary.additional_properties


@pytest.fixture
def marking(tables: TableManager) -> TableManager:
    """Things in four buckets, which merges from here on mark as deleted and do not rewrite."""
    write(tables, STATE, ROWS)
    set_mode(tables, "merge-on-read")
    return tables


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...], int]]:
    """The looks at data files from here on: file, columns, row groups."""
    seen: list[tuple[str, tuple[str, ...], int]] = []
    stored = FileReader.stored

    def counted(self: FileReader, file: OpenDataFile, groups: Any = None, *args: Any) -> Any:
        if groups is None or groups:
            count = len(file.row_groups if groups is None else groups)
            seen.append((file.data.file_path, tuple(self.schema.names), count))
        return stored(self, file, groups, *args)

    monkeypatch.setattr(FileReader, "stored", counted)
    return seen


def test_a_changed_row_is_marked_and_its_file_stays(marking: TableManager) -> None:
    before = file_paths(marking, STATE)
    result = write(marking, STATE, [thing("t007", -1, lsn=1), thing("new", 1)])
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (1, 1, 0)
    assert before < file_paths(marking, STATE)
    assert len(delete_files(marking)) == 1
    said = summary(marking)
    assert (said["total-position-deletes"], said["total-delete-files"], said["total-records"]) == ("1", "1", "402")
    assert said["pkm.write-mode"] == "merge-on-read"
    assert said[WRITE_REASON].startswith("marked 1 row as deleted in 1 file of")
    assert contents(marking, STATE)["t007"]["value"] == -1
    assert len(contents(marking, STATE)) == 401


def test_equal_and_older_rows_write_nothing(marking: TableManager) -> None:
    write(marking, STATE, [thing("t007", -1, lsn=5)])
    before = marking.iceberg.snapshot_id(STATE.name)
    assert not write(marking, STATE, ROWS).written, "equal, but for one that is older than the one that is there"
    assert marking.iceberg.snapshot_id(STATE.name) == before


def test_a_row_that_is_deleted_already_is_not_there(marking: TableManager) -> None:
    keys = pa.table({"id": ["t001", "t002"]})
    assert write(marking, STATE, delete_keys=keys).rows_deleted == 2
    assert not write(marking, STATE, delete_keys=keys).written
    result = write(marking, STATE, [thing("t001", 1)])  # older than nothing: it is new again
    assert (result.rows_added, result.rows_updated) == (1, 0)
    for value in range(3):
        assert write(marking, STATE, [thing("t001", 10 + value, lsn=1 + value)]).rows_updated == 1
    assert summary(marking)["total-position-deletes"] == "2", "files of one row go as a whole"
    assert len(contents(marking, STATE)) == 399


def test_a_row_group_without_a_key_is_not_read_and_newer_rows_are_not_compared(
    tables: TableManager, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_writer, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(positions, "WHOLE_BYTES", 0)
    write(tables, STATE, ROWS)
    set_mode(tables, "merge-on-read")
    looks.clear()
    write(tables, STATE, [thing("t007", -1, lsn=1)])
    assert [(columns, groups) for _, columns, groups in looks] == [(("id", "changed", "lsn"), 1)]
    looks.clear()
    write(tables, STATE, [thing("t008", -1)])
    assert [(columns, groups) for _, columns, groups in looks] == [
        (("id", "changed", "lsn"), 1),
        (tuple(name for name in STATE.arrow.names if name != "id"), 1),
    ], "equally old, so what is not its key must be compared"


def test_a_slice_is_replaced_by_marks(tables: TableManager) -> None:
    write(tables, EDGES, [edge(f"{src}{n}", src, "x") for src in "abcdefgh" for n in range(3)])
    set_mode(tables, "merge-on-read")
    rows = [edge("a0", "a", "x"), edge("a1", "a", "y"), edge("a7", "a", "z")]
    result = write(tables, EDGES, rows, replace_slice=("src", ("a",)))
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (1, 1, 1)
    found = contents(tables, EDGES)
    assert {key[0]: row["dst"] for key, row in found.items() if row["src"] == "a"} == {"a0": "x", "a1": "y", "a7": "z"}
    assert not write(tables, EDGES, rows, replace_slice=("src", ("a",))).written


def test_a_file_without_a_row_left_goes_with_its_deletes(marking: TableManager) -> None:
    write(marking, STATE, delete_keys=pa.table({"id": ["t001", "t002"]}))
    result = write(marking, STATE, delete_keys=pa.table({"id": [row["id"] for row in ROWS]}))
    assert result.rows_deleted == 398
    assert not file_paths(marking, STATE)
    said = summary(marking)
    assert (said["total-position-deletes"], said["total-delete-files"], said["total-records"]) == ("0", "0", "0")
    assert said[WRITE_REASON].startswith("dropped 4 files without a row left")


def test_delete_files_are_merged_before_they_are_many(marking: TableManager) -> None:
    most = 0
    for number in range(60):
        write(marking, STATE, [thing("t007", number, lsn=number + 1), thing(f"t{number:03}", -1, lsn=100)])
        most = max(most, len(delete_files(marking)))
    assert most <= 4 * 2 * merge_group.DELETE_FILES
    assert len(contents(marking, STATE)) == 400
    assert not orphans(marking.iceberg.load(STATE.name))


def test_partitions_merge_their_delete_files_together(marking: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_group, "SMALL_FILES", 1000)  # files that are packed lose their deletes, too
    buckets = sorted(live(marking), key=lambda file: file.path)
    read = FileReader(marking.iceberg.load(STATE.name), ["id"])
    ids = [read.read(file)["id"].to_pylist() for file in buckets]
    merging = 0
    for number in range(32):
        before = delete_files(marking)
        # One bucket is touched from the start, the next from the third write on, and so forth.
        write(marking, STATE, [thing(rows[number], -1, lsn=1) for rows in ids[: 1 + number // 2]])
        merging += not before <= delete_files(marking)
    assert len(ids) == 4
    assert merging == 4, "at every eighth commit, and not for each bucket when it has eight"


def test_the_mode_may_change_at_any_time(marking: TableManager) -> None:
    write(marking, STATE, [thing(f"t{n:03}", -1, lsn=1) for n in range(0, 400, 7)])
    assert delete_files(marking)
    set_mode(marking, "copy-on-write")
    before = contents(marking, STATE)
    write(marking, STATE, [thing(f"t{n:03}", -2, lsn=2) for n in range(0, 400, 40)])
    assert not delete_files(marking), "files that are rewritten leave no deletes behind"
    assert contents(marking, STATE) == before | {
        f"t{n:03}": {**before[f"t{n:03}"], **thing(f"t{n:03}", -2, 2), "names": None} for n in range(0, 400, 40)
    }


def test_hybrid_rewrites_what_reads_would_pay_more_for(marking: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "OPENING", 0)
    set_mode(marking, "hybrid")
    write(marking, STATE, [thing("t007", -1, lsn=1)])
    assert len(delete_files(marking)) == 1
    assert summary(marking)[WRITE_REASON].endswith(" kB: 1 reads for each write")
    set_mode(marking, "hybrid", reads=100_000)
    write(marking, STATE, [thing("t007", -2, lsn=2), thing("t008", -2, lsn=2)])
    assert "rewrote" in summary(marking)[WRITE_REASON]
    set_mode(marking, "hybrid", reads=0)
    write(marking, STATE, [thing(f"t{n:03}", -1, lsn=3) for n in range(300)])
    assert summary(marking)[WRITE_REASON].startswith("marked 299 rows as deleted in 4 files"), "nobody reads"
    assert len(contents(marking, STATE)) == 400


def test_hybrid_rewrites_tiny_files_at_once(marking: TableManager) -> None:
    set_mode(marking, "hybrid")
    write(marking, STATE, [thing("t007", -1, lsn=1)])
    assert not delete_files(marking), "one more file to open costs more"


def test_a_number_of_reads_that_is_none_is_named(marking: TableManager) -> None:
    for wrong in ("many", "-1", "inf", "nan"):
        with marking.iceberg.load(STATE.name).transaction() as transaction:
            transaction.set_properties({READS_PER_WRITE: wrong})
        with pytest.raises(StoreError, match=rf"pkm\.reads-per-write is '{wrong}', not a number"):
            write(marking, STATE, [thing("t007", -1, lsn=1)])


def test_changes_are_exact_and_read_only_what_differs(marking: TableManager, looks: list[Any]) -> None:
    since = marking.iceberg.snapshot_id(STATE.name)
    write(marking, STATE, [thing("t007", -1, lsn=1), thing("new", 1)], delete_keys=pa.table({"id": ["t100"]}))
    looks.clear()
    found = marking.diff(STATE.name, since).read_all().to_pylist()
    assert sorted((row["_change_type"], row["id"]) for row in found) == [
        ("DELETE", "t100"),
        ("INSERT", "new"),
        ("UPDATE_AFTER", "t007"),
        ("UPDATE_BEFORE", "t007"),
    ]
    untouched = {file.path for file in live(marking) if not file.deletes and file.sequence_number == 1}
    assert untouched
    assert not untouched & {path for path, _, _ in looks}


@pytest.mark.parametrize("mode", ["merge-on-read", "hybrid", "copy-on-write"])
@pytest.mark.parametrize("by_filter", [False, True])
def test_a_row_that_another_engine_deleted_twice_is_counted_once(
    local: Place, mode: TableMode, by_filter: bool
) -> None:
    """Else a file that still has a row would be taken for one without any, and be dropped."""
    spec = replace(STATE, partition=())
    tables = TableManager(local.open())
    tables.ensure(spec)
    tables.set_mode(spec.name, mode)
    write(tables, spec, [thing(name, 1) for name in "abc"])

    class DeleteTwice:
        paths: tuple[str, ...] = ()

        def __call__(self, table: Table) -> Writes:
            (file,) = live_files(table, table.current_snapshot())
            first = {file.path: pa.array([0], pa.int64())}
            where = file.file.spec_id, file.file.partition
            return Writes(
                deletes=[write_deletes(table, new_delete_path(table), first, *where) for _ in range(2)],
                operation="delete",
                rows_deleted=1,
            )

    commit(tables.iceberg, spec.name, DeleteTwice(), op_id="elsewhere")
    assert contents(tables, spec).keys() == {"b", "c"}
    if by_filter:
        tables.delete(spec.name, where="id = 'b'")
    else:
        tables.delete(spec.name, pa.table({"id": ["b"]}))
    assert contents(tables, spec).keys() == {"c"}
