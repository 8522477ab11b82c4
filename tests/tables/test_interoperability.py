"""Other engines read the same rows after each operation, in each mode, with no help from us."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.query.sql import load_extension
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode, write_mode_properties
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import EDGES, STATE, Place, contents, edge, thing, write
from tests.support.position_deletes import delete_positions
from tests.support.table_model import Compaction

Found = list[tuple[Any, ...]]


class Engines:
    """The rows of one table by every engine at hand."""

    def __init__(self, tables: TableManager, spec: TableSpec) -> None:
        self.tables, self.spec = tables, spec
        self.columns = [column.name for column in spec.columns if not pa.types.is_nested(column.type)]
        self.duckdb = duckdb.connect(config={"autoinstall_known_extensions": False})
        for extension in ("avro", "iceberg"):
            load_extension(self.duckdb, extension)

    def agree(self) -> int:
        """Check that all read what we read, now and at each snapshot of the past; returns the number of rows."""
        for version in self.tables.history(self.spec.name):
            self._agree_on(version.snapshot_id)
        return len(contents(self.tables, self.spec))

    def _agree_on(self, snapshot: int) -> None:
        ours = self._sorted(contents(self.tables, self.spec, snapshot_id=snapshot).values())
        table = self.tables.iceberg.load(self.spec.name)
        assert self._sorted(table.scan(snapshot_id=snapshot).to_arrow().to_pylist()) == ours, "pyiceberg"
        frame = pl.scan_iceberg(table, snapshot_id=snapshot).select(self.columns).collect()
        assert self._sorted(frame.to_dicts()) == ours, "Polars"
        url = table.metadata_location.removeprefix("file://")
        query = f"SELECT * FROM iceberg_scan('{url}', snapshot_from_id => {snapshot}::UBIGINT)"
        assert self._sorted(self.duckdb.execute(query).to_arrow_table().to_pylist()) == ours, "DuckDB"

    def _sorted(self, rows: Any) -> Found:
        return sorted((tuple(row[name] for name in self.columns) for row in rows), key=repr)


@pytest.fixture(autouse=True)
def planner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars plans its scans with pyiceberg; its own planner is a package that is not at hand."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")


@pytest.fixture(params=[*TABLE_MODES, "changing"])
def modes(request: pytest.FixtureRequest) -> list[TableMode]:
    """The mode before each write: always one, or another each time."""
    return list(TABLE_MODES) if request.param == "changing" else [request.param]


@pytest.mark.parametrize("is_partitioned", [True, False])
def test_every_engine_reads_the_same_rows(local: Place, modes: list[TableMode], is_partitioned: bool) -> None:
    tables = TableManager(local.open())
    spec = STATE if is_partitioned else replace(STATE, partition=())
    tables.ensure(spec)
    engines = Engines(tables, spec)
    written = 0

    def turn() -> None:
        nonlocal written
        mode = modes[written % len(modes)]
        with tables.iceberg.load(spec.name).transaction() as transaction:
            transaction.set_properties(write_mode_properties(mode))
        written += 1

    turn()
    write(tables, spec, [thing(f"t{n:03}", n, group="odd" if n % 2 else "even") for n in range(200)])
    assert engines.agree() == 200
    for lsn in range(1, 5):  # some of them again and again
        turn()
        write(tables, spec, [thing(f"t{n:03}", -n, lsn, group="odd") for n in range(0, 240, 20 * lsn)])
    assert engines.agree() == 202
    turn()
    write(tables, spec, delete_keys=pa.table({"id": [f"t{n:03}" for n in range(0, 200, 3)]}))
    assert engines.agree() == 202 - 67
    turn()
    rows = [thing(f"t{n:03}", 7, lsn=9, group="odd") for n in range(1, 50)]
    write(tables, spec, rows, "replace", replace_where=Slice("group", ("odd",)))
    left = engines.agree()
    turn()
    commit(tables.iceberg, spec.name, Compaction(), op_id=str(uuid.uuid4()))
    assert engines.agree() == left
    delete_positions(tables, spec, "id", {"t001", "t002", "t004"})  # as another engine does
    turn()
    write(tables, spec, [thing("t002", 2, lsn=10), thing("t005", 5, lsn=10), thing("t006", 6, lsn=10)])
    assert engines.agree() == len(contents(tables, spec))
    turn()
    write(tables, spec, [thing("t001", 1)], "replace")
    assert engines.agree() == 1


def test_rows_replaced_by_a_slice_of_a_table_whose_key_is_not_its_partition(
    local: Place, modes: list[TableMode]
) -> None:
    tables = TableManager(local.open())
    spec = replace(EDGES, determined=())
    tables.ensure(spec)
    engines = Engines(tables, spec)
    with tables.iceberg.load(spec.name).transaction() as transaction:
        transaction.set_properties(write_mode_properties(modes[0]))
    write(tables, spec, [edge(f"{src}{n}", src, "x") for src in "abcdef" for n in range(20)])
    write(tables, spec, [edge(f"a{n}", "a", "y") for n in range(5, 30)], replace_slice=("src", ("a",)))
    assert engines.agree() == 125
    write(tables, spec, [edge("b1", "c", "moved")])  # to another partition
    assert engines.agree() == 125
