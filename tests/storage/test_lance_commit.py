"""Commits under contention and death: no row twice, none lost, and nothing half done."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lance.commit import CommitConflictError as LanceConflict

from pkm_pipelines.model.errors import CancelledError
from pkm_pipelines.storage import lance_commit
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.location import Location
from tests.support.vector_writer import SHARED_KEYS
from tests.support.vectors import NAME, SPEC, batch, contents, delta, row

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.vector_writer", *words]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


@pytest.mark.parametrize("starting_rows", [0, 3], ids=["empty table", "filled table"])
def test_four_processes_that_write_the_same_keys(store_location: Location, starting_rows: int, budget: int) -> None:
    """Each key stands once, each process's last watermark and rows are there: nothing doubled, nothing lost."""
    store = VectorStore(store_location)
    store.ensure(SPEC)
    if starting_rows:
        store.write(delta([row(f"start-{i}") for i in range(starting_rows)]))
    writers, rounds = range(4), 5 * budget
    processes = [start("overlap", store_location.url, str(writer), str(rounds)) for writer in writers]
    for process in processes:
        wait_for(process, "ready")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(120) for process in processes] == [0] * len(writers)
    for process in processes:
        process.communicate()
    found = contents(store)
    expected = {f"start-{i}" for i in range(starting_rows)} | {f"shared-{i}" for i in range(SHARED_KEYS)}
    expected |= {f"round-{step}-{i}" for step in range(rounds) for i in range(SHARED_KEYS)}
    expected |= {f"own-{writer}-{step}" for writer in writers for step in range(max(rounds - 2, 0), rounds)}
    assert set(found) == expected
    assert {store.watermark(NAME, f"input-{writer}") for writer in writers} == {rounds - 1}
    assert store.version(NAME) == 1 + bool(starting_rows) + len(writers) * rounds, "one version a write"


def test_lance_alone_would_double_a_key(store_location: Location) -> None:
    """The guard is needed: two uncommitted merges of one new key both commit. When this fails, it may go."""
    store = VectorStore(store_location)
    store.ensure(SPEC)
    store.write(delta([row("a")]))
    prepared = []
    for rank in (1, 2):
        dataset = store.dataset(NAME)
        merge = dataset.merge_insert("chunk_id").when_matched_update_all().when_not_matched_insert_all()
        rows = pa.Table.from_batches([batch([row("new", rank=rank)])])
        prepared.append((dataset, merge.execute_uncommitted(rows)[0]))
    for dataset, transaction in prepared:
        lance.LanceDataset.commit(dataset, transaction)
    assert store.count(NAME, "chunk_id = 'new'") == 2


@pytest.mark.parametrize("rows", [0, 2], ids=["empty table", "filled table"])
def test_of_two_commits_on_one_version_the_second_is_refused(store_location: Location, rows: int) -> None:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    store.write(delta([row(f"k{i}") for i in range(rows)], watermarks={"input": 1}))
    stale = store.dataset(NAME)
    store.write(delta([row("a")]))
    for operation in (None, lance.LanceOperation.Update(update_mode="rewrite_rows")):
        with pytest.raises(LanceConflict):
            lance_commit._commit(stale, operation, {})


def test_a_lost_race_is_planned_again(store_location: Location) -> None:
    store, rival = VectorStore(store_location), VectorStore(store_location)
    store.ensure(SPEC)
    races = 3

    def interfere() -> None:
        nonlocal races
        if races:
            races -= 1
            rival.write(delta([row("a", rank=10 + races), row(f"rival-{races}")], watermarks={"rival": races}))

    result = store.write(delta([row("a", rank=1), row("b")], watermarks={"input": 1}), lease_check=interfere)
    assert (result.attempts, result.rows_added, result.rows_updated) == (4, 1, 1)
    assert contents(store) == {"a": 1, "b": 0, "rival-0": 0, "rival-1": 0, "rival-2": 0}
    assert (store.watermark(NAME, "input"), store.watermark(NAME, "rival")) == (1, 0)


def test_an_answer_that_was_lost_is_looked_up(store_location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    commit = lance_commit._commit

    def commit_and_lose_the_answer(*arguments: object) -> lance.LanceDataset:
        commit(*arguments)  # pyright: ignore[reportArgumentType]
        raise OSError("connection reset")

    monkeypatch.setattr(lance_commit, "_commit", commit_and_lose_the_answer)
    result = store.write(delta([row("a"), row("b")], watermarks={"input": 1}))
    assert (result.written, result.rows_added) == (True, 2)
    assert store.version(NAME) == result.snapshot_id == 2
    assert contents(store) == {"a": 0, "b": 0}


def test_a_writer_killed_before_its_commit_leaves_nothing(store_location: Location, budget: int) -> None:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    store.write(delta([row("a"), row("b")], watermarks={"input": 1}))
    for _ in range(2 * budget):
        process = start("stall", store_location.url)
        wait_for(process, "uncommitted")
        process.kill()
        process.communicate()
    assert contents(store) == {"a": 0, "b": 0}
    assert store.watermark(NAME, "input") == 1
    store.write(delta([row("a", rank=2), row("new")], deletes=["b"], watermarks={"input": 2}, expect={"input": 1}))
    assert contents(store) == {"a": 2, "new": 0}


def test_a_source_that_fails_is_heard(work: Path) -> None:
    store = VectorStore(Location((work / "store").as_uri()))
    store.ensure(SPEC)

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch([row("a")])
        raise CancelledError("cancelled")

    for memory_bytes in (0, 1 << 20):
        failing = delta()
        failing.rows = rows()
        with pytest.raises(CancelledError):
            store.write(failing, memory_bytes=memory_bytes)
    assert store.version(NAME) == 1
    assert [path.name for path in (work / "store").iterdir()] == ["test_chunks.lance"]


KEYS = st.sampled_from("abcdef")
NOTES = st.sampled_from(["n1", "n2", "n'3"])
STEP = st.tuples(
    st.sampled_from(["merge", "merge", "merge", "append", "replace"]),
    st.lists(st.tuples(KEYS, st.integers(0, 99), NOTES), max_size=5),
    st.sets(KEYS, max_size=3),
    st.none() | st.sets(NOTES, max_size=2),
    st.none() | st.integers(1, 5),
    st.sampled_from(["none", "none", "none", "index", "optimize", "cleanup", "tag"]),
)


def test_writes_agree_with_a_dict(ram_folder: Path, budget: int) -> None:
    """Any sequence of writes and maintenance leaves what a dict would hold, and the last watermark."""
    counter = iter(range(10**6))

    @settings(max_examples=30 * budget)
    @given(st.lists(STEP, max_size=6), st.booleans())
    def check(
        steps: list[tuple[str, list[tuple[str, int, str]], set[str], set[str] | None, int | None, str]], staged: bool
    ) -> None:
        store = VectorStore(Location((ram_folder / f"model-{next(counter)}").as_uri()))
        store.ensure(SPEC)
        model: dict[str, tuple[int, str]] = {}
        mark: int | None = None
        for mode, written, deletes, notes, watermark, maintenance in steps:
            rows = [row(key, rank=rank, note=note) for key, rank, note in written]
            change = delta(rows, mode=mode, watermarks={"input": watermark} if watermark else {})
            if mode == "merge":
                change.delete_keys = pa.table({"chunk_id": pa.array(sorted(deletes), pa.string())})
                change.replace_slice = ("note_id", tuple(sorted(notes))) if notes is not None else None
            before = dict(model)
            if mode == "replace":
                model.clear()
            elif mode == "merge":
                for key in deletes:
                    model.pop(key, None)
                model = {key: value for key, value in model.items() if value[1] not in (notes or ())}
            new = {key: (rank, note) for key, rank, note in written}
            model.update({k: v for k, v in new.items() if mode != "append" or k not in before})
            result = store.write(change, memory_bytes=0 if staged else 1 << 20)
            assert result.rows_added == len(model.keys() - before.keys())
            assert result.rows_deleted == len(before.keys() - model.keys())
            mark = watermark or mark
            maintain(store, maintenance, result.snapshot_id)
            assert contents(store) == {key: rank for key, (rank, _) in model.items()}
            assert store.watermark(NAME, "input") == mark

    check()


def maintain(store: VectorStore, what: str, version: int | None) -> None:
    assert version is not None
    if what == "index":
        store.index(NAME)
    elif what == "optimize":
        store.optimize(NAME)
    elif what == "cleanup":
        store.cleanup(NAME, dt.timedelta(0))
    elif what == "tag":
        store.tag(NAME, f"v{version}", version)
