"""Search from a person's words to notes: on a small vault of our own, through chunks, vectors and index."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.chunks import chunk_notes
from pkm_pipelines.knowledge.embed import Embedder, load_embedder
from pkm_pipelines.knowledge.embed_hashing import HashingEmbedder
from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.tables import note_embeddings
from pkm_pipelines.query.search import Hit, Mode, search
from pkm_pipelines.settings import EmbedderSettings
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.location import Location
from tests.support.notes import batch, note

VAULT = Path(__file__).resolve().parents[1] / "data" / "query" / "vault"
NOTES = {path.relative_to(VAULT).as_posix(): path.read_text(encoding="utf-8") for path in VAULT.rglob("*.md")}
FILLER = "Nothing of this sentence matters to anybody who looks for something. "


def fill(store: VectorStore, embedder: Embedder, *, index: bool = True) -> str:
    """Put the vault's chunks into `store`, as the pipeline would."""
    spec = note_embeddings(embedder.dimension, embedder.name)
    store.ensure(spec)
    rows = [note(content, path) for path, content in NOTES.items()]
    chunks = pa.Table.from_batches([chunk_notes(batch(rows), embedder, 60)])
    vectors = embedder.encode(chunks["embedded_text"].to_pylist())
    count = chunks.num_rows
    added = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), embedder.dimension),
        "model": pa.array([embedder.name] * count),
        "created_at": pa.array([dt.datetime.now(dt.UTC)] * count, spec.column("created_at").type),
        "source_table": pa.array(["silver.processed_notes"] * count),
        "iceberg_snapshot_id": pa.array([1] * count),
        "processing_stage": pa.array(["silver"] * count),
    }
    columns = [added[name] if name in added else chunks[name] for name in spec.arrow.names]
    table = pa.Table.from_arrays(columns, schema=spec.arrow)
    store.write(Delta(spec.name, table.to_batches(), "merge", "op-1"))
    if index:
        store.index(spec.name)
    return spec.name


class Vault:
    """A filled store, and how to search it."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.store = VectorStore(Location(folder.as_uri()))
        self.embedder = embedder
        self.table = fill(self.store, embedder)

    def hits(self, query: str, mode: Mode = "hybrid", **values: object) -> list[Hit]:
        return search(self.store, self.table, lambda: self.embedder, query, mode=mode, **values)  # pyright: ignore

    def paths(self, query: str, mode: Mode = "hybrid", **values: object) -> list[str]:
        return [hit.path for hit in self.hits(query, mode, **values)]


@pytest.fixture(scope="module")
def hashed(ram_folder: Path) -> Vault:
    return Vault(ram_folder / "search-hashed", HashingEmbedder())


@pytest.fixture(scope="module")
def minilm(ram_folder: Path) -> Vault:
    embedder = load_embedder(EmbedderSettings(), ram_folder / "models")
    assert embedder is not None
    return Vault(ram_folder / "search-minilm", embedder)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("how do replicas agree when a server crashes", "databases/raft.md"),
        ("write-optimised storage engine", "databases/LSM trees.md"),
        ("when to put seedlings outside", "garden/Tomatoes.md"),
        ("something eats my salad", "garden/Slugs.md"),
        ("bread without yeast from a packet", "cooking/Sourdough.md"),
        ("cognitive biases", "reading/Thinking, Fast and Slow.md"),
        ("science fiction about gender", "reading/The Left Hand of Darkness.md"),
        ("postponed release date", "work/Meeting 2024-03-01.md"),
        ("insomnia", "health/Sleep.md"),
        ("marathon training", "health/Running plan.md"),
    ],
)
def test_meaning_finds_what_words_do_not(minilm: Vault, query: str, path: str) -> None:
    assert minilm.paths(query, "vector", k=1) == [path]
    assert path in minilm.paths(query, "hybrid", k=3)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("memtable", "databases/LSM trees.md"),
        ("kahneman anchoring", "reading/Thinking, Fast and Slow.md"),
        ("bloom filters", "databases/LSM trees.md"),
        ("ask ana", "work/Meeting 2024-03-01.md"),
        ("神经网络", "中文/机器学习.md"),
        ("過拟合 过拟合", "中文/机器学习.md"),
        ("寿司", "日本/東京.md"),
        ("wifi password", "work/Onboarding.md"),
        ('"last frost"', "garden/Tomatoes.md"),
        ("empty", "empty.md"),
    ],
)
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_words_find_the_note_that_has_them(minilm: Vault, query: str, path: str, mode: Mode) -> None:
    assert minilm.paths(query, mode, k=3)[0] == path


def test_a_note_stands_once_with_its_best_chunk(hashed: Vault) -> None:
    for mode in ("hybrid", "vector", "text"):
        found = hashed.paths("sentence matters wifi password launch", mode, k=len(NOTES))
        assert len(found) == len(set(found))
    (hit,) = hashed.hits("wifi password", k=1)
    assert "wifi password" in hit.snippet
    content = NOTES[hit.path]
    assert "wifi password" in content[hit.start : hit.end]


def test_enough_notes_are_found_behind_a_long_one(hashed: Vault) -> None:
    """Onboarding alone has more chunks that match than are asked for at first."""
    found = hashed.hits("sentence matters anybody looks something", "vector", k=2)
    assert len(found) == 2
    assert found[0].path == "work/Onboarding.md"
    assert len(hashed.hits("x", "vector", k=100)) == len(NOTES)


def test_a_hit_says_where_it_is(hashed: Vault) -> None:
    (hit,) = hashed.hits("hire a designer", k=1)
    assert (hit.title, hit.path, hit.source) == (
        "Meeting 2024-03-01", "work/Meeting 2024-03-01.md", "vault"
    )  # fmt: skip
    assert hit.heading.startswith("Meeting 2024-03-01")
    assert 0 < hit.score <= 1
    assert hit.note_id
    assert hit.chunk_id


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_tags_match_nested_ones_in_any_case(hashed: Vault, mode: Mode) -> None:
    def tagged(tag: str) -> set[str]:
        return set(hashed.paths("a leader writes pages of a balanced tree in sorted runs", mode, k=50, tag=tag))

    databases = {"databases/raft.md", "databases/LSM trees.md", "databases/B-trees.md"}
    assert tagged("db") == tagged("#DB") == tagged(" #Db/ ") == databases
    assert tagged("db/consensus") == tagged("#DB/CONSENSUS") == {"databases/raft.md"}
    assert tagged("d") == tagged("db/con") == tagged("it's") == set()


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("garden/", {"garden/Tomatoes.md", "garden/Compost.md", "garden/Slugs.md"}),
        ("/GARDEN", {"garden/Tomatoes.md", "garden/Compost.md", "garden/Slugs.md"}),
        ("garden/Tom", {"garden/Tomatoes.md"}),
        ("garden/*", {"garden/Tomatoes.md", "garden/Compost.md", "garden/Slugs.md"}),
        ("**/s*.md", {"garden/Slugs.md", "cooking/Sourdough.md", "cooking/Stock.md", "health/Sleep.md"}),
        ("gard?n/[st]*.md", {"garden/Slugs.md", "garden/Tomatoes.md"}),
        ("gard?n/[!st]*.md", {"garden/Compost.md"}),
        ("中文/*", {"中文/机器学习.md"}),
        ("it's odd [[]1]/*.md", {"it's odd [1]/100% {x}.md"}),
        ("it's", {"it's odd [1]/100% {x}.md"}),
        ("*/100% {x}.md", {"it's odd [1]/100% {x}.md"}),
        (".*", set()),
        ("no/such", set()),
    ],
)
def test_paths_are_prefixes_or_globs(hashed: Vault, mode: Mode, path: str, expected: set[str]) -> None:
    words = "a the of and water eat at to with characters sow mix roast bed 神经网络"
    assert set(hashed.paths(words, mode, k=50, path=path)) == expected


def test_filters_apply_together(hashed: Vault) -> None:
    assert hashed.paths("water", tag="garden", path="garden/C*") == ["garden/Compost.md"]
    assert hashed.paths("water", tag="garden", path="work/") == []
    assert hashed.paths("water", path=".") == hashed.paths("water") != []


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=30), st.sampled_from(["tag", "path", "query"]), st.sampled_from(["text", "hybrid"]))
def test_whatever_is_typed_is_answered_or_refused_in_words(hashed: Vault, typed: str, where: str, mode: Mode) -> None:
    try:
        if where == "query":
            hashed.hits(typed, mode)
        else:
            hashed.hits("water", mode, **{where: typed})
    except QueryError as error:
        assert str(error)


def test_what_cannot_be_answered_is_said(hashed: Vault, work: Path) -> None:
    empty = VectorStore(Location((work / "none").as_uri()))
    model = HashingEmbedder()
    for ask, message in (
        (lambda: search(empty, hashed.table, lambda: model, "x"), "pkm run"),
        (lambda: search(empty, None, lambda: None, "x"), "none"),
        (lambda: search(hashed.store, hashed.table, lambda: None, "x"), "mode `text`"),
        (lambda: hashed.hits("  "), "empty"),
        (lambda: hashed.hits("x", k=0), "1 or more"),
        (lambda: hashed.hits("x", tag="#"), "no tag"),
        (lambda: hashed.hits("x", path="[z-a]"), "not a glob"),
        (lambda: hashed.hits("x", path="x" * 10_000), "10000 characters"),
    ):
        with pytest.raises(QueryError, match=message):
            ask()
    assert search(hashed.store, hashed.table, lambda: None, "memtable", mode="text")[0].title == "LSM trees"


def test_a_search_by_words_loads_no_model(hashed: Vault) -> None:
    def load() -> Embedder:
        raise AssertionError("the model was loaded")

    assert search(hashed.store, hashed.table, load, "memtable", mode="text")


def test_an_empty_table_answers_nothing(store_location: Location) -> None:
    store, embedder = VectorStore(store_location), HashingEmbedder()
    spec = note_embeddings(embedder.dimension, embedder.name)
    store.ensure(spec)
    assert search(store, spec.name, lambda: embedder, "anything") == []


def test_search_on_either_store(store_location: Location) -> None:
    store, embedder = VectorStore(store_location), HashingEmbedder()
    table = fill(store, embedder)
    assert search(store, table, lambda: embedder, "memtable")[0].path == "databases/LSM trees.md"
