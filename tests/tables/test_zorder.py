"""Z-order keeps rows together that are near in several columns."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.tables.sorting import sort
from pkm_pipelines.tables.zorder import ZOrder, interleave

VALUES: list[list[Any]] = [
    [None, 1, 2, 5, 900],
    [None, "", "a", "b", "ü"],
    [None, 0.5, 1.5, 2.5],
    [None, dt.date(2020, 1, 1), dt.date(2021, 1, 1)],
]


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=4))
def test_bits_take_turns(numbers: list[int]) -> None:
    bits = 64 // len(numbers) if len(numbers) > 1 else 32
    found = int(interleave([np.array([number], np.uint64) for number in numbers], bits)[0])
    text = "".join(f"{number:0{bits}b}"[position] for position in range(bits) for number in numbers)
    assert found == int(text, 2)


@pytest.mark.parametrize("values", VALUES, ids=lambda values: type(values[-1]).__name__)
def test_a_rank_keeps_the_order_and_null_comes_first(values: list[Any]) -> None:
    rows = pa.table({"a": values})
    order = ZOrder.sample(["a"], rows.to_batches(), rows.num_rows)
    shuffled = rows.take(pa.array(random.Random(2).sample(range(len(values)), len(values))))
    assert sort(shuffled, order)["a"].to_pylist() == values
    assert len(set(order.keys(rows)["z"].to_pylist())) == len(values)


def test_both_columns_can_be_pruned_by() -> None:
    """Of 64 files a tenth of either column's range touches few; sorted by one column the other one touches all."""
    picked = random.Random(4)
    size = 6400
    rows = pa.table(
        {
            "a": [picked.randrange(1000) for _ in range(size)],
            "b": [f"{picked.randrange(1000):04d}" for _ in range(size)],
        }
    )
    order = ZOrder.sample(["a", "b"], rows.to_batches(max_chunksize=500), size)
    laid = sort(rows, order)
    files = [laid.slice(start, 100) for start in range(0, size, 100)]
    for column, low, high in (("a", 400, 499), ("b", "0400", "0499")):
        touched = 0
        for file in files:
            values = file[column].to_pylist()
            touched += min(values) <= high and max(values) >= low
        assert touched <= 24, f"{touched} files hold some of {column}"


def test_a_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkm_pipelines.tables.zorder.SAMPLE_ROWS", 100)
    rows = pa.table({"a": range(10_000)})
    order = ZOrder.sample(["a"], rows.to_batches(max_chunksize=33), rows.num_rows)
    ranks = order.keys(rows)["z"].to_pylist()
    assert ranks == sorted(ranks)
    assert 90 <= len(set(ranks)) <= 110


def test_lists_have_no_order() -> None:
    rows = pa.table({"names": [["a"], ["b"]]})
    with pytest.raises(StoreError, match="column names is list<item: string>, whose values have no order"):
        ZOrder.sample(["names"], rows.to_batches(), 2)
