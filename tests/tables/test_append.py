"""Logs: every row once, whoever appends it and how often."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import Slice
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.tables.frames import spec_of
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import DAY, LOG, STATE, contents, delta, event, file_paths, thing, write


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from here on."""
    seen: list[str] = []
    batches = FileReader.batches

    def counted(self: FileReader, file: Any) -> Any:
        seen.append(file.path)
        return batches(self, file)

    monkeypatch.setattr(FileReader, "batches", counted)
    return seen


def month(number: int) -> dt.date:
    return dt.date(2026, number, 1)


def test_a_repeated_append_adds_nothing(tables: TableManager) -> None:
    rows = [event(f"c{i}", i, month(1 + i % 3)) for i in range(30)]
    assert write(tables, LOG, rows, "append").rows_added == 30
    again = write(tables, LOG, rows, "append")
    assert (again.written, again.rows_added) == (False, 0)
    mixed = write(tables, LOG, [*rows[:5], event("new", 1, month(2))], "append")
    assert (mixed.written, mixed.rows_added) == (True, 1)
    assert len(contents(tables, LOG)) == 31


def test_within_a_delta_the_first_of_equal_keys_stays(tables: TableManager) -> None:
    twice = delta(LOG, [event("a", 1), event("a", 2)], "append")
    twice.rows = [*twice.rows, *delta(LOG, [event("a", 3), event("b", 4)], "append").rows]
    assert tables.write(twice).rows_added == 2
    assert {key: row["value"] for key, row in contents(tables, LOG).items()} == {"a": 1, "b": 4}


def test_only_files_that_may_hold_a_key_are_read(tables: TableManager, read_paths: list[str]) -> None:
    write(tables, LOG, [event("january", 1, month(1))], "append")
    for number in range(10):
        write(tables, LOG, [event(f"f{number}", 1, month(2))], "append")
    read_paths.clear()
    assert write(tables, LOG, [event("f3x", 1, month(2))], "append").rows_added == 1
    assert read_paths == [], "the bounds of a file of one row say which key it holds"
    assert not write(tables, LOG, [event("f3", 1, month(2))], "append").written
    assert len(read_paths) == 1
    read_paths.clear()
    assert write(tables, LOG, [event("january2", 1, month(3))], "append").rows_added == 1
    assert read_paths == []


def test_a_stream_of_many_batches_makes_few_files(tables: TableManager) -> None:
    stream = delta(LOG, mode="append")
    stream.rows = (
        batch for start in range(20) for batch in delta(LOG, [event(f"c{start}-{i}") for i in range(50)], "append").rows
    )
    assert tables.write(stream).rows_added == 1000
    assert len(file_paths(tables, LOG)) == 1


def test_a_delta_beyond_the_limit_is_written_as_it_comes(tables: TableManager) -> None:
    small = TableManager(tables.iceberg, memory_bytes=20_000)
    stream = delta(LOG, mode="append")
    stream.rows = (
        batch for start in range(20) for batch in delta(LOG, [event(f"c{start}-{i}") for i in range(50)], "append").rows
    )
    before = pa.total_allocated_bytes()
    assert small.write(stream).rows_added == 1000
    assert pa.total_allocated_bytes() - before < 200_000
    assert 1 < len(file_paths(tables, LOG)) < 20
    assert len(contents(tables, LOG)) == 1000


def test_nothing_is_taken_from_a_log(tables: TableManager) -> None:
    with pytest.raises(StoreError, match="takes nothing away"):
        write(tables, LOG, [event("a")], "append", delete_keys=pa.table({"change_id": ["a"]}))
    with pytest.raises(StoreError, match="rows are merged, not appended"):
        write(tables, STATE, [thing("a")], "append")


@pytest.fixture
def keyless(tables: TableManager) -> TableManager:
    schema = pa.schema([("day", pa.date32()), ("n", pa.int64())])
    tables.ensure(spec_of("gold", "daily", schema))
    return tables


def daily(tables: TableManager) -> list[tuple[dt.date, int]]:
    return sorted((row["day"], row["n"]) for row in tables.read("gold.daily").read_all().to_pylist())


def put(tables: TableManager, mode: Any, rows: list[tuple[dt.date, int]], **how: Any) -> Any:
    return write(tables, tables.spec("gold.daily"), [{"day": day, "n": n} for day, n in rows], mode, **how)


def days(count: int) -> list[tuple[dt.date, int]]:
    return [(DAY + dt.timedelta(days=n), n) for n in range(count)]


def test_a_table_without_a_key_takes_equal_rows(keyless: TableManager) -> None:
    put(keyless, "append", days(2))
    put(keyless, "append", days(2))
    assert daily(keyless) == sorted(days(2) * 2)


def test_a_table_without_a_key_is_replaced_in_one_snapshot(keyless: TableManager) -> None:
    put(keyless, "append", days(3))
    first = keyless.iceberg.snapshot_id("gold.daily")
    result = put(keyless, "replace", days(5)[3:])
    assert (result.rows_added, result.rows_deleted) == (2, 3)
    assert daily(keyless) == days(5)[3:]
    history = keyless.history("gold.daily")
    assert [version.operation for version in history] == ["overwrite", "append"]
    assert history[0].parent_id == first


def test_a_part_of_a_table_without_a_key_is_replaced(keyless: TableManager) -> None:
    put(keyless, "append", days(10))
    part = Slice("day", first=DAY + dt.timedelta(days=3), before=DAY + dt.timedelta(days=6))
    rows = [(DAY + dt.timedelta(days=4), 44)]
    result = put(keyless, "replace", rows, replace_where=part)
    assert (result.rows_added, result.rows_deleted) == (1, 3)
    assert daily(keyless) == sorted([*days(3), *rows, *days(10)[6:]])
    nothing = put(keyless, "replace", [], replace_where=Slice("day", before=DAY))
    assert not nothing.written
    assert put(keyless, "replace", [], replace_where=part).rows_deleted == 1
    assert put(keyless, "replace", []).rows_deleted == 7
    assert daily(keyless) == []


def test_a_table_without_a_key_cannot_be_merged_into(keyless: TableManager) -> None:
    with pytest.raises(StoreError, match="no key to merge or delete by"):
        put(keyless, "merge", days(1))
    with pytest.raises(StoreError, match="no key to tell rows apart by"):
        keyless.diff("gold.daily", None)
