"""Deletes by position: written, read by us and by pyiceberg, settled when their data files go; and branches."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.manifest import ManifestContent, ManifestWriterV2
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType

from pkm_pipelines.model.errors import SnapshotNotFoundError
from pkm_pipelines.model.records import CommitResult
from pkm_pipelines.storage import iceberg_deletes, iceberg_writer
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_datafile import opened
from pkm_pipelines.storage.iceberg_deletes import (
    deleted_positions,
    joined,
    new_delete_path,
    only_file,
    read_deletes,
    write_deletes,
)
from pkm_pipelines.storage.iceberg_history import watermarks_of
from pkm_pipelines.storage.iceberg_manifests import LiveFile, files_between, live_files, manifests_of
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes, ask_catalog, seen_from, set_ref
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, Place, contents, event, write
from tests.support.position_deletes import delete_positions
from tests.support.warehouse_files import orphans

STRING = pa.field("change_id", pa.string(), False, {"PARQUET:field_id": "1"})
# Two files of four rows in one partition.
ROWS = [event(f"c{number}", number) for number in range(8)]


class Change:
    """A plan that does what a function says with the live files, by path."""

    def __init__(self, change: Any) -> None:
        self._change = change
        self.paths: list[str] = []

    def __call__(self, table: Table) -> Writes:
        writes: Writes = self._change(table, live(table))
        self.paths += writes.paths
        return writes


def live(table: Table) -> list[LiveFile]:
    return sorted(live_files(table, table.metadata.current_snapshot()), key=lambda file: file.sequence_number)


def change(tables: TableManager, function: Any, **options: Any) -> CommitResult:
    return commit(tables.iceberg, LOG.name, Change(function), op_id=str(uuid.uuid4()), **options)


def mark(table: Table, positions: Mapping[str, Sequence[int]], like: LiveFile) -> Any:
    found = {path: pa.array(values, pa.int64()) for path, values in positions.items()}
    return write_deletes(table, new_delete_path(table), found, like.file.spec_id, like.file.partition)


def totals(tables: TableManager) -> tuple[int, int, int]:
    """Rows, delete files and deleted positions by the summary, which must be what the table holds."""
    table = tables.iceberg.load(LOG.name)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    rows, files, positions = (
        int(snapshot.summary.get(name) or 0)
        for name in ("total-records", "total-delete-files", "total-position-deletes")
    )
    kept = {delete.file_path: delete for file in live(table) for delete in file.deletes}
    assert (len(kept), sum(delete.record_count for delete in kept.values())) == (files, positions)
    assert len(contents(tables, LOG)) == rows - positions == len(table.scan().to_arrow())
    return rows, files, positions


@pytest.fixture
def filled(tables: TableManager) -> TableManager:
    write(tables, LOG, ROWS[:4], "append")
    write(tables, LOG, ROWS[4:], "append")
    return tables


def delete_some(tables: TableManager) -> CommitResult:
    """One delete file for one data file, and one for both."""

    def plan(table: Table, files: list[LiveFile]) -> Writes:
        first, second = files
        both = mark(table, {first.path: [0, 2], second.path: [3]}, first)
        return Writes(deletes=[mark(table, {first.path: [1]}, first), both], operation="delete", rows_deleted=4)

    return change(tables, plan)


def test_rows_go_by_position_for_us_and_for_pyiceberg(filled: TableManager) -> None:
    before = filled.iceberg.snapshot_id(LOG.name)
    assert delete_some(filled).rows_deleted == 4
    assert totals(filled) == (8, 2, 4)
    assert set(contents(filled, LOG)) == {"c3", "c4", "c5", "c6"}
    assert len(contents(filled, LOG, snapshot_id=before)) == 8
    table = filled.iceberg.load(LOG.name)
    contents_of = [manifest.content for manifest in manifests_of(table, table.current_snapshot())]
    assert sorted(contents_of) == [ManifestContent.DATA, ManifestContent.DATA, ManifestContent.DELETES]
    assert not orphans(table)


def test_deletes_go_with_the_data_files_they_speak_of(filled: TableManager) -> None:
    delete_some(filled)
    change(filled, lambda table, files: Writes(removed=files[:1], operation="delete"))
    assert totals(filled) == (4, 1, 1), "one file is gone, of the other only what still applies is left"
    left = live(filled.iceberg.load(LOG.name))[0]
    assert [only_file(delete) for delete in left.deletes] == [left.path]
    change(filled, lambda table, files: Writes(removed=files, operation="delete"))
    assert totals(filled) == (0, 0, 0)
    assert not orphans(filled.iceberg.load(LOG.name))


def test_a_rewrite_takes_deletes_off_for_good(filled: TableManager) -> None:
    delete_some(filled)
    before = contents(filled, LOG)

    def rewrite(table: Table, files: list[LiveFile]) -> Writes:
        writer = FileWriter(table)
        rows = FileReader(table).read(files[0])
        added = [file for key, part in writer.split(rows) for file in writer.write(key, part)]
        return Writes(added=added, removed=files[:1], operation="replace")

    since = filled.iceberg.snapshot_id(LOG.name)
    change(filled, rewrite)
    assert totals(filled) == (5, 1, 1)
    assert contents(filled, LOG) == before
    assert not filled.diff(LOG.name, since).read_all().num_rows


def test_delete_files_are_replaced_by_one_that_says_the_same(filled: TableManager) -> None:
    delete_some(filled)
    before = contents(filled, LOG)

    def pack(table: Table, files: list[LiveFile]) -> Writes:
        old = list({delete.file_path: delete for file in files for delete in file.deletes}.values())
        positions = joined(read_deletes(table.io, delete) for delete in old)
        new = write_deletes(table, new_delete_path(table), positions, old[0].spec_id, old[0].partition)
        return Writes(deletes=[new], removed_deletes=old, operation="replace")

    change(filled, pack)
    assert totals(filled) == (8, 1, 4)
    assert contents(filled, LOG) == before


def test_deletes_of_other_engines_are_settled_too(filled: TableManager) -> None:
    delete_positions(filled, LOG, "change_id", {"c0", "c3", "c5"})
    assert totals(filled) == (8, 1, 3)
    change(filled, lambda table, files: Writes(removed=files[1:], operation="delete"))
    assert totals(filled) == (4, 1, 2)
    assert set(contents(filled, LOG)) == {"c1", "c2"}


def test_a_delete_file_is_read_once_for_all_data_files(filled: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    delete_some(filled)
    table = filled.iceberg.load(LOG.name)
    reads: list[str] = []
    read = iceberg_deletes._read
    monkeypatch.setattr(iceberg_deletes, "_read", lambda io, file: (reads.append(file.file_path), read(io, file))[1])
    for _ in range(3):
        assert len(contents(filled, LOG)) == 4
    assert sorted(reads) == sorted({delete.file_path for file in live(table) for delete in file.deletes})


def test_a_large_delete_file_is_read_for_one_data_file_at_a_time(
    filled: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_deletes, "_LARGE", 1)
    monkeypatch.setattr(iceberg_deletes, "_read", None)
    delete_positions(filled, LOG, "change_id", {"c0", "c3", "c5"})
    table = filled.iceberg.load(LOG.name)
    found = [deleted_positions(table.io, file.file, file.deletes).to_pylist() for file in live(table)]
    assert found == [[0, 3], [1]]


def test_two_snapshots_differ_in_the_files_that_other_deletes_name(filled: TableManager) -> None:
    table = filled.iceberg.load(LOG.name)
    before = table.current_snapshot()
    change(
        filled, lambda table, files: Writes(deletes=[mark(table, {files[0].path: [1]}, files[0])], operation="delete")
    )
    table = filled.iceberg.load(LOG.name)
    gone, came = files_between(table, before, table.current_snapshot())
    assert [file.path for file in gone] == [file.path for file in came] == [live(table)[0].path]
    assert [len(file.deletes) for file in (*gone, *came)] == [0, 1]
    rows = pa.Table.from_batches(FileReader(table, ["change_id"]).at(came[0], pa.array([1, 3])))
    assert rows.column(0).to_pylist() == ["c1", "c3"], "whether deleted or not"


def test_rows_at_positions_of_some_row_groups(tables: TableManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg_writer, "ROW_GROUP_BYTES", 500)
    write(tables, LOG, [event(f"c{number:03}", number) for number in range(100)], "append")
    table = tables.iceberg.load(LOG.name)
    file = live(table)[0]
    reader = FileReader(table, ["value", "change_id"])
    with opened(table, file) as one:
        assert len(one.row_groups) > 5
        everything = pa.Table.from_batches(reader.stored(one))["value"].to_pylist()
        bounds = one.bounds(STRING)
        assert bounds is not None
        assert (bounds[0][0], bounds[-1][1]) == ("c000", "c099")
        assert one.bounds(pa.field("names", pa.list_(pa.string()))) is None
        positions = np.array([0, 1, 40, 41, 99])
        groups = one.groups_of(positions)
        assert len(groups) == 3
        assert one.positions(one.places(positions, groups), groups).tolist() == positions.tolist()
        some = pa.Table.from_batches(reader.stored_at(one, positions))["value"].to_pylist()
        assert some == [everything[position] for position in positions]
        assert not list(reader.stored_at(one, np.array([], np.int64)))


def test_pyiceberg_has_the_parts_that_delete_manifests_are_made_of() -> None:
    assert callable(ManifestWriterV2.content)
    assert isinstance(ManifestWriterV2.__dict__["_meta"], property)


def test_a_branch_is_written_to_and_read_apart_from_main(filled: TableManager) -> None:
    table = filled.iceberg.load(LOG.name)
    head = table.metadata.current_snapshot_id
    assert head is not None
    ask_catalog(table, [set_ref("draft", head, SnapshotRefType.BRANCH)], [])
    gone = change(
        filled,
        lambda table, files: Writes(removed=files[:1], operation="delete"),
        branch="draft",
        watermarks={"one": 5},
    )
    again = change(
        filled,
        lambda table, files: Writes(removed=files, operation="delete"),
        branch="draft",
        expect={"one": 5},
    )
    table = filled.iceberg.load(LOG.name)
    assert table.metadata.current_snapshot_id == head
    assert len(contents(filled, LOG)) == 8
    assert len(contents(filled, LOG, snapshot_id=gone.snapshot_id)) == 4
    seen = seen_from(table, "draft")
    assert seen.metadata.current_snapshot_id == again.snapshot_id
    assert (watermarks_of(seen), watermarks_of(table)) == ({"one": 5}, {})
    write(filled, LOG, [event("main")], "append")  # both lines go on
    assert len(contents(filled, LOG)) == 9
    assert not contents(filled, LOG, snapshot_id=again.snapshot_id)


def test_an_operation_is_known_on_its_own_branch(filled: TableManager) -> None:
    table = filled.iceberg.load(LOG.name)
    ask_catalog(table, [set_ref("draft", table.metadata.current_snapshot_id or 0, SnapshotRefType.BRANCH)], [])

    def drop(branch: str) -> CommitResult:
        plan = Change(lambda table, files: Writes(removed=files[:1], operation="delete"))
        return commit(filled.iceberg, LOG.name, plan, op_id="same", branch=branch)

    first = drop("draft")
    assert drop("draft").snapshot_id == first.snapshot_id
    assert drop("main").snapshot_id != first.snapshot_id


def test_a_branch_that_is_none_is_named(filled: TableManager, local: Place) -> None:
    filled.tag(LOG.name, "release", filled.iceberg.snapshot_id(LOG.name) or 0)
    for name in ("nope", "release"):
        with pytest.raises(SnapshotNotFoundError, match=rf"bronze\.events has no branch '{name}' \(there are: main\)"):
            change(filled, lambda table, files: Writes(), branch=name)
