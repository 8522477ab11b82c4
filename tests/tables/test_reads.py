"""Reads of hybrid tables: which are counted, by how much, and what merges make of the count."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StateUnavailableError
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.query.sql import sql
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage.iceberg_schema import TableMode
from pkm_pipelines.storage.slate_client import State
from pkm_pipelines.tables import reads
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.reads import ReadCounts, Reads, moving_average
from tests.support.iceberg import STATE, Place, local_place, thing, write
from tests.support.state import SharedState, end_services

KEY = keys.reads(STATE.name)


class Reader:
    """A hybrid table of four files, and any number of processes that look at it."""

    def __init__(self, place: Place, state: State) -> None:
        self.place = place
        self.state = state
        self.tables = self.another()
        self.tables.ensure(STATE)
        state.delete(KEY)
        self.write(*range(400))
        self.tables.set_mode(STATE.name, "hybrid")

    def another(self) -> TableManager:
        return TableManager(self.place.open(), self.state)

    def write(self, *numbers: int, value: int = 0) -> None:
        write(self.tables, STATE, [thing(f"t{n:03}", value, lsn=value) for n in numbers])

    def counted(self) -> float:
        self.tables.close()
        return float(self.state.get(KEY) or 0)

    def last(self) -> tuple[str, str]:
        snapshot = self.tables.iceberg.load(STATE.name).current_snapshot()
        assert snapshot is not None
        assert snapshot.summary is not None
        known = snapshot.summary.additional_properties
        return known.get(reads.READS, ""), known.get(reads.EXPECTED, "")

    def reason(self) -> str:
        return self.tables.explain(STATE.name).decisions[0].reason


@pytest.fixture
def reader(work: Path, shared_state: SharedState) -> Iterator[Reader]:
    with shared_state.open() as state:
        yield Reader(local_place(work), state)


def test_reads_of_all_processes_decide_the_next_merge(reader: Reader) -> None:
    reader.write(1, value=1)
    assert reader.last() == ("0.000", "1"), "nothing is known yet"
    others = [reader.another() for _ in range(2)]
    for tables in others:
        for _ in range(10):
            tables.read(STATE.name).read_all()
        tables.close()
    reader.write(2, value=2)
    assert reader.last() == ("20.000", "5.75")
    assert reader.reason().endswith("20 reads since the last merge, 5.75 reads for each write expected")
    reader.write(3, value=3)
    assert reader.last() == ("20.000", "4.312"), "nobody read it"


def test_a_merge_knows_its_own_process_s_reads_at_once(reader: Reader) -> None:
    reader.write(1, value=1)
    for _ in range(4):
        reader.tables.lazy(STATE.name).collect()
    reader.write(2, value=2)
    assert reader.last() == ("4.000", "1.75")


def test_what_many_read_is_rewritten_and_what_nobody_reads_is_marked(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pkm_pipelines.tables.cost.OPENING", 0)
    for number in range(1, 20):
        reader.write(number, value=number)
    assert reader.reason().startswith("marked"), reader.reason()
    for _ in range(4000):
        reader.tables._reads.add(reader.tables.iceberg.load(STATE.name))
    reader.write(1, value=99)
    assert reader.reason().startswith("rewrote"), reader.reason()


def test_a_read_counts_by_the_share_of_files_that_it_opens(reader: Reader) -> None:
    files = len({file.path for file in reader.tables.iceberg.scan(STATE.name).files})
    assert files == 4
    reader.tables.read(STATE.name, row_filter="id = 't007'").read_all()
    assert reader.counted() == 0.25
    reader.tables.read(STATE.name, limit=3).read_all()
    assert reader.counted() == 0.5
    reader.tables.read(STATE.name, row_filter="id = 'nowhere at all' and value > 1000000").read_all()
    assert reader.counted() == 0.5, "no file may hold such a row"


def test_the_past_is_not_counted(reader: Reader) -> None:
    before = reader.tables.iceberg.snapshot_id(STATE.name)
    reader.write(1, value=1)
    reader.tables.read(STATE.name, snapshot_id=before).read_all()
    reader.tables.changes(STATE.name, before).read_all()
    assert reader.counted() == 0


@pytest.mark.parametrize("mode", ["copy-on-write", "merge-on-read"])
def test_only_hybrid_tables_are_counted(reader: Reader, mode: TableMode) -> None:
    reader.tables.set_mode(STATE.name, mode)
    reader.tables.read(STATE.name).read_all()
    reader.write(1, value=1)
    assert reader.state.get(KEY) is None
    assert reader.last() == ("", "")


def test_what_the_owner_says_is_not_counted(reader: Reader) -> None:
    reader.tables.set_reads_per_write(STATE.name, 7)
    reader.tables.read(STATE.name).read_all()
    reader.write(1, value=1)
    assert reader.state.get(KEY) is None
    assert reader.last() == ("", "")
    assert reader.reason().endswith(": 7 reads for each write")
    reader.tables.set_reads_per_write(STATE.name, None)
    reader.write(2, value=2)
    assert reader.last() == ("0.000", "1"), "counted again"


def test_what_was_counted_outlives_compaction_rollback_and_a_lost_state(reader: Reader) -> None:
    reader.write(1, value=1)
    merged = reader.tables.iceberg.snapshot_id(STATE.name)
    assert merged is not None
    for _ in range(5):
        reader.tables.read(STATE.name).read_all()
    reader.tables.set_mode(STATE.name, "copy-on-write")  # what follows says nothing of reads
    reader.write(2, value=2)
    reader.tables.set_mode(STATE.name, "hybrid")
    reader.write(3, value=3)
    assert reader.last() == ("5.000", "2")

    reader.tables.rollback(STATE.name, merged)
    reader.write(4, value=4)
    assert reader.last() == ("5.000", "2"), "the same five: the merge that had seen them is no more"

    reader.state.delete(KEY)
    reader.write(5, value=5)
    assert reader.last() == ("0.000", "1.5"), "no negative number of reads"


def test_a_read_does_not_fail_for_a_state_that_is_gone(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reads, "FLUSH_SECONDS", -1.0)
    reader.tables.read(STATE.name).read_all()
    assert reader.state.get(KEY) == b"1.000", "a process that only reads tells its counts now and then"

    def gone(*_: object) -> None:
        raise StateUnavailableError("the state cannot be reached")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(reader.state, "cas", gone)
        assert reader.tables.read(STATE.name).read_all().num_rows == 400
    assert "not counted in the state yet: the state cannot be reached" in caplog.text
    assert reader.counted() == 2, "and nothing is forgotten"


def test_sql_counts_the_tables_that_it_names(work: Path) -> None:
    with Stores(Settings(home=work, runtime_dir=work / "run")) as stores:
        for table in ("things", "others"):
            spec = replace(STATE, table=table)
            stores.tables.ensure(spec)
            stores.tables.set_mode(spec.name, "hybrid")
            write(stores.tables, spec, [thing("a", 1)])
        assert sql(stores, "SELECT count(*) AS n FROM silver.things").to_pylist() == [{"n": 1}]
    with Stores(Settings(home=work, runtime_dir=work / "run")) as stores:
        assert dict(stores.state.scan(keys.READS)) == {KEY: b"1.000"}
    end_services(work / "run")


def test_without_a_state_the_first_guess_stays(tables: TableManager) -> None:
    tables.set_mode(STATE.name, "hybrid")
    tables.read(STATE.name).read_all()
    assert ReadCounts(None).of(tables.iceberg.load(STATE.name)) == Reads(1.0)
    tables.close()


def test_the_newest_count_weighs_a_quarter() -> None:
    assert moving_average([]) == 1
    assert moving_average([5]) == 2
    assert moving_average([9] * 40) == pytest.approx(9, abs=1e-3)
    assert moving_average([0] * 40) == pytest.approx(0, abs=1e-3)
