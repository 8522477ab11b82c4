"""How many distinct values there are, about."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.tables.distinct import KEPT, DistinctCount, count_distinct, countable
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, thing, write


@pytest.mark.parametrize("distinct", [0, 1, 100, KEPT - 1, KEPT, 50_000])
@pytest.mark.parametrize("as_text", [True, False])
def test_the_estimate_is_close(distinct: int, as_text: bool) -> None:
    values = [number % distinct for number in range(2 * distinct)] if distinct else []
    random.Random(1).shuffle(values)
    found = DistinctCount()
    for start in range(0, len(values), 7000):
        part = values[start : start + 7000]
        found.add(pa.array([*map(str, part), None]) if as_text else pa.array([*part, None], pa.int64()))
    if distinct < KEPT:
        assert found.estimate == distinct
    else:
        assert abs(found.estimate / distinct - 1) < 0.05, "three standard errors"


def test_columns_of_a_table(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"id{n}", n % 3, n, group="red" if n % 2 else None) for n in range(20)])
    write(tables, STATE, [thing("id1", 7, 99)])
    table = tables.iceberg.load(STATE.name)
    assert countable(table) == ["id", "group", "value", "changed", "lsn"]
    found = count_distinct(table, countable(table), NullProgress())
    assert found == {"id": 20, "group": 1, "value": 4, "changed": 20, "lsn": 20}
