"""How data files are laid out: row groups and encodings."""

from __future__ import annotations

import pytest
from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg_datafile import opened
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode, row_group_rows_of
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, event, thing, write


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_row_groups_are_small_where_rows_are_marked(mode: TableMode, tables: TableManager) -> None:
    tables.ensure(STATE)
    tables.set_mode(STATE.name, mode)
    write(tables, STATE, [thing(f"t{number:05}") for number in range(20_000)])
    table = tables.iceberg.load(STATE.name)
    for file in live_files(table, table.current_snapshot()):
        with opened(table, file) as one:
            groups = len(one.row_groups)
        limit = 32_768 if mode == "copy-on-write" else 4096
        assert groups == -(-file.file.record_count // limit)
        assert groups > 1 or mode == "copy-on-write", "the test would show nothing"


def test_a_log_has_row_groups_by_size_alone(tables: TableManager) -> None:
    write(tables, LOG, [event("c0")], "append")
    assert row_group_rows_of(tables.iceberg.load(LOG.name)) is None


def test_only_what_repeats_has_a_dictionary(tables: TableManager) -> None:
    rows = [event(f"c{number}", number) for number in range(500)]
    write(tables, LOG, rows, "append")
    table = tables.iceberg.load(LOG.name)
    (file,) = live_files(table, table.current_snapshot())
    with opened(table, file) as one:
        group = one.parquet.metadata.row_group(0)
    with_dictionary = {
        group.column(leaf).path_in_schema for leaf in range(group.num_columns) if group.column(leaf).has_dictionary_page
    }
    assert {"day"} <= with_dictionary
    assert with_dictionary.isdisjoint({"change_id", "value"})


def test_the_owners_limit_of_row_groups_goes_before_ours(tables: TableManager) -> None:
    def limited(value: str) -> Table:
        with tables.iceberg.load(STATE.name).transaction() as transaction:
            transaction.set_properties({"write.parquet.row-group-limit": value})
        return tables.iceberg.load(STATE.name)

    tables.ensure(STATE)
    assert row_group_rows_of(limited("7")) == 7
    for wrong in ("0", "-1", "many"):
        table = limited(wrong)
        with pytest.raises(StoreError, match=r"silver\.things: its property write\.parquet\.row-group-limit is"):
            row_group_rows_of(table)
