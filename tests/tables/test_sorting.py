"""Sorting more rows than fit into memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.sorting import ColumnOrder, Sorter, merge, sort
from tests.support.iceberg import LOG, batch, event

ORDER = ColumnOrder(["a", "b"])
ROWS = st.lists(st.tuples(st.sampled_from([None, "x", "y", "ü"]), st.sampled_from([None, 1, 2, 3])), max_size=12)


def rows(values: list[tuple[str | None, int | None]], stream: int) -> pa.Table:
    return pa.table(
        {
            "a": pa.array([a for a, _ in values], pa.string()),
            "b": pa.array([b for _, b in values], pa.int64()),
            "from": pa.array([stream] * len(values), pa.int64()),
        }
    )


@given(st.lists(ROWS, max_size=5), st.integers(1, 5))
def test_streams_are_merged_into_one_order(streams: list[list[tuple[str | None, int | None]]], size: int) -> None:
    parts = [sort(rows(values, number), ORDER) for number, values in enumerate(streams)]
    slices: list[Iterator[pa.Table]] = [
        iter([part.slice(start, size) for start in range(0, part.num_rows, size)]) for part in parts
    ]
    merged = pa.concat_tables([rows([], 0), *merge(slices, ORDER)])
    assert merged.select(["a", "b"]).to_pylist() == (
        sort(pa.concat_tables([rows([], 0), *parts]), ORDER).select(["a", "b"]).to_pylist()
    )
    assert sorted(map(str, merged.to_pylist())) == sorted(str(row) for part in parts for row in part.to_pylist())


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 1 << 30])
def test_what_does_not_fit_goes_through_files(tables: TableManager, memory_bytes: int) -> None:
    picked = random.Random(1)
    table = tables.iceberg.load(LOG.name)
    writer, reader = FileWriter(table), FileReader(table)
    ids = [f"{picked.randrange(10**6):06d}" for _ in range(2000)]
    rows = writer.conform(batch(LOG, [event(id) for id in ids]))
    [(partition, _)] = writer.split(rows)
    sorter = Sorter(writer, reader, partition, ColumnOrder(["change_id"]), memory_bytes)
    for start in range(0, len(ids), 100):
        sorter.add(rows.slice(start, 100))
    assert [id for some in sorter.rows() for id in some["change_id"].to_pylist()] == sorted(ids)
    assert len(writer.paths) == {1: 20, 20_000: 10, 1 << 30: 0}[memory_bytes]
