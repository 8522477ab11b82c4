"""Indexes and maintenance of a vector table: made where they pay, refreshed when enough rows are outside of them.

Rows that no index holds yet are found all the same, by a scan; so an index that lags costs time, never an
answer. Each build makes a version that carries no marks: the newest is stamped again after it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError as LanceConflict

from pkm_pipelines.model.errors import CommitConflictError
from pkm_pipelines.storage.lance_commit import restamp
from pkm_pipelines.storage.lance_search import REFINE_FACTOR, text_columns, vector_field
from pkm_pipelines.storage.lance_text import ANALYSIS

VECTOR_ROWS = 20_000
"""Below, an exact search takes some 10 ms, and an index would save nothing."""
SCALAR_ROWS = 50_000
"""Below, scanning a column of ids is as fast as its index (2 to 7 ms at 100,000 rows on local disk)."""
SCALAR_COLUMNS = ("note_id", "text_hash")
UNINDEXED_ROWS = 20_000
UNINDEXED_SHARE = 0.05
UNINDEXED_FEW = 500
"""So few rows are scanned in a millisecond, whatever share of the table they are."""
MIN_RECALL = 0.95
_RECALL_QUERIES = 50
_RECALL_DEPTH = 10
_ATTEMPTS = 5

Opener = Callable[[], lance.LanceDataset]


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
    if rows >= VECTOR_ROWS and (field := _vector_column(dataset)) is not None and field not in present:
        recall = _build_vector(open_newest, field)
        built.append(field)
    refreshed = _refresh(open_newest, [name for column, name in present.items() if column not in built])
    if built or refreshed:
        restamp(open_newest)
    return IndexReport(rows, tuple(built), tuple(refreshed), recall)


def compact(open_newest: Opener) -> None:
    """Rewrite small files and files with many deleted rows into large ones, and bring every index up to date."""
    _retried(lambda: open_newest().optimize.compact_files(batch_size=1024))
    _retried(lambda: open_newest().optimize.optimize_indices())
    restamp(open_newest)


def clean_up(open_newest: Opener, older_than: dt.timedelta) -> int:
    """Delete the versions that are older and not tagged, and the files that only they use; returns the bytes freed.

    Files of writes that never became a version go once they are seven days old.
    """
    restamp(open_newest)
    stats = open_newest().cleanup_old_versions(older_than, error_if_tagged_old_versions=False)
    return stats.bytes_removed


def measure_recall(dataset: lance.LanceDataset, column: str) -> float:
    """Recall@10 of the index of `column` against exact search, for 50 of its vectors, slightly moved."""
    rows = dataset.count_rows()
    random = np.random.default_rng(0)
    picked = np.sort(random.choice(rows, min(_RECALL_QUERIES, rows), replace=False))
    sample = dataset.take(picked.tolist(), columns=[column])[column].combine_chunks()
    queries = np.asarray(sample.flatten(), np.float32).reshape(len(sample), -1)
    noise = random.standard_normal(queries.shape, np.float32)
    queries = queries + 0.3 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    hits = sum(len(_nearest(dataset, column, q, exact=True) & _nearest(dataset, column, q)) for q in queries)
    return hits / (len(queries) * _RECALL_DEPTH)


def _nearest(dataset: lance.LanceDataset, column: str, query: np.ndarray, *, exact: bool = False) -> set[int]:
    nearest = {
        "column": column, "q": query, "k": _RECALL_DEPTH, "metric": "cosine", "use_index": not exact,
        "refine_factor": REFINE_FACTOR,
    }  # fmt: skip
    return set(dataset.scanner(columns=["_rowid", "_distance"], nearest=nearest).to_table()["_rowid"].to_pylist())


def _analyses_alike(dataset: lance.LanceDataset, name: str) -> bool:
    """Whether a full-text index was made as `lance_text` would make it now; two ways cannot be searched together."""
    return all(
        all(part["params"].get(option) == value for option, value in ANALYSIS.items())
        for part in dataset.index_statistics(name)["indices"]
    )


def _build_text(open_newest: Opener, column: str) -> None:
    _retried(lambda: open_newest().create_scalar_index(column, "INVERTED", with_position=True, **ANALYSIS))


def _build_scalar(open_newest: Opener, column: str) -> None:
    _retried(lambda: open_newest().create_scalar_index(column, "BTREE"))


def _build_vector(open_newest: Opener, column: str) -> float:
    """IVF with scalar quantisation; of Lance's index types the fastest that found all of the nearest (see facts)."""
    _retried(lambda: open_newest().create_index(column, "IVF_SQ", metric="cosine", replace=True))
    dataset = open_newest()
    recall = measure_recall(dataset, column)
    if recall < MIN_RECALL:
        names = [index.name for index in dataset.describe_indices() if column in index.field_names]
        _retried(lambda: [open_newest().drop_index(name) for name in names])
    return recall


def _refresh(open_newest: Opener, names: Sequence[str]) -> list[str]:
    dataset = open_newest()
    lagging = [name for name in names if _lags(dataset.index_statistics(name))]
    if lagging:
        _retried(lambda: open_newest().optimize.optimize_indices(index_names=lagging))
    return lagging


def _lags(statistics: dict[str, int]) -> bool:
    outside = statistics["num_unindexed_rows"]
    rows = outside + statistics["num_indexed_rows"]
    return outside > UNINDEXED_ROWS or (outside > UNINDEXED_FEW and outside > UNINDEXED_SHARE * rows)


def _vector_column(dataset: lance.LanceDataset) -> str | None:
    has_vectors = any(pa.types.is_fixed_size_list(field.type) for field in dataset.schema)
    return vector_field(dataset).name if has_vectors else None


def _retried(build: Callable[[], object]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            build()
            return
        except LanceConflict:
            continue
    raise CommitConflictError("writers kept changing the table while it was maintained; run it again")
