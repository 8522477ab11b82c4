"""Search in one version of a vector table: by vector, by words, or by both.

Filters are always applied before the search: applied after it, they return too few rows, or wrong ones
(lancedb/lancedb#2649, #1656).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.storage import lance_text

SearchMode = Literal["hybrid", "vector", "text"]
RRF_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009)."""
BM25_HALF = 10.0
"""The BM25 score that becomes 0.5."""
REFINE_FACTOR = 5
_HYBRID_DEPTH = 100


def search_dataset(
    dataset: lance.LanceDataset,
    key: str,
    *,
    vector: np.ndarray | None,
    text: str | None,
    mode: SearchMode,
    k: int,
    where: str | None,
    columns: Sequence[str] | None,
) -> pa.Table:
    """The `k` best rows, best first, with `columns` (all but the vector by default) and a column `score`.

    `score` lies in [0, 1] and is comparable within one answer: for `vector` the cosine similarity, nothing below
    0; for `text` s / (s + 10) of the BM25 score s; for `hybrid` the reciprocal rank fusion of both, over that of a
    row that is first in both. Equal scores are ordered by key.
    """
    names = (
        list(columns)
        if columns is not None
        else [f.name for f in dataset.schema if f.name != vector_field(dataset).name]
    )
    wanted = list(dict.fromkeys([key, *names]))
    if mode == "vector":
        found = _by_vector(dataset, vector, k, where, wanted)
    elif mode == "text":
        found = _by_text(dataset, text, k, where, wanted)
    else:
        depth = max(_HYBRID_DEPTH, 4 * k)
        parts = [_by_vector(dataset, vector, depth, where, wanted), _by_text(dataset, text, depth, where, wanted)]
        found = _fuse(parts, key, k)
    return found.sort_by([("score", "descending"), (key, "ascending")]).select([*names, "score"])


def vector_field(dataset: lance.LanceDataset) -> pa.Field:
    """The column of vectors; raises `QueryError` if there is none."""
    for field in dataset.schema:
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
            return field
    raise QueryError(f"{dataset.uri}: the table has no vectors")


def text_columns(dataset: lance.LanceDataset) -> list[str]:
    """The columns of `dataset` that full-text search is for."""
    return [name for name in lance_text.COLUMNS if name in dataset.schema.names]


def indexed_columns(dataset: lance.LanceDataset) -> list[str]:
    """Those of `text_columns` that have a full-text index."""
    indexed = {
        name for index in dataset.describe_indices() if index.index_type == "Inverted" for name in index.field_names
    }
    return [name for name in text_columns(dataset) if name in indexed]


def _by_vector(
    dataset: lance.LanceDataset, vector: np.ndarray | None, k: int, where: str | None, columns: list[str]
) -> pa.Table:
    field = vector_field(dataset)
    if vector is None:
        raise QueryError("a search by meaning needs a query vector")
    if vector.shape != (field.type.list_size,):
        raise QueryError(
            f"the query vector has {vector.size} numbers, the table's have {field.type.list_size}: they are of "
            "different models; run `pkm run` with the model of the settings"
        )
    nearest = {"column": field.name, "q": vector, "k": k, "metric": "cosine", "refine_factor": REFINE_FACTOR}
    scanner = dataset.scanner(columns=[*columns, "_distance"], nearest=nearest, filter=where, prefilter=True)
    table = scanner.to_table()
    similarity = pc.max_element_wise(pc.subtract(1.0, pc.cast(table["_distance"], pa.float64())), 0.0)
    return table.drop_columns(["_distance"]).append_column("score", similarity)


def _by_text(dataset: lance.LanceDataset, text: str | None, k: int, where: str | None, columns: list[str]) -> pa.Table:
    fields = text_columns(dataset)
    if not fields:
        raise QueryError(f"{dataset.uri}: the table has no text to search")
    query = lance_text.text_query(text or "", indexed_columns(dataset), fields[0])
    if query is None:
        empty = pa.schema([dataset.schema.field(name) for name in columns]).empty_table()
        return empty.append_column("score", pa.array([], pa.float64()))
    scanner = dataset.scanner(
        columns=[*columns, "_score"], full_text_query=query, filter=where, prefilter=True, limit=k
    )
    table = scanner.to_table()
    score = pc.cast(table["_score"], pa.float64())
    return table.drop_columns(["_score"]).append_column("score", pc.divide(score, pc.add(score, BM25_HALF)))


def _fuse(parts: Sequence[pa.Table], key: str, k: int) -> pa.Table:
    """The `k` best rows of several ranked tables by reciprocal rank fusion, scaled so that 1 is first in all."""
    fused: dict[str, float] = {}
    for part in parts:
        ranked = part.sort_by([("score", "descending"), (key, "ascending")])
        for rank, row_key in enumerate(ranked[key].to_pylist(), start=1):
            fused[row_key] = fused.get(row_key, 0.0) + 1 / (RRF_CONSTANT + rank)
    best = sorted(fused, key=lambda row_key: (-fused[row_key], row_key))[:k]
    rows = pa.concat_tables([part.drop_columns(["score"]) for part in parts]).combine_chunks()
    first = pc.index_in(pa.array(best, rows[key].type), rows[key].combine_chunks())
    scale = (RRF_CONSTANT + 1) / len(parts)
    return rows.take(first).append_column("score", pa.array([fused[row_key] * scale for row_key in best], pa.float64()))
