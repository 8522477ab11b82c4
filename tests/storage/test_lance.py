"""The vector store, on local disk and on S3: one behaviour."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Iterator

import lance
import pyarrow as pa
import pytest

from pkm_pipelines.model.errors import (
    CommitConflictError,
    LeaseLostError,
    SnapshotNotFoundError,
    StoreError,
    TableNotFoundError,
)
from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import Column
from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.location import Location
from tests.support.vectors import NAME, SPEC, batch, contents, delta, row

NOTES = "silver.processed_notes"
LINKS = "silver.knowledge_graph"


@pytest.fixture
def store(store_location: Location) -> VectorStore:
    store = VectorStore(store_location)
    store.ensure(SPEC)
    return store


def test_a_new_table_is_empty_and_knows_its_key(store: VectorStore) -> None:
    assert store.exists(NAME)
    assert store.version(NAME) == 1
    assert store.count(NAME) == 0
    assert list(store.read(NAME)) == []
    assert store.schema(NAME).names == SPEC.arrow.names
    assert store.schema(NAME).field("chunk_id").metadata[b"doc"] == b"Key"
    assert store.dataset(NAME).data_storage_version == "2.2"
    store.ensure(SPEC)
    assert store.version(NAME) == 1


def test_a_missing_table_is_named(store: VectorStore) -> None:
    assert not store.exists("vectors.other")
    assert store.version("vectors.other") is None
    with pytest.raises(TableNotFoundError, match=r"vectors\.other.*pkm run"):
        store.count("vectors.other")
    with pytest.raises(TableNotFoundError):
        store.write(dataclasses.replace(delta([row("a")]), table="vectors.other"))
    with pytest.raises(StoreError, match="letters"):
        store.exists("vectors.../../etc")


def test_ensure_refuses_other_columns(store: VectorStore) -> None:
    other = dataclasses.replace(SPEC, columns=(*SPEC.columns, Column(10, "extra", pa.string(), "More")))
    with pytest.raises(StoreError, match="extra"):
        store.ensure(other)
    with pytest.raises(StoreError, match="one key column"):
        store.ensure(dataclasses.replace(SPEC, table="keyless", key=()))


def test_a_merge_inserts_updates_and_deletes_in_one_version(store: VectorStore) -> None:
    first = store.write(delta([row("a"), row("b"), row("c")]))
    assert (first.rows_added, first.rows_updated, first.rows_deleted) == (3, 0, 0)
    second = store.write(delta([row("b", rank=2), row("d", rank=2)], deletes=["a", "nobody"]))
    assert (second.rows_added, second.rows_updated, second.rows_deleted) == (1, 1, 1)
    assert second.snapshot_id == first.snapshot_id + 1
    assert contents(store) == {"b": 2, "c": 0, "d": 2}
    assert contents(store, version=first.snapshot_id) == {"a": 0, "b": 0, "c": 0}


def test_a_key_that_is_written_and_deleted_stays(store: VectorStore) -> None:
    store.write(delta([row("a")]))
    store.write(delta([row("a", rank=1)], deletes=["a"]))
    assert contents(store) == {"a": 1}


def test_the_last_row_of_a_key_wins(store: VectorStore) -> None:
    rows = [batch([row("a"), row("a", rank=1), row("b")]), batch([row("a", rank=2)])]
    result = store.write(delta(rows=rows))
    assert result.rows_added == 2
    assert contents(store) == {"a": 2, "b": 0}


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20], ids=["staged", "memory"])
def test_rows_may_come_as_a_stream_of_any_size(store: VectorStore, memory_bytes: int) -> None:
    def stream(rank: int) -> Iterator[pa.RecordBatch]:
        for part in range(5):
            yield batch([row(f"{part}-{i}", rank=rank) for i in range(100)] + [row("again", rank=part)])

    store.write(dataclasses.replace(delta(), rows=stream(1)), memory_bytes=memory_bytes)
    result = store.write(dataclasses.replace(delta(), rows=stream(2)), memory_bytes=memory_bytes)
    assert (result.rows_added, result.rows_updated) == (0, 501)
    found = contents(store)
    assert found.pop("again") == 4
    assert set(found.values()) == {2}
    root = store.location(NAME).url.rpartition("/")[0]
    if root.startswith("file:"):
        assert [path.name for path in Location(root).path.iterdir()] == ["test_chunks.lance"], "nothing staged is left"


def test_a_slice_is_replaced(store: VectorStore) -> None:
    store.write(delta([row("a1", note="a"), row("a2", note="a"), row("b1", note="b"), row("c1", note="it's")]))
    store.write(delta([row("a1", note="a", rank=1), row("a3", note="a")], replace_slice=("note_id", ("a", "it's"))))
    assert contents(store) == {"a1": 1, "a3": 0, "b1": 0}


def test_replace_leaves_exactly_the_rows(store: VectorStore) -> None:
    store.write(delta([row("a"), row("b"), row("c", note="other")]))
    store.write(delta([row("b", rank=1)], mode="replace", replace_where=Slice("note_id", ("note",))))
    assert contents(store) == {"b": 1, "c": 0}
    store.write(delta(mode="replace", replace_where=Slice("note_id", ())))
    assert contents(store) == {"b": 1, "c": 0}, "no value is no row"
    store.write(delta([row("d")], mode="replace"))
    assert contents(store) == {"d": 0}
    store.write(delta(mode="replace"))
    assert contents(store) == {}
    store.write(delta([row("e")]))
    assert contents(store) == {"e": 0}


def test_append_leaves_rows_of_the_same_key(store: VectorStore) -> None:
    store.write(delta([row("a")]))
    result = store.write(delta([row("a", rank=1), row("b")], mode="append"))
    assert result.rows_added == 1
    assert contents(store) == {"a": 0, "b": 0}


def test_rows_that_do_not_fit_are_refused(store: VectorStore) -> None:
    good = batch([row("a")])
    for bad, message in (
        (good.drop_columns(["text"]), "missing columns: text"),
        (good.append_column("strange", pa.array([1])), "unknown columns: strange"),
        (batch([row("a", embedding=None)]), "embedding must not be null|non-nullable"),
        (good.set_column(8, "embedding", pa.array([[1.0]], pa.list_(pa.float32(), 1))), "do not fit"),
    ):
        with pytest.raises(StoreError, match=message):
            store.write(delta(rows=[bad]))
    assert store.version(NAME) == 1


def test_watermarks_move_with_the_rows_and_are_carried_along(store: VectorStore) -> None:
    assert store.watermark(NAME, NOTES) is None
    store.write(delta([row("a")], watermarks={NOTES: 7, LINKS: 1}))
    store.write(delta([row("b")]))
    store.write(delta([row("c")], watermarks={NOTES: 8}))
    assert store.watermark(NAME, NOTES) == 8
    assert store.watermark(NAME, LINKS) == 1
    assert store.watermark(NAME, "silver.unread") is None


def test_nothing_to_write_makes_no_version(store: VectorStore) -> None:
    store.write(delta([row("a")], watermarks={NOTES: 7}))
    version = store.version(NAME)
    for idle in (delta(), delta(watermarks={NOTES: 7}), delta(deletes=["nobody"], watermarks={NOTES: 7})):
        result = store.write(idle)
        assert not result.written
        assert result.snapshot_id == version == store.version(NAME)


@pytest.mark.parametrize("rows", [0, 3], ids=["empty", "filled"])
def test_a_watermark_alone_makes_a_version_and_no_file(store: VectorStore, rows: int) -> None:
    store.write(delta([row(f"k{i}") for i in range(rows)], watermarks={NOTES: 7}))
    files = {file.path for f in store.dataset(NAME).get_fragments() for file in f.data_files()}
    result = store.write(delta(watermarks={NOTES: 8}))
    assert result.written
    assert (result.rows_added, result.rows_updated, result.rows_deleted) == (0, 0, 0)
    assert store.watermark(NAME, NOTES) == 8
    assert len(contents(store)) == rows
    assert {file.path for f in store.dataset(NAME).get_fragments() for file in f.data_files()} == files


def test_a_write_that_expects_another_watermark_is_refused(store: VectorStore) -> None:
    store.write(delta([row("a")], watermarks={NOTES: 7}, expect={NOTES: None}))
    with pytest.raises(CommitConflictError, match="from None to 7"):
        store.write(delta([row("b")], watermarks={NOTES: 8}, expect={NOTES: None}))
    assert contents(store) == {"a": 0}
    store.write(delta([row("b")], watermarks={NOTES: 8}, expect={NOTES: 7}))
    assert contents(store) == {"a": 0, "b": 0}


def test_an_operation_that_landed_is_not_done_again(store: VectorStore) -> None:
    once = delta([row("a"), row("b")], watermarks={NOTES: 7}, expect={NOTES: None})
    first = store.write(once)
    again = store.write(once)
    assert again == first
    assert store.version(NAME) == first.snapshot_id


def test_a_lost_lease_stops_the_commit(store: VectorStore) -> None:
    checked: list[bool] = []

    def lost() -> None:
        checked.append(True)
        raise LeaseLostError("table: taken over")

    with pytest.raises(LeaseLostError):
        store.write(delta([row("a")]), lease_check=lost)
    assert checked
    assert store.version(NAME) == 1
    assert contents(store) == {}


def test_a_run_id_stands_in_the_transaction(store: VectorStore) -> None:
    result = store.write(delta([row("a")], properties={"pkm.run-id": "run-1"}))
    transaction = store.dataset(NAME).read_transaction(result.snapshot_id)
    assert transaction is not None
    assert transaction.transaction_properties["pkm.run-id"] == "run-1"


def test_tags_keep_names_for_versions(store: VectorStore) -> None:
    first = store.write(delta([row("a")])).snapshot_id
    second = store.write(delta([row("b")])).snapshot_id
    assert first is not None
    assert second is not None
    store.tag(NAME, "run-1", first)
    store.tag(NAME, "cut-2", second)
    assert store.tags(NAME) == {"run-1": first, "cut-2": second}
    assert contents(store, version="run-1") == {"a": 0}
    store.tag(NAME, "run-1", second)
    assert contents(store, version="run-1") == {"a": 0, "b": 0}
    store.untag(NAME, "run-1")
    store.untag(NAME, "run-1")
    assert store.tags(NAME) == {"cut-2": second}
    for unknown in (99, "run-1"):
        with pytest.raises(SnapshotNotFoundError, match=str(unknown)):
            contents(store, version=unknown)
    with pytest.raises(SnapshotNotFoundError):
        store.tag(NAME, "later", 99)
    with pytest.raises(SnapshotNotFoundError):
        store.tag(NAME, "cut-2", 99)


def test_reads_as_of_a_moment(store: VectorStore) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    store.write(delta([row("a")]))
    time.sleep(0.02)
    between = dt.datetime.now(dt.UTC)
    time.sleep(0.02)
    store.write(delta([row("b")]))
    assert contents(store, as_of=between) == {"a": 0}
    assert contents(store, as_of=dt.datetime.now(dt.UTC)) == {"a": 0, "b": 0}
    with pytest.raises(SnapshotNotFoundError, match="as of"):
        contents(store, as_of=before)


def test_reads_a_part(store: VectorStore) -> None:
    store.write(delta([row(f"k{i}", rank=i, note=f"n{i % 2}") for i in range(10)]))
    assert contents(store, filter="rank >= 8") == {"k8": 8, "k9": 9}
    assert len(contents(store, limit=3)) == 3
    assert store.count(NAME, "note_id = 'n0'") == 5
    with pytest.raises(StoreError, match="nonsense"):
        contents(store, filter="nonsense = 1")


def test_looks_rows_up_by_values_of_a_column(store: VectorStore) -> None:
    strange = ["it's", 'double "quote"', "back\\slash", "\n", "名前", "a' OR 'a' = 'a", "--", ""]
    store.write(delta([row(f"k{i}", note=note) for i, note in enumerate(strange)] + [row("plain", note="plain")]))
    for i, note in enumerate(strange):
        found = [r for b in store.lookup(NAME, "note_id", [note, note], ["chunk_id"]) for r in b.to_pylist()]
        assert found == [{"chunk_id": f"k{i}"}]
    assert list(store.lookup(NAME, "note_id", [], ["chunk_id"])) == []
    many = [f"nobody {i}" for i in range(2500)] + ["plain"]
    assert sum(b.num_rows for b in store.lookup(NAME, "note_id", many, ["chunk_id"])) == 1


def test_a_rollback_takes_the_watermark_back(store: VectorStore) -> None:
    first = store.write(delta([row("a")], watermarks={NOTES: 7}))
    store.write(delta([row("b")], watermarks={NOTES: 8}))
    store.dataset(NAME, first.snapshot_id).restore()
    assert contents(store) == {"a": 0}
    assert store.watermark(NAME, NOTES) == 7


def test_an_overwrite_by_another_tool_ends_the_watermark(store: VectorStore) -> None:
    store.write(delta([row("a")], watermarks={NOTES: 7}))
    dataset = store.dataset(NAME)
    lance.write_dataset(pa.Table.from_batches([batch([row("z")])]), dataset, mode="overwrite")
    assert store.watermark(NAME, NOTES) is None


def test_lancedb_reads_the_table(store: VectorStore) -> None:
    lancedb = pytest.importorskip("lancedb")
    location = store.location(NAME)
    options = None if location.is_local else location.s3().object_store()
    store.write(delta([row("a", text="running databases"), row("b", text="机器学习和自然语言")]))
    store.index(NAME)
    root, _, _ = location.url.rpartition("/")
    database = lancedb.connect(Location(root).path if location.is_local else root, storage_options=options)
    table = database.open_table("test_chunks")
    assert table.count_rows() == 2
    assert table.search("自然语言", query_type="fts", fts_columns="text").to_arrow()["chunk_id"].to_pylist() == ["b"]
