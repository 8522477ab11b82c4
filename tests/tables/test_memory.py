"""The ceiling on what a write holds in memory, measured in Arrow's own pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pkm_pipelines.model.records import Delta
from pkm_pipelines.storage import iceberg_writer
from pkm_pipelines.storage.iceberg_schema import TableMode, write_mode_properties
from pkm_pipelines.tables import staging
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.staging import Staging
from tests.support.iceberg import STATE, Place
from tests.support.warehouse_files import orphans

CEILING = 48 << 20
ROWS = 120_000
# About 800 bytes a row: twice the ceiling in all, in one partition.
SPEC = replace(STATE, partition=())
TEXT = "x" * 700


def batches(numbers: np.ndarray, lsn: int) -> Iterator[pa.RecordBatch]:
    """Rows in batches that are made when they are asked for."""
    for start in range(0, len(numbers), 2000):
        part = numbers[start : start + 2000].tolist()
        yield pa.RecordBatch.from_pydict(
            {
                "id": [f"t{number:07}" for number in part],
                "group": [f"{TEXT}{number}" for number in part],
                "value": [number + lsn for number in part],
                "names": pa.nulls(len(part), pa.list_(pa.string())),
                "parts": pa.nulls(len(part), SPEC.arrow.field("parts").type),
                "changed": pa.array([lsn] * len(part), pa.timestamp("us", tz="UTC")),
                "lsn": [lsn] * len(part),
            },
            schema=SPEC.arrow,
        )


@pytest.fixture
def pool() -> Iterator[Callable[[], int]]:
    """A pool of this test's own; gives the most bytes that were held at once."""
    default = pa.default_memory_pool()
    own = pa.proxy_memory_pool(default)
    pa.set_memory_pool(own)
    yield lambda: own.max_memory() or 0
    pa.set_memory_pool(default)


@pytest.mark.parametrize("mode", ["copy-on-write", "merge-on-read"])
def test_a_delta_twice_as_large_as_the_ceiling_is_merged_below_it(
    local: Place, mode: TableMode, pool: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_writer, "ROW_GROUP_BYTES", 1 << 20)
    tables = TableManager(local.open(), memory_bytes=CEILING)
    tables.ensure(SPEC)
    with tables.iceberg.load(SPEC.name).transaction() as transaction:
        transaction.set_properties(write_mode_properties(mode))
    numbers = np.random.default_rng(1).permutation(ROWS)
    first = tables.write(Delta(SPEC.name, batches(numbers, 1), "merge", "first"))
    assert first.rows_added == ROWS
    changed = np.concatenate([numbers[: ROWS // 2], np.arange(ROWS, ROWS + 1000)])
    second = tables.write(Delta(SPEC.name, batches(changed, 2), "merge", "second"))
    assert (second.rows_added, second.rows_updated) == (1000, ROWS // 2)
    assert not tables.write(Delta(SPEC.name, batches(changed, 2), "merge", "third")).written
    assert 2 * ROWS * 700 > 2 * CEILING
    assert CEILING / 4 < pool() < CEILING, "less would mean that nothing was measured"
    found = tables.read(SPEC.name, columns=["value"]).read_all()["value"].to_numpy()
    expected = np.concatenate([changed + 2, numbers[ROWS // 2 :] + 1])
    assert np.array_equal(np.sort(found), np.sort(expected))
    assert not orphans(tables.iceberg.load(SPEC.name))


def test_parts_hold_all_rows_of_a_key_in_their_order(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_SAMPLED", 8)
    tables = TableManager(local.open())
    tables.ensure(SPEC)
    table = tables.iceberg.load(SPEC.name)
    writer = iceberg_writer.FileWriter(table)
    staged = Staging(table, writer, 3_000_000, ["id", "lsn"])
    numbers = np.random.default_rng(2).integers(0, 1000, 4000)
    staged.fill(batches(numbers, 7))
    assert staged.count_parts(()) > 5
    seen: set[str] = set()
    rows = 0
    for part in staged.parts(()):
        keys = part["id"].to_pylist()
        assert not seen & set(keys), "each key is in one part"
        assert len(keys) < 2 * 4000 / staged.count_parts(()), "and parts are of about one size"
        seen |= set(keys)
        rows += len(keys)
    assert (rows, len(seen)) == (4000, len(set(numbers.tolist())))
    assert [part.num_rows for part in staged.parts(())] == [part.num_rows for part in staged.parts(())]
