"""The indexes of a vector table: made where they pay, refreshed when enough rows are outside of them.

Rows that no index holds yet are found all the same, by a scan; so an index that lags costs time, never an
answer. Each build makes a version that carries no marks: the newest is stamped again after it.

What the vector index finds of what an exact search finds (its recall) is measured whenever it is made or brought up to
date, and kept in the table's own config under `pkm.recall.<column>`, where any reader of the table can see it. An
index that loses too much is dropped, and not tried again before the table has grown by half.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import lance
import numpy as np
import pyarrow as pa

from pkm_pipelines.storage.lance_commit import restamp
from pkm_pipelines.storage.lance_maintain import BUFFER_BYTES, Opener, retried
from pkm_pipelines.storage.lance_search import REFINE_FACTOR, text_columns, vector_field
from pkm_pipelines.storage.lance_text import ANALYSIS

VECTOR_ROWS = 20_000
"""Below, there is none: at 20,000 rows of 384 numbers an exact search takes 12 ms and finds everything, IVF_SQ 4 ms
and nearly everything (2 cores; IVF_PQ found 30 % of the nearest ten, IVF_RQ 54 %, at twice the speed)."""
SCALAR_ROWS = 50_000
"""Below, scanning a column of ids is as fast as its index (2 to 7 ms at 100,000 rows on local disk)."""
SCALAR_COLUMNS = ("note_id", "text_hash")
UNINDEXED_ROWS = 20_000
UNINDEXED_SHARE = 0.05
UNINDEXED_FEW = 500
"""So few rows are scanned in a millisecond, whatever share of the table they are."""
MAX_SEGMENTS = 4
"""An index grows by segments, each of which a search looks into; and compaction keeps their fragments apart."""
MIN_RECALL = 0.95
_RECALL_QUERIES = 50
_RECALL_DEPTH = 10
_BATCH_ROWS = 4096
_RETRY_GROWTH = 1.5
_CONFIG = "pkm.recall."


@dataclass(frozen=True)
class Recall:
    """How good the vector index was when it was last looked at.

    `recall` is recall@`depth` against exact search over `queries` of the table's own vectors, slightly moved, when it
    had `rows` rows, at the moment `at` (ISO 8601). `kept` is False for an index that was dropped for it.
    """

    recall: float
    rows: int
    at: str
    kept: bool
    kind: str = "IVF_SQ"
    depth: int = _RECALL_DEPTH
    queries: int = _RECALL_QUERIES


@dataclass(frozen=True)
class IndexReport:
    """What a look after the indexes did.

    `vector_recall` is recall@10 of the vector index against exact search, on 50 of the table's own vectors; None where
    it was not built. An index below 0.95 is dropped again.
    """

    rows: int
    built: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    vector_recall: float | None = None


def refresh_indexes(open_newest: Opener, key: str) -> IndexReport:
    """Build the indexes that pay and are missing, refresh those that lag too far; raises `CommitConflictError`."""
    dataset = open_newest()
    rows = dataset.count_rows()
    if not rows:
        return IndexReport(0)
    present = {index.field_names[0]: index.name for index in dataset.describe_indices()}
    built: list[str] = []
    for column in text_columns(dataset):
        if column not in present or not _analyses_alike(dataset, present[column]):
            _build_text(open_newest, column)
            built.append(column)
    if rows >= SCALAR_ROWS:
        for column in (key, *SCALAR_COLUMNS):
            if column in dataset.schema.names and column not in present:
                _build_scalar(open_newest, column)
                built.append(column)
    recall = None
    field = _vector_column(dataset)
    if field is not None and field not in present and pays(rows, read_recall(dataset, field)):
        recall = _build_vector(open_newest, field)
        built.append(field)
    refreshed = _refresh(open_newest, [name for column, name in present.items() if column not in built])
    if built or refreshed:
        restamp(open_newest)
    return IndexReport(rows, tuple(built), tuple(refreshed), recall)


def fold_in(open_newest: Opener) -> IndexReport:
    """Bring every index up to date, however few rows are outside of it; a vector index is measured again then.

    One that has come to lose too much is trained anew, for its centroids are those of the rows it was made of.
    """
    dataset = open_newest()
    rows = dataset.count_rows()
    statistics = {index.name: dataset.index_statistics(index.name) for index in dataset.describe_indices()}
    lagging = [
        name
        for name, figures in statistics.items()
        if figures["num_unindexed_rows"] or figures["num_indices"] > MAX_SEGMENTS
    ]
    if not lagging:
        return IndexReport(rows)
    for name in lagging:  # one after the other, so that one is in memory at a time
        count = statistics[name]["num_indices"]
        merged = {"num_indices_to_merge": count} if count > MAX_SEGMENTS else {}
        retried(lambda n=name, m=merged: open_newest().optimize.optimize_indices(index_names=[n], **m))
    column = _vector_column(dataset)
    name = next((i.name for i in dataset.describe_indices() if column in i.field_names and i.name in lagging), None)
    recall = None
    if column is not None and name is not None:
        recall = measure_recall(open_newest(), column)
        if recall < MIN_RECALL:
            retried(lambda: open_newest().optimize.optimize_indices(index_names=[name], retrain=True))
            recall = measure_recall(open_newest(), column)
        _judge(open_newest, column, recall)
    restamp(open_newest)
    return IndexReport(rows, refreshed=tuple(lagging), vector_recall=recall)


def read_recall(dataset: lance.LanceDataset, column: str | None = None) -> Recall | None:
    """What was measured of the index of `column` (the vectors by default); None if it never had one."""
    column = column or _vector_column(dataset)
    raw = None if column is None else dataset.config().get(_CONFIG + column)
    return None if raw is None else Recall(**json.loads(raw))


def pays(rows: int, known: Recall | None) -> bool:
    """Whether a table of so many rows should have a vector index, given what is known of the last one."""
    if known is not None and not known.kept and rows < known.rows * _RETRY_GROWTH:
        return False
    return rows >= VECTOR_ROWS


def measure_recall(dataset: lance.LanceDataset, column: str) -> float:
    """Recall@10 of the index of `column` against exact search, for 50 of its vectors, slightly moved."""
    rows = dataset.count_rows()
    random = np.random.default_rng(0)
    picked = np.sort(random.choice(rows, min(_RECALL_QUERIES, rows), replace=False))
    sample = dataset.take(picked.tolist(), columns=[column])[column].combine_chunks()
    queries = np.asarray(sample.flatten(), np.float32).reshape(len(sample), -1)
    noise = random.standard_normal(queries.shape, np.float32)
    queries = queries + 0.3 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    exact = _nearest_exactly(dataset, column, queries)
    hits = sum(len(wanted & _nearest(dataset, column, q)) for q, wanted in zip(queries, exact, strict=True))
    return hits / (len(queries) * _RECALL_DEPTH)


def _nearest(dataset: lance.LanceDataset, column: str, query: np.ndarray) -> set[int]:
    """The row ids that the index finds."""
    nearest = {
        "column": column, "q": query, "k": _RECALL_DEPTH, "metric": "cosine", "refine_factor": REFINE_FACTOR,
    }  # fmt: skip
    return set(dataset.scanner(columns=["_rowid", "_distance"], nearest=nearest).to_table()["_rowid"].to_pylist())


def _nearest_exactly(dataset: lance.LanceDataset, column: str, queries: np.ndarray) -> list[set[int]]:
    """The row ids of the nearest vectors of each query by cosine: one pass over the table for all of them.

    Lance's own exact search reads the table once for each query, and holds its vectors in memory.
    """
    wanted = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    ids = np.zeros((len(queries), 0), np.int64)
    best = np.zeros((len(queries), 0), np.float32)
    scanner = dataset.scanner(columns=[column], with_row_id=True, batch_size=_BATCH_ROWS, io_buffer_size=BUFFER_BYTES)
    for batch in scanner.to_batches():
        vectors = np.asarray(batch[column].flatten(), np.float32).reshape(batch.num_rows, -1)
        lengths = np.linalg.norm(vectors, axis=1)
        similar = wanted @ vectors.T / np.where(lengths, lengths, 1)
        similar[:, lengths == 0] = -np.inf  # which no index finds either
        rows = batch["_rowid"].to_numpy().astype(np.int64)
        ids = np.hstack([ids, np.broadcast_to(rows, similar.shape)])
        best = np.hstack([best, similar])
        if best.shape[1] > _RECALL_DEPTH:
            kept = np.argpartition(-best, _RECALL_DEPTH - 1, axis=1)[:, :_RECALL_DEPTH]
            ids, best = np.take_along_axis(ids, kept, 1), np.take_along_axis(best, kept, 1)
    return [set(row.tolist()) for row in ids]


def _analyses_alike(dataset: lance.LanceDataset, name: str) -> bool:
    """Whether a full-text index was made as `lance_text` would make it now; two ways cannot be searched together."""
    return all(
        all(part["params"].get(option) == value for option, value in ANALYSIS.items())
        for part in dataset.index_statistics(name)["indices"]
    )


def _build_text(open_newest: Opener, column: str) -> None:
    retried(lambda: open_newest().create_scalar_index(column, "INVERTED", with_position=True, **ANALYSIS))


def _build_scalar(open_newest: Opener, column: str) -> None:
    retried(lambda: open_newest().create_scalar_index(column, "BTREE"))


def _build_vector(open_newest: Opener, column: str) -> float:
    """IVF with scalar quantisation; of Lance's index types the fastest that found all of the nearest (see facts)."""
    retried(lambda: open_newest().create_index(column, "IVF_SQ", metric="cosine", replace=True))
    recall = measure_recall(open_newest(), column)
    _judge(open_newest, column, recall)
    return recall


def _judge(open_newest: Opener, column: str, recall: float) -> None:
    """Drop the index of `column` if it loses too much, and write down which."""
    dataset = open_newest()
    kept = recall >= MIN_RECALL
    if not kept:
        names = [index.name for index in dataset.describe_indices() if column in index.field_names]
        retried(lambda: [open_newest().drop_index(name) for name in names])
    known = Recall(round(recall, 4), dataset.count_rows(), dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), kept)
    retried(lambda: open_newest().update_config({_CONFIG + column: json.dumps(asdict(known))}))


def _refresh(open_newest: Opener, names: Sequence[str]) -> list[str]:
    dataset = open_newest()
    lagging = [name for name in names if _lags(dataset.index_statistics(name))]
    if lagging:
        retried(lambda: open_newest().optimize.optimize_indices(index_names=lagging))
    return lagging


def _lags(statistics: dict[str, int]) -> bool:
    outside = statistics["num_unindexed_rows"]
    rows = outside + statistics["num_indexed_rows"]
    return outside > UNINDEXED_ROWS or (outside > UNINDEXED_FEW and outside > UNINDEXED_SHARE * rows)


def _vector_column(dataset: lance.LanceDataset) -> str | None:
    has_vectors = any(pa.types.is_fixed_size_list(field.type) for field in dataset.schema)
    return vector_field(dataset).name if has_vectors else None
