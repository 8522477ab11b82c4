"""Maintenance of vectors: what piles up is counted, taken away a few fragments at a time, and nothing is lost by it."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pytest

from pkm_pipelines.model.errors import CancelledError
from pkm_pipelines.model.progress import CountingProgress
from pkm_pipelines.storage import lance_index, lance_maintain
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.lance_marks import find_operation
from pkm_pipelines.storage.lance_rows import STAGING
from pkm_pipelines.storage.location import Location
from tests.support.vectors import NAME, SPEC, batch, contents, delta, many, row

NOTES = "silver.processed_notes"
NOW = dt.timedelta(0)


@pytest.fixture
def store(store_location: Location) -> VectorStore:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    return store


@pytest.fixture
def local(work: Path) -> VectorStore:
    store = VectorStore(Location((work / "store").as_uri()))
    store.ensure(SPEC)
    return store


def fill(store: VectorStore, writes: int = 12) -> dict[str, int]:
    """So many small fragments, two of them with a deleted row; returns what the table then holds."""
    for step in range(writes):
        store.write(delta([row(f"k{step}"), row(f"k{step}b")], watermarks={NOTES: step}))
    store.write(delta([row("k3", rank=9)], deletes=["k4b"]))
    return contents(store)


def test_debt_counts_what_piles_up_and_maintenance_takes_it_away(store: VectorStore) -> None:
    held = fill(store)
    store.index(NAME)
    store.write(delta([row("late")]))
    held["late"] = 0
    tagged = store.version(NAME)
    assert tagged is not None
    store.tag(NAME, "cut-1", tagged)
    debt = store.debt(NAME)
    assert (debt.rows, debt.fragments, debt.small_fragments) == (24, 14, 14)
    assert (debt.deletion_files, debt.worked_in, debt.deleted_rows, debt.unindexed_rows) == (2, 2, 2, 1)
    assert store.count_old(NAME, NOW) == store.removable(NAME, NOW).versions == debt.versions - 1, "all but one: tagged"
    assert store.count_old(NAME, dt.timedelta(days=1)) == store.removable(NAME, dt.timedelta(days=1)).versions == 0
    assert debt.versions > 13

    planned = store.plan_compaction(NAME)
    assert [(len(run.fragment_ids), run.rows, run.deleted_rows, run.into) for run in planned] == [(13, 23, 2, 1)]
    runs, indexes = store.optimize(NAME)
    assert runs[:1] == planned
    assert [(len(run.fragment_ids), run.rows) for run in runs[1:]] == [(2, 24)], "what the index then held as one"
    assert "text_idx" in indexes.refreshed
    assert store.plan_compaction(NAME) == []
    assert store.optimize(NAME)[0] == [], "a second time there is nothing to do"
    expected = store.removable(NAME, NOW)
    removed = store.cleanup(NAME, NOW)
    assert removed.versions >= expected.versions > 0
    assert removed.bytes > 0

    debt = store.debt(NAME)
    assert (debt.fragments, debt.deletion_files, debt.deleted_rows, debt.unindexed_rows) == (1, 0, 0, 0)
    assert debt.versions == 2, "the newest and the tagged one"
    assert contents(store) == contents(store, version="cut-1") == held
    assert store.watermark(NAME, NOTES) == 11


def test_a_compaction_works_in_runs_of_bounded_size_and_goes_on_where_it_was_stopped(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = fill(store)
    one = store.debt(NAME).bytes // 13
    monkeypatch.setattr(lance_maintain, "RUN_BYTES", 4 * one)
    planned = store.plan_compaction(NAME)
    assert len(planned) > 2
    assert all(run.bytes <= 4 * one for run in planned)
    stop = threading.Event()

    class StopAfterOne(CountingProgress):
        def advance(self, n: int = 1, **counts: int) -> None:
            stop.set()

    with pytest.raises(CancelledError):
        store.optimize(NAME, StopAfterOne(stop))
    assert store.debt(NAME).fragments == 13 - len(planned[-1].fragment_ids) + 1
    assert store.watermark(NAME, NOTES) == 11
    assert contents(store) == held
    progress = CountingProgress()
    runs, _ = store.optimize(NAME, progress)
    assert len(runs) >= len(planned) - 1
    assert progress.count == len(runs)
    assert contents(store) == held
    assert store.watermark(NAME, NOTES) == 11


def test_segments_of_an_index_are_merged_before_they_keep_many_fragments_apart(
    local: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "VECTOR_ROWS", 256)
    local.write(delta(rows=[many(0, 300)]))
    local.index(NAME)
    for round_ in range(1, 9):
        local.write(delta(rows=[many(1000 * round_, 10)]))
        local.optimize(NAME)
        assert local.plan_compaction(NAME) == [], "what is left cannot be merged, and is not promised"
        assert local.debt(NAME).fragments <= lance_index.MAX_SEGMENTS + 1
        (embedding,) = [i for i in local.dataset(NAME).describe_indices() if i.name == "embedding_idx"]
        assert len(embedding.segments) <= lance_index.MAX_SEGMENTS + 1
    assert len(contents(local)) == 380


def test_full_fragments_are_left_alone_and_worn_ones_rewritten(
    local: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_maintain, "TARGET_ROWS", 100)
    for start in (0, 100, 200):
        local.write(delta(rows=[many(start, 100)]))
    assert local.plan_compaction(NAME) == []
    local.write(delta(deletes=[f"{number:06d}" for number in range(100, 109)]))
    assert local.plan_compaction(NAME) == [], "nine of a hundred deleted rows cost less than a rewrite"
    assert (local.debt(NAME).deletion_files, local.debt(NAME).worked_in) == (1, 0)
    local.write(delta(deletes=[f"{number:06d}" for number in range(109, 120)]))
    (run,) = local.plan_compaction(NAME)
    assert (run.rows, run.deleted_rows) == (80, 20)
    before = {fragment.fragment_id for fragment in local.dataset(NAME).get_fragments()} - set(run.fragment_ids)
    local.optimize(NAME)
    debt = local.debt(NAME)
    assert (debt.rows, debt.fragments, debt.deleted_rows) == (280, 3, 0)
    assert before <= {fragment.fragment_id for fragment in local.dataset(NAME).get_fragments()}


def test_writers_and_readers_go_on_beside_maintenance(
    store: VectorStore, store_location: Location, budget: int
) -> None:
    held = fill(store)
    done = threading.Event()

    def write(number: int) -> None:
        mine = VectorStore(store_location)
        for step in range(4 * budget):
            mine.write(delta([row(f"w{number}-{step}"), row(f"k{number}", rank=step + 1)]))
            assert len(contents(mine)) >= len(held)

    def maintain() -> None:
        while not done.is_set():
            store.optimize(NAME)
            store.cleanup(NAME, dt.timedelta(seconds=5))

    with ThreadPoolExecutor(3) as pool:
        maintenance = pool.submit(maintain)
        try:
            for writer in [pool.submit(write, number) for number in range(2)]:
                writer.result()
        finally:
            done.set()
        maintenance.result()
    store.optimize(NAME)
    assert store.plan_compaction(NAME) == []
    written = {f"w{number}-{step}": 0 for number in range(2) for step in range(4 * budget)}
    assert contents(store) == {**held, **written, "k0": 4 * budget, "k1": 4 * budget}


def test_an_operation_is_looked_for_while_its_neighbours_are_cleaned_up(store: VectorStore) -> None:
    fill(store)
    seen = store.dataset(NAME)
    assert find_operation(seen, "none", back_to=seen.version - 3) is None
    store.write(delta([row("late")]))
    stale = store.dataset(NAME)
    store.write(delta([row("later")]))
    store.cleanup(NAME, NOW)
    assert find_operation(stale, "none", back_to=0) is None
    assert find_operation(seen, "none", back_to=0) is None


def test_recall_is_kept_in_the_table_and_a_bad_index_is_not_built_again_and_again(
    local: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "VECTOR_ROWS", 1000)
    assert local.recall(NAME) is None
    local.write(delta(rows=[many(0, 1000)], watermarks={NOTES: 1}))
    assert "embedding" in local.index(NAME).built
    good = local.recall(NAME)
    assert good is not None
    assert good.kept
    assert (good.rows, good.depth, good.queries) == (1000, 10, 50)
    assert good.recall >= lance_index.MIN_RECALL
    local.write(delta(rows=[many(1000, 10)]))
    assert local.optimize(NAME)[1].vector_recall is not None
    later = local.recall(NAME)
    assert later is not None
    assert later.rows == 1010

    monkeypatch.setattr(lance_index, "measure_recall", lambda *_: 0.5)
    local.write(delta(rows=[many(1010, 10)]))
    assert local.optimize(NAME)[1].vector_recall == 0.5
    bad = local.recall(NAME)
    assert bad is not None
    assert (bad.kept, bad.recall) == (False, 0.5)
    assert "embedding_idx" not in {index.name for index in local.dataset(NAME).describe_indices()}
    assert local.index(NAME).built == ()
    monkeypatch.undo()
    monkeypatch.setattr(lance_index, "VECTOR_ROWS", 1000)
    local.write(delta(rows=[many(2000, 600)]))
    assert local.index(NAME).built == ("embedding",), "it is tried again when the table has grown by half"
    assert local.watermark(NAME, NOTES) == 1


def test_rows_that_a_killed_writer_staged_are_swept(store: VectorStore, store_location: Location) -> None:
    store.write(delta([row("a")]))
    left = store_location.child(f"{NAME.partition('.')[2]}{STAGING}{uuid.uuid4().hex}.lance")
    options = None if left.is_local else left.s3().object_store()
    lance.write_dataset(
        batch([row("b")]), str(left.path) if left.is_local else left.url, storage_options=options, schema=SPEC.arrow
    )
    assert store.names() == [NAME]
    assert store.abandoned(dt.timedelta(hours=1)) == []
    assert store.sweep(dt.timedelta(hours=1)) == 0
    assert len(store.abandoned(dt.timedelta(seconds=-5))) == 1
    assert store.sweep(dt.timedelta(seconds=-5)) == 1
    assert store.abandoned(dt.timedelta(seconds=-5)) == []
    assert contents(store) == {"a": 0}


_TRAIN = """
import sys, numpy, pyarrow
from pkm_pipelines.storage.lance import VectorStore
import lance
values = numpy.random.default_rng(0).standard_normal((300, 8)).astype("float32").ravel()
table = pyarrow.table({"v": pyarrow.FixedSizeListArray.from_arrays(values, 8)})
dataset = lance.write_dataset(table, sys.argv[1])
dataset.create_index("v", "IVF_PQ", num_partitions=4, num_sub_vectors=2)
"""


def test_lance_keeps_its_warnings_to_itself_unless_it_is_asked(work: Path) -> None:
    def train(**environment: str) -> str:
        folder = work / uuid.uuid4().hex
        clean = {key: value for key, value in os.environ.items() if key != "LANCE_LOG"}
        command = [sys.executable, "-c", _TRAIN, str(folder)]
        run = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
        return run.stderr

    assert train() == ""
    assert "WARN" in train(LANCE_LOG="warn"), "the test has a warning to look for"
