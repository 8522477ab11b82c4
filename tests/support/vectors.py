"""A small vector table for tests, and rows to put into it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.storage.lance import VectorStore

DIMENSION = 8
SPEC = TableSpec(
    layer="vectors",
    table="test_chunks",
    doc="Chunks of a test.",
    kind="state",
    key=("chunk_id",),
    columns=(
        Column(1, "chunk_id", pa.string(), "Key", True),
        Column(2, "note_id", pa.string(), "Note", True),
        Column(3, "path", pa.string(), "Path", True),
        Column(4, "title", pa.string(), "Title"),
        Column(5, "tags", pa.list_(pa.string()), "Tags"),
        Column(6, "heading_path", pa.string(), "Headings"),
        Column(7, "text", pa.string(), "Text", True),
        Column(8, "rank", pa.int64(), "A number"),
        Column(9, "embedding", pa.list_(pa.float32(), DIMENSION), "Vector", True),
    ),
)
NAME = SPEC.name


def vector(seed: int) -> np.ndarray:
    """A unit vector that depends on `seed` alone."""
    values = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return values / np.linalg.norm(values)


def row(key: str, *, rank: int = 0, note: str = "note", text: str | None = None, **values: Any) -> dict[str, Any]:
    """One row; its vector follows from the key."""
    defaults = {
        "chunk_id": key, "note_id": note, "path": f"{note}.md", "title": note, "tags": [], "heading_path": "",
        "text": text if text is not None else f"text of {key}", "rank": rank,
        "embedding": vector(sum(key.encode())),
    }  # fmt: skip
    return {**defaults, **values}


def batch(rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as one batch of the table's schema."""
    return pa.RecordBatch.from_pylist([dict(r) for r in rows], SPEC.arrow)


def many(start: int, count: int) -> pa.RecordBatch:
    """Rows in clusters, as texts on some subjects are, made fast."""
    random = np.random.default_rng(start)
    centres = np.random.default_rng(7).standard_normal((50, DIMENSION))
    vectors = centres[random.integers(0, 50, count)] + 0.5 * random.standard_normal((count, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"{i:06d}" for i in range(start, start + count)]
    columns = {
        "chunk_id": pa.array(ids),
        "note_id": pa.array([f"note {i // 5}" for i in range(start, start + count)]),
        "path": pa.array([f"{i}.md" for i in ids]),
        "title": pa.nulls(count, pa.string()),
        "tags": pa.nulls(count, pa.list_(pa.string())),
        "heading_path": pa.nulls(count, pa.string()),
        "text": pa.array([f"number {i}" for i in ids]),
        "rank": pa.array([0] * count),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SPEC.arrow.names], schema=SPEC.arrow)


def delta(written: Sequence[Mapping[str, Any]] = (), /, *, deletes: Iterable[str] = (), **values: Any) -> Delta:
    """A merge of the rows `written` that deletes the keys `deletes`."""
    keys = list(deletes)
    defaults: dict[str, Any] = {
        "table": NAME,
        "rows": [batch(written)] if written else (),
        "mode": "merge",
        "op_id": str(uuid.uuid4()),
        "delete_keys": pa.table({"chunk_id": pa.array(keys, pa.string())}) if keys else None,
    }
    return Delta(**{**defaults, **values})


def contents(store: VectorStore, **where: Any) -> dict[str, int]:
    """Key → rank of every row; fails if a key stands twice."""
    rows = [r for b in store.read(NAME, columns=["chunk_id", "rank"], **where) for r in b.to_pylist()]
    found = {r["chunk_id"]: r["rank"] for r in rows}
    assert len(found) == len(rows), "a key stands twice"
    return found
