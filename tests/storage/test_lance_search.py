"""Search: what is found, in which order, and that nothing a person types breaks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.model.errors import QueryError, TableNotFoundError
from pkm_pipelines.storage import lance_text
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.lance_search import SearchMode
from pkm_pipelines.storage.location import Location
from tests.support.vectors import DIMENSION, NAME, SPEC, delta, row, vector

ROWS = [
    row("raft", title="Raft", text="A leader replicates its log: consensus of running nodes.", tags=["db", "db/raft"]),
    row("paxos", title="Paxos", text="Consensus by proposals and acceptors.", tags=["db"]),
    row("zh", title="机器学习", text="他在北京大学学习机器学习和自然语言处理。", path="中文/笔记.md"),
    row("ja", title="日本語", text="東京都に住んでいます。機械学習の本を読む。"),
    row("de", title="Käse", text="Die Überprüfung der Häuser und der Käse."),
    row("code", title="Snippets", text="snake_case and node.js and C++ in `do_it(now)`", heading_path="Code > Python"),
    row("quote", title="Sayings", text="To be or not to be, that is the question."),
    row("leader", title="Politics", text="A log of the leader."),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(ram_folder: Path) -> VectorStore:
    store = VectorStore(Location((ram_folder / "search").as_uri()))
    store.ensure(SPEC)
    store.write(delta(ROWS))
    store.index(NAME)
    return store


def find(
    store: VectorStore, text: str, *, mode: SearchMode = "text", k: int = 10, where: str | None = None
) -> list[str]:
    found = store.search(NAME, vector=vector(1), text=text, mode=mode, k=k, where=where)
    scores = found["score"].to_pylist()
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    return found["chunk_id"].to_pylist()


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("consensus leader", "raft"),
        ("replicating", "raft"),
        ("RUNS", "raft"),
        ("paxos", "paxos"),
        ("机器学习", "zh"),
        ("自然语言", "zh"),
        ("東京", "ja"),
        ("読む", "ja"),
        ("kase", "de"),
        ("Überprüfung", "de"),
        ("uberprufung", "de"),
        ("snake", "code"),
        ("node.js", "code"),
        ("python", "code"),
        ('"to be or not to be"', "quote"),
    ],
)
def test_words_are_found_in_any_script_and_form(store: VectorStore, query: str, first: str) -> None:
    assert find(store, query)[0] == first


def test_stop_words_count_only_where_there_are_no_others(store: VectorStore) -> None:
    assert find(store, "to be or the paxos") == ["paxos"]
    assert find(store, "to be or")[0] == "quote"
    assert lance_text.wanted_terms("The log of Paxos") == {"log", "paxo"}
    assert lance_text.wanted_terms("to be") == {"to", "be"}


def test_a_phrase_must_match_as_it_stands(store: VectorStore) -> None:
    assert set(find(store, "leader log")) == {"raft", "leader"}
    assert find(store, '"log of the leader" consensus') == ["leader"]
    assert find(store, '"leader of the log"') == []
    assert find(store, '"自然语言处理"') == ["zh"]


@pytest.mark.parametrize(
    "query",
    [
        "", " ", '"', '"unbalanced', '""', '" "', "AND", "OR NOT AND", "a AND (b", ")", "*", "?", "~", "^", "x:y",
        "+a -b", "\\", "'", "'; DROP TABLE x; --", "🎉", "👩‍👩‍👧", "\x00", "\ud83d", "a" * 100_000, '"' * 999, "%_%",
        "{}", "[[link]]", "\u202e", "\n\t", "#tag", "title:raft",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["text", "hybrid", "vector"])
def test_odd_queries_are_only_words(store: VectorStore, query: str, mode: SearchMode) -> None:
    assert len(find(store, query, mode=mode)) <= len(ROWS)


@settings(max_examples=60)
@given(st.text(max_size=40) | st.text("\"ab AND()*\\'-+~:^🎉学", max_size=20), st.sampled_from(["text", "hybrid"]))
def test_no_query_raises(store: VectorStore, query: str, mode: SearchMode) -> None:
    find(store, query, mode=mode)


def test_vectors_are_ranked_by_cosine(store: VectorStore) -> None:
    query = vector(sum(b"de"))
    found = store.search(NAME, vector=query * 3, text=None, mode="vector", k=3)
    assert found["chunk_id"][0].as_py() == "de"
    assert found["score"][0].as_py() == pytest.approx(1.0, abs=1e-6)
    exact = sorted(((float(query @ r["embedding"]), r["chunk_id"]) for r in ROWS), reverse=True)[:3]
    assert found["chunk_id"].to_pylist() == [key for _, key in exact]
    assert found["score"].to_pylist() == pytest.approx([max(score, 0) for score, _ in exact], abs=1e-6)


def test_hybrid_is_first_where_both_agree(store: VectorStore) -> None:
    found = store.search(NAME, vector=vector(sum(b"paxos")), text="consensus by proposals", mode="hybrid", k=5)
    assert found["chunk_id"][0].as_py() == "paxos"
    assert found["score"][0].as_py() == pytest.approx(1.0)
    assert len(found) == 5
    words_only = store.search(NAME, vector=vector(sum(b"zh")), text="paxos", mode="hybrid", k=len(ROWS))
    assert set(words_only["chunk_id"].to_pylist()[:2]) == {"zh", "paxos"}


@pytest.mark.parametrize("mode", ["text", "hybrid", "vector"])
def test_filters_apply_before_the_search(store: VectorStore, mode: SearchMode) -> None:
    assert find(store, "consensus", mode=mode, k=1, where="array_has(tags, 'db/raft')") == ["raft"]
    assert find(store, "consensus", mode=mode, where="chunk_id = 'nobody'") == []


def test_columns_are_those_asked_for(store: VectorStore) -> None:
    found = store.search(NAME, vector=vector(1), text="log", mode="hybrid", k=2, columns=["title"])
    assert found.column_names == ["title", "score"]
    every = store.search(NAME, vector=vector(1), text="log", mode="text", k=2)
    assert every.column_names == [name for name in SPEC.arrow.names if name != "embedding"] + ["score"]


def test_a_vector_of_another_model_is_refused(store: VectorStore) -> None:
    with pytest.raises(QueryError, match="different models"):
        store.search(NAME, vector=np.zeros(DIMENSION + 1, np.float32), text=None, mode="vector", k=1)
    with pytest.raises(QueryError, match="query vector"):
        store.search(NAME, vector=None, text="x", mode="hybrid", k=1)
    with pytest.raises(TableNotFoundError):
        store.search("vectors.nothing", vector=None, text="x", mode="text", k=1)


def test_search_needs_no_index(store_location: Location) -> None:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    for mode in ("text", "vector", "hybrid"):
        assert find(store, "consensus", mode=mode) == []
    store.write(delta(ROWS))
    assert set(find(store, "consensus")) == {"raft", "paxos"}
    assert len(find(store, "consensus", mode="hybrid")) == len(ROWS)


@pytest.mark.parametrize(
    ("text", "query", "spans"),
    [
        ("Running dogs run.", "run", ["Running", "run"]),
        ("他在北京大学学习机器学习", "机器学习", ["学习", "机器"]),
        ("Der Käse ist gut", "kase", ["Käse"]),
        ("nothing here", "zebra", []),
        ("snake_case", "case", ["snake_case"]),
    ],
)
def test_terms_are_found_in_a_text(text: str, query: str, spans: list[str]) -> None:
    found = [text[start:end] for start, end in lance_text.find_terms(text, set(lance_text.terms(query)))]
    assert found == spans
