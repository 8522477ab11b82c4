"""Indexes and maintenance: made where they pay, and never at the price of an answer or a watermark."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from pkm_pipelines.storage import lance_index
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.lance_index import IndexReport
from pkm_pipelines.storage.location import Location
from tests.support.vectors import NAME, SPEC, contents, delta, many, row

NOTES = "silver.processed_notes"


@pytest.fixture
def store(work: Path) -> VectorStore:
    store = VectorStore(Location((work / "store").as_uri()))
    store.ensure(SPEC)
    return store


def search_text(store: VectorStore, text: str) -> list[str]:
    found = store.search(NAME, vector=None, text=text, mode="text", k=10)
    return found["chunk_id"].to_pylist()


def test_full_text_is_indexed_once_and_refreshed_when_it_lags(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "UNINDEXED_FEW", 5)
    assert store.index(NAME) == IndexReport(0)
    store.write(delta([row(f"k{i}") for i in range(20)], watermarks={NOTES: 1}))
    assert store.index(NAME) == IndexReport(20, built=("text", "title", "heading_path"))
    version = store.version(NAME)
    assert store.index(NAME) == IndexReport(20)
    assert store.version(NAME) == version
    store.write(delta([row(f"few{i}", text="zebra") for i in range(3)]))
    assert store.index(NAME) == IndexReport(23)
    assert len(search_text(store, "zebras")) == 3, "rows outside of the index are found"
    store.write(delta([row(f"many{i}") for i in range(10)]))
    assert set(store.index(NAME).refreshed) == {"text_idx", "title_idx", "heading_path_idx"}
    assert store.dataset(NAME).index_statistics("text_idx")["num_unindexed_rows"] == 0
    assert len(search_text(store, "zebra")) == 3
    assert store.watermark(NAME, NOTES) == 1


def test_an_index_of_another_analysis_is_made_anew(store: VectorStore) -> None:
    store.write(delta([row("a", text="机器学习和自然语言", title="x"), row("b", text="running", title="run")]))
    store.dataset(NAME).create_scalar_index("text", "INVERTED", base_tokenizer="simple", stem=False)
    assert store.index(NAME).built == ("text", "title", "heading_path")
    assert search_text(store, "自然语言") == ["a"]
    assert search_text(store, "runs") == ["b"]


def test_deleted_and_rewritten_rows_leave_the_index(store: VectorStore) -> None:
    store.write(delta([row("a", text="zebra"), row("b", text="zebra"), row("c", text="horse")]))
    store.index(NAME)
    store.write(delta([row("b", text="horse")], deletes=["a"]))
    assert search_text(store, "zebra") == []
    assert sorted(search_text(store, "horse")) == ["b", "c"]


def test_a_table_that_was_emptied_is_indexed_again(store: VectorStore) -> None:
    store.write(delta([row("a", text="zebra")], watermarks={NOTES: 1}))
    store.index(NAME)
    store.write(delta(deletes=["a"]))
    assert store.index(NAME) == IndexReport(0)
    assert search_text(store, "zebra") == []
    store.write(delta([row("b", text="zebra")]))
    store.index(NAME)
    assert search_text(store, "zebra") == ["b"]
    assert store.watermark(NAME, NOTES) == 1


def test_a_large_table_gets_vector_and_scalar_indexes(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "SCALAR_ROWS", 20_000)
    store.write(delta(rows=[many(0, 19_999)], watermarks={NOTES: 1}))
    assert store.index(NAME).vector_recall is None
    store.write(delta(rows=[many(19_999, 1)]))
    report = store.index(NAME)
    assert report.built == ("chunk_id", "note_id", "embedding")
    assert report.vector_recall is not None
    assert report.vector_recall >= lance_index.MIN_RECALL
    assert store.watermark(NAME, NOTES) == 1
    store.write(delta(rows=[many(20_000, 1500)]))
    assert set(store.index(NAME).refreshed) >= {"embedding_idx", "text_idx", "chunk_id_idx"}
    fresh = many(30_000, 1)
    store.write(delta(rows=[fresh]))
    query = np.asarray(fresh["embedding"][0].values, np.float32)
    found = store.search(NAME, vector=query, text=None, mode="vector", k=1)
    assert found["chunk_id"].to_pylist() == ["030000"], "a row outside of the index is found"
    assert found["score"][0].as_py() == pytest.approx(1.0, abs=1e-5)


def test_a_vector_index_that_loses_neighbours_is_dropped(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "VECTOR_ROWS", 1000)
    monkeypatch.setattr(lance_index, "measure_recall", lambda *_: 0.5)
    store.write(delta(rows=[many(0, 1000)]))
    assert store.index(NAME).vector_recall == 0.5
    assert "embedding_idx" not in {index.name for index in store.dataset(NAME).describe_indices()}


def test_recall_sees_an_index_that_loses_neighbours(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "REFINE_FACTOR", 1)
    store.write(delta(rows=[many(0, 2000)]))
    dataset = store.dataset(NAME)
    dataset.create_index("embedding", "IVF_PQ", metric="cosine", num_partitions=8, num_sub_vectors=2, num_bits=4)
    coarse = lance_index.measure_recall(store.dataset(NAME), "embedding")
    dataset.create_index("embedding", "IVF_SQ", metric="cosine", num_partitions=1, replace=True)
    fine = lance_index.measure_recall(store.dataset(NAME), "embedding")
    assert coarse < 0.9 < fine


def test_watermarks_survive_a_compaction_that_moves_indexes(store: VectorStore) -> None:
    """pylance cannot read the transaction of such a version (found by the model test)."""
    store.write(delta([row("a"), row("b")], watermarks={NOTES: 1}))
    store.index(NAME)
    store.write(delta([row("a", rank=1)]))
    store.dataset(NAME).optimize.optimize_indices()
    store.dataset(NAME).optimize.compact_files()
    with pytest.raises(TypeError):
        store.dataset(NAME).read_transaction(store.dataset(NAME).version)
    assert store.watermark(NAME, NOTES) == 1
    store.write(delta([row("c")], expect={NOTES: 1}))
    assert store.watermark(NAME, NOTES) == 1


def test_watermarks_survive_maintenance_and_its_loss_of_transactions(store_location: Location) -> None:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    for step in range(5):
        store.write(delta([row(f"k{step}")], watermarks={NOTES: step}))
    tagged = store.version(NAME)
    assert tagged is not None
    store.tag(NAME, "run-1", tagged)
    store.dataset(NAME).optimize.compact_files()
    store.dataset(NAME).create_scalar_index("chunk_id", "BTREE")
    assert store.watermark(NAME, NOTES) == 4, "read back over versions without marks"
    store.optimize(NAME)
    assert len(store.dataset(NAME).get_fragments()) == 1
    assert store.cleanup(NAME, dt.timedelta(0)).bytes > 0
    assert store.watermark(NAME, NOTES) == 4
    assert contents(store) == contents(store, version="run-1") == {f"k{step}": 0 for step in range(5)}
    assert [entry["version"] for entry in store.dataset(NAME).versions()] == [tagged, store.version(NAME)]


def test_a_watermark_that_another_tool_cleaned_away_falls_back_to_a_tagged_one(store: VectorStore) -> None:
    first = store.write(delta([row("a")], watermarks={NOTES: 1})).snapshot_id
    assert first is not None
    store.tag(NAME, "run-1", first)
    for step in (2, 3):
        store.write(delta([row(f"k{step}")], watermarks={NOTES: step}))
    store.dataset(NAME).optimize.compact_files()
    store.dataset(NAME).cleanup_old_versions(dt.timedelta(0), error_if_tagged_old_versions=False)
    assert store.watermark(NAME, NOTES) == 1
    store.untag(NAME, "run-1")
    store.dataset(NAME).cleanup_old_versions(dt.timedelta(0))
    assert store.watermark(NAME, NOTES) is None
