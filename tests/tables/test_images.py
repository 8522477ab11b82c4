"""Rows that are kept beside the marks that they are gone, and what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.table import Table

from pkm_pipelines.model.evolution import AddColumn, DropColumn, RenameColumn
from pkm_pipelines.storage import iceberg_datafile
from pkm_pipelines.storage.iceberg_images import ROW_ID
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.tables import images
from pkm_pipelines.tables.images import Images
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, contents, thing, write
from tests.support.table_model import replayed

ROWS = [thing(f"t{n:03}", n, names=["some", None, "names"], parts=[{"name": "x", "size": n}]) for n in range(300)]


@pytest.fixture
def marking(tables: TableManager) -> TableManager:
    write(tables, STATE, ROWS)
    tables.set_mode(STATE.name, "merge-on-read")
    return tables


def delete_schemas(table: Table) -> list[pa.Schema]:
    """The columns of the delete files that there are."""
    deletes = {delete.file_path for file in live_files(table, table.current_snapshot()) for delete in file.deletes}
    return [pq.read_schema(table.io.new_input(path).open()) for path in sorted(deletes)]


def changed(tables: TableManager, since: int | None) -> list[dict[str, Any]]:
    return tables.changes(STATE.name, since).read_all().to_pylist()


def forbid_data_files(monkeypatch: pytest.MonkeyPatch, paths: set[str]) -> None:
    init = iceberg_datafile.OpenDataFile.__init__

    def guarded(self: Any, table: Any, data: Any, *rest: Any) -> None:
        assert data.file_path not in paths, "a data file was opened for a row that a delete file has"
        init(self, table, data, *rest)

    monkeypatch.setattr(iceberg_datafile.OpenDataFile, "__init__", guarded)


def test_what_changed_is_read_without_opening_what_was_there(
    marking: TableManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = marking.iceberg.load(STATE.name)
    old = {file.path for file in live_files(table, table.current_snapshot())}
    since = table.metadata.current_snapshot_id
    write(marking, STATE, [thing("t007", -1, lsn=1), thing("t008", 8, group="same order"), thing("new", 1)])
    write(marking, STATE, delete_keys=pa.table({"id": ["t011", "t012"]}))
    (column,) = {schema.field("row") for schema in delete_schemas(marking.iceberg.load(STATE.name))}
    assert column.metadata == {b"PARQUET:field_id": str(ROW_ID).encode()}
    assert not column.nullable
    assert [field.metadata[b"PARQUET:field_id"] for field in column.type] == [b"%d" % n for n in range(1, 8)]

    forbid_data_files(monkeypatch, old)
    found = changed(marking, since)
    before = {row["id"]: row for row in found if row["_change_type"] in ("UPDATE_BEFORE", "DELETE")}
    assert before.keys() == {"t007", "t008", "t011", "t012"}
    assert before["t012"]["parts"] == [{"name": "x", "size": 12.0}]
    assert before["t012"]["names"] == ["some", None, "names"]
    assert before["t007"]["value"] == 7


def test_columns_that_changed_since(marking: TableManager) -> None:
    since = marking.iceberg.snapshot_id(STATE.name)
    write(marking, STATE, [thing("t007", -1, lsn=1)])
    marking.evolve(STATE.name, RenameColumn("group", "team"), DropColumn("names"), AddColumn("mood", pa.string()))
    assert any("row" in schema.names for schema in delete_schemas(marking.iceberg.load(STATE.name)))
    (before, after) = sorted(changed(marking, since), key=lambda row: row["_change_type"], reverse=True)
    assert (before["_change_type"], before["value"], after["value"]) == ("UPDATE_BEFORE", 7, -1)
    assert before["mood"] is None
    assert "team" in before
    assert "names" not in before


@pytest.mark.parametrize("limit", [0, 2_000, images.KEPT_BYTES])
def test_changes_are_the_same_however_many_rows_are_kept(
    marking: TableManager, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(Images.__init__, "__defaults__", (limit,))
    since = marking.iceberg.snapshot_id(STATE.name)
    before = contents(marking, STATE)
    is_kept = False
    for lsn in range(1, 12):  # more than eight, so that delete files are merged
        write(marking, STATE, [thing(f"t{n:03}", -n, lsn=lsn) for n in range(lsn, 300, 7)])
        is_kept |= any("row" in schema.names for schema in delete_schemas(marking.iceberg.load(STATE.name)))
    assert is_kept == (limit > 0)
    assert replayed(STATE, before, marking.diff(STATE.name, since)) == contents(marking, STATE)
    for step in marking.history(STATE.name)[:-2]:
        found = marking.diff(STATE.name, step.parent_id, step.snapshot_id)
        then, now = (contents(marking, STATE, snapshot_id=one) for one in (step.parent_id, step.snapshot_id))
        assert replayed(STATE, then, found) == now


@given(
    known=st.lists(st.lists(st.integers(0, 50), unique=True, max_size=8), max_size=5),
    asked=st.sets(st.integers(0, 50), min_size=1),
)
def test_all_of_them_or_none(known: list[list[int]], asked: set[int]) -> None:
    kept = Images()
    for positions in known:
        kept.add("file", np.array(positions, dtype=np.int64), pa.table({"at": pa.array(positions, pa.int64())}))
    found = kept.of("file", np.array(sorted(asked), dtype=np.int64))
    if asked <= {position for positions in known for position in positions}:
        assert found is not None
        assert found["at"].to_pylist() == sorted(asked)
    else:
        assert found is None
    assert kept.of("other", np.array([1], dtype=np.int64)) is None


def test_rows_of_another_writer_without_images_are_read_from_their_file(marking: TableManager) -> None:
    write(marking, STATE, [thing("t007", -1, lsn=1)])
    table = marking.iceberg.load(STATE.name)
    file = next(file for file in live_files(table, table.current_snapshot()) if file.deletes)
    position = next(n for n in range(file.file.record_count))
    (rows,) = FileReader(table, ["id"]).deleted_at(file, pa.array([position]), ())
    assert rows.num_rows == 1
