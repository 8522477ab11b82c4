"""Whatever a column can hold reads back as it was written, after compaction too: random types, nulls and batches."""

from __future__ import annotations

import datetime as dt
import math
import random
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.schema import TIMESTAMP, Column, TableSpec
from pkm_pipelines.tables.manager import TableManager
from tests.tables.test_compact import compact

PLAIN = (
    pa.bool_(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.binary(),
    pa.date32(),
    pa.timestamp("us"),
    TIMESTAMP,
)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def some_type(rng: random.Random, depth: int = 0) -> pa.DataType:
    choice = rng.random() if depth < 3 else 1.0
    if choice < 0.2:
        return pa.list_(some_type(rng, depth + 1))
    if choice < 0.4:
        return pa.struct([(f"f{i}", some_type(rng, depth + 1)) for i in range(rng.randint(1, 3))])
    return rng.choice(PLAIN)


def some_value(rng: random.Random, kind: pa.DataType) -> Any:
    if rng.random() < 0.2:
        return None
    if pa.types.is_list(kind):
        return [some_value(rng, kind.value_type) for _ in range(rng.randint(0, 3))]
    if pa.types.is_struct(kind):
        return {one.name: some_value(rng, one.type) for one in (kind.field(i) for i in range(kind.num_fields))}
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_integer(kind):
        most = (1 << (kind.bit_width - 1)) - 1
        return rng.choice([0, -1, most, -most - 1, rng.randint(-9, 9)])
    if pa.types.is_floating(kind):
        return rng.choice([0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, -(2.0**-10)])
    if pa.types.is_string(kind):
        return rng.choice(["", "a", "ä\x00ß", "𝄞" * 70, "\U0010ffff" * 20, "same"])
    if pa.types.is_binary(kind):
        return rng.choice([b"", b"\x00", b"\xff" * 80, rng.randbytes(5)])
    if pa.types.is_date(kind):
        return dt.date.fromordinal(rng.choice([1, 719_163, 3_652_059, rng.randint(1, 3_652_059)]))
    moment = EPOCH + dt.timedelta(microseconds=rng.choice([-1, 0, rng.randint(-(10**16), 10**17)]))
    return moment if kind.tz else moment.replace(tzinfo=None)


def shown(rows: pa.Table) -> list[str]:
    """Rows as texts, which tell -0.0 from 0.0 and NaN from nothing."""
    return sorted(repr(row) for row in rows.to_pylist())


@pytest.mark.parametrize("seed", range(12))
def test_what_is_appended_reads_back(seed: int, tables: TableManager) -> None:
    rng = random.Random(seed)
    columns: list[Column] = []
    for number in range(rng.randint(1, 6)):
        last = columns[-1] if columns else None
        columns.append(Column((last.id if last else 0) + 1, f"c{number}", some_type(rng), "Anything"))
    spec = TableSpec("gold", "anything", "Anything.", "log", tuple(columns), ())
    tables.ensure(spec)
    written: list[pa.Table] = []
    for _ in range(3):
        rows = [
            {column.name: some_value(rng, column.type) for column in columns} for _ in range(rng.choice([0, 1, 40]))
        ]
        written.append(pa.Table.from_pylist(rows, spec.arrow))
        tables.append(spec.name, written[-1].slice(0, 7))
        tables.append(spec.name, written[-1].slice(7))
    wanted = shown(pa.concat_tables(written))
    found = tables.read(spec.name).read_all()
    assert found.schema.equals(spec.arrow)
    assert shown(found) == wanted
    compact(tables, spec)
    assert shown(tables.read(spec.name).read_all()) == wanted
    assert tables.changes(spec.name, None, net=True).read_all().num_rows == len(wanted)
    assert tables.iceberg.load(spec.name).scan().to_arrow().num_rows == len(wanted)
