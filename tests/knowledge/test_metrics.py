"""Figures about notes: counted by hand on small vaults, PageRank against the paper's own iteration."""

from __future__ import annotations

import datetime as dt
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.knowledge.metrics import (
    LOCAL_COLUMNS,
    PAGERANK_DAMPING,
    PAGERANK_TOLERANCE,
    concept_counts,
    degrees,
    graph_metrics,
    local_metrics,
    note_metrics,
    pagerank,
    settle_pagerank,
)
from pkm_pipelines.knowledge.readability import LANGUAGES, reading_ease
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, NOTE_METRICS, PROCESSED_NOTES

NODES = "abcdefgh"
GRAPHS = st.lists(st.tuples(st.sampled_from(NODES + "xy"), st.sampled_from(NODES + "xy")), max_size=40)


def edge_table(pairs: list[tuple[str, str]]) -> pa.Table:
    return pa.table(
        {"src": pa.array([a for a, _ in pairs], pa.string()), "dst": pa.array([b for _, b in pairs], pa.string())}
    )


def ids(text: str = NODES) -> pa.Array:
    return pa.array(list(text), pa.string())


def ranks(pairs: list[tuple[str, str]], nodes: str = NODES) -> dict[str, float]:
    table = pagerank(edge_table(pairs), ids(nodes))
    return dict(zip(table["note_id"].to_pylist(), table["pagerank"].to_pylist(), strict=True))


def power_iteration(pairs: set[tuple[str, str]], nodes: str) -> dict[str, float]:
    """PageRank as the paper has it, on the scale whose mean is 1."""
    rank = dict.fromkeys(nodes, 1.0)
    out = {node: [b for a, b in pairs if a == node] for node in nodes}
    for _ in range(400):
        dangling = sum(rank[node] for node in nodes if not out[node]) / len(nodes)
        new = dict.fromkeys(nodes, 1 - PAGERANK_DAMPING + PAGERANK_DAMPING * dangling)
        for node in nodes:
            for target in out[node]:
                new[target] += PAGERANK_DAMPING * rank[node] / len(out[node])
        rank = new
    return rank


@given(GRAPHS, st.randoms(use_true_random=False))
def test_pagerank_is_the_papers_in_any_order(pairs: list[tuple[str, str]], shuffle: random.Random) -> None:
    found = ranks(pairs)
    kept = {(a, b) for a, b in pairs if a != b and a in NODES and b in NODES}
    assert found == pytest.approx(power_iteration(kept, NODES), abs=1e-6)
    assert sum(found.values()) == pytest.approx(len(NODES))
    again = pairs + pairs  # parallel edges count once
    shuffle.shuffle(again)
    nodes = list(NODES)
    shuffle.shuffle(nodes)
    assert ranks(again, "".join(nodes)) == found  # to the last bit


def test_pagerank_of_no_notes_and_of_no_links() -> None:
    assert ranks([], "") == {}
    assert ranks([("a", "b")], "") == {}
    assert ranks([]) == pytest.approx(dict.fromkeys(NODES, 1.0))


@given(GRAPHS, GRAPHS)
def test_a_settled_pagerank_is_near_and_moves_only_when_it_must(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    stored = pagerank(edge_table(before), ids(NODES[:6]))
    fresh = pagerank(edge_table(after), ids())
    settled = settle_pagerank(fresh, stored)
    old = dict(zip(stored["note_id"].to_pylist(), stored["pagerank"].to_pylist(), strict=True))
    assert settled["note_id"] == fresh["note_id"]
    for note, new, kept in zip(*(fresh.columns), settled["pagerank"].to_pylist(), strict=True):
        note, new = note.as_py(), new.as_py()
        assert abs(kept - new) <= PAGERANK_TOLERANCE
        assert kept in (new, old.get(note))
        if note in old and abs(old[note] - new) <= PAGERANK_TOLERANCE:
            assert kept == old[note]


def graph_table(rows: list[tuple[str, str, str, str | None]]) -> pa.Table:
    return pa.table(
        {
            name: pa.array([row[i] for row in rows], pa.string())
            for i, name in enumerate(("src", "kind", "status", "dst"))
        }
    )


def test_degrees_count_other_notes_once() -> None:
    graph = graph_table(
        [
            ("a", "link", "resolved", "b"),
            ("a", "link", "resolved", "b"),
            ("a", "embed", "resolved", "c"),
            ("a", "link", "resolved", "a"),
            ("a", "link", "resolved", None),  # an image or a PDF: resolved, but no note
            ("a", "tag", "resolved", None),
            ("a", "mention", "resolved", "d"),
            ("b", "link", "broken", None),
            ("b", "link", "broken", None),
            ("b", "link", "external", None),
        ]
    )
    table = degrees(graph, ids("cbad"))
    assert table.to_pylist() == [
        {"note_id": "c", "out_degree": 0, "in_degree": 1, "broken_links": 0, "external_links": 0},
        {"note_id": "b", "out_degree": 0, "in_degree": 1, "broken_links": 2, "external_links": 1},
        {"note_id": "a", "out_degree": 2, "in_degree": 0, "broken_links": 0, "external_links": 0},
        {"note_id": "d", "out_degree": 0, "in_degree": 0, "broken_links": 0, "external_links": 0},
    ]
    assert degrees(graph_table([]), ids("a")).num_rows == 1
    assert graph_metrics(graph, ids("cbad")).column_names == [*table.column_names, "pagerank"]
    # A mention is no link: d is worth what a note without links to it is worth.
    rank = dict(
        zip(*graph_metrics(graph, ids("abcd")).select(["note_id", "pagerank"]).to_pydict().values(), strict=True)
    )
    assert rank["a"] == rank["d"] < rank["b"] == rank["c"]


MOMENT = dt.datetime(2026, 11, 20, 8, 30, tzinfo=dt.UTC)


def notes(*rows: dict[str, Any]) -> pa.RecordBatch:
    empty = {"source": "vault", "path": "n.md", "change_id": "c", "changed_at": MOMENT, "ordinal": 0, "lsn": 1}
    table = pa.Table.from_pylist([{**empty, **row} for row in rows], schema=PROCESSED_NOTES.arrow).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=PROCESSED_NOTES.arrow)


def whole(batch: pa.RecordBatch, graph: pa.Table, concepts: pa.Table) -> list[dict[str, Any]]:
    return note_metrics(
        local_metrics(batch), graph_metrics(graph, batch.column("note_id")), concept_counts(concepts)
    ).to_pylist()


def test_note_metrics_of_a_small_vault() -> None:
    heading = {"level": 1, "text": "H", "anchor": "h", "start": 0, "end": 3}
    task = {"text": "t", "start": 0, "end": 1}
    batch = notes(
        {
            "note_id": "a", "title": "A", "word_count": 120, "character_count": 500, "reading_seconds": 30,
            "headings": [heading], "tags": ["x", "y/z"], "created_at": MOMENT,
            "tasks": [{**task, "status": status} for status in " x /"],
            "text": "The cat sat on the mat. " * 10, "language": "en",
        },
        {"note_id": "b"},
    )  # fmt: skip
    graph = graph_table([("a", "link", "resolved", "b"), ("b", "link", "broken", None)])
    concepts = pa.Table.from_pylist(
        [{"note_id": "a"}, {"note_id": "a"}], schema=pa.schema([EXTRACTED_CONCEPTS.arrow.field("note_id")])
    )
    first, second = whole(batch, graph, concepts)
    assert {k: first[k] for k in ("heading_count", "tag_count", "task_count", "open_task_count", "concept_count")} == {
        "heading_count": 1, "tag_count": 2, "task_count": 4, "open_task_count": 2, "concept_count": 2,
    }  # fmt: skip
    assert (first["out_degree"], first["in_degree"], first["readability"]) == (1, 0, 100.0)
    # 0.35 · (1/3 + 0) / 2 + 0.25 (too short to need a heading) + 0.2 (long enough) + 0.2 (tags and a date)
    assert first["quality"] == pytest.approx(0.35 / 6 + 0.65, abs=1e-4)
    assert (second["word_count"], second["tag_count"], second["broken_links"]) == (None, 0, 1)
    assert (second["readability"], second["quality"], second["concept_count"]) == (None, 0.0, 0)
    assert second["pagerank"] > first["pagerank"]


def test_no_notes() -> None:
    empty = whole(notes(), graph_table([]), pa.table({"note_id": pa.array([], pa.string())}))
    assert empty == []
    local = local_metrics(notes())
    assert (
        note_metrics(local, graph_metrics(graph_table([]), ids("")), concept_counts(local)).schema == NOTE_METRICS.arrow
    )


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "word_count": st.one_of(st.none(), st.integers(0, 10**7)),
                "text": st.one_of(st.none(), st.text(max_size=200), st.just("Word by word. " * 40)),
                "language": st.sampled_from([None, "zz", "ja", *LANGUAGES]),
                "tags": st.one_of(st.none(), st.lists(st.text(max_size=5), max_size=3)),
                "created_at": st.sampled_from([None, MOMENT]),
            }
        ),
        max_size=6,
    ),
    GRAPHS,
)
def test_any_vault(rows: list[dict[str, Any]], pairs: list[tuple[str, str]]) -> None:
    batch = notes(*({**row, "note_id": NODES[i]} for i, row in enumerate(rows)))
    graph = graph_table([(a, "link", "resolved" if b != "x" else "broken", b) for a, b in pairs])
    counts = concept_counts(pa.table({"note_id": batch.column("note_id")}))
    ranked = graph_metrics(graph, batch.column("note_id"))
    metrics = note_metrics(local_metrics(batch), ranked, counts)
    assert metrics.schema == NOTE_METRICS.arrow
    assert metrics.column("note_id") == batch.column("note_id")
    for row in metrics.to_pylist():
        assert 0 <= row["quality"] <= 1
        assert row["readability"] is None or 0 <= row["readability"] <= 100
    # What is stored is enough to join a moved graph with: no text is read again.
    stored = pa.Table.from_batches([metrics]).select(list(LOCAL_COLUMNS))
    assert note_metrics(stored, ranked, counts) == metrics


# Readability


def ease(text: str, language: str | None) -> float | None:
    return reading_ease(pl.Series([text], dtype=pl.String), pl.Series([language], dtype=pl.String)).item()


EASY_AND_HARD = json.loads((Path(__file__).parents[1] / "data/knowledge/readability.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_short_words_read_easier(language: str) -> None:
    simple, hard = (ease(text, language) for text in EASY_AND_HARD[language])
    assert simple is not None and hard is not None
    assert simple > 70 > 40 > hard


def test_flesch_as_counted_by_hand() -> None:
    # 3 sentences of 12 words, 13 syllables (table is two, the silent e's are none): ASL 12, ASW 13/12.
    text = "The cake stood on the wide table while the old man ate. " * 3
    assert ease(text, "en") == pytest.approx(206.835 - 1.015 * 12 - 84.6 * 13 / 12, abs=8)


def test_a_line_ends_a_sentence() -> None:
    words = "flour water salt yeast " * 10
    assert ease(words.replace("salt ", "salt\n"), "en") > ease(words, "en")  # type: ignore[operator]  # both are numbers


@pytest.mark.parametrize(
    ("text", "language"), [("Too short.", "en"), ("word " * 50, None), ("語 " * 50, "ja"), ("", "en")]
)
def test_no_score_without_a_formula_or_enough_words(text: str, language: str | None) -> None:
    assert ease(text, language) is None
